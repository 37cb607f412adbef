// Keyboard shortcuts. They are off while the user is typing or a dialog is open.

import { byId, element } from "./dom.js";

export function listen(actions) {
  const keys = [
    ["a", "Ask a question", () => byId("ask").focus()],
    ["q", "Change the repeated question", () => byId("question").select()],
    ["p", "Pause or resume", () => byId("pause").click()],
    ["s", "Take a snapshot", () => byId("snapshot").click()],
    ["c", "Change the source", () => byId("source-open").click()],
    ["r", "Reset: forget everything", () => byId("reset").click()],
    ["f", "Full screen", actions.fullscreen],
    ["t", "Light or dark theme", actions.theme],
    ["?", "Show these shortcuts", () => byId("help-dialog").showModal()],
  ];
  byId("help-open").addEventListener("click", () => byId("help-dialog").showModal());
  byId("shortcuts").append(
    ...keys.flatMap(([key, says]) => [element("dt", {}, element("kbd", { text: key })), element("dd", { text: says })]),
    element("dt", {}, element("kbd", { text: "Esc" })), element("dd", { text: "Leave a field or close a dialog" }),
  );
  for (const [id, key] of [["pause", "p"], ["snapshot", "s"], ["source-open", "c"], ["reset", "r"]]) {
    byId(id).append(element("kbd", { text: key, "aria-hidden": "true" }));
  }
  addEventListener("keydown", (event) => {
    const isTyping = event.target.matches?.("input, textarea, select");
    if (event.key === "Escape" && isTyping) event.target.blur();
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
    const found = keys.find(([key]) => key === event.key.toLowerCase());
    if (!found) return;
    event.preventDefault();
    found[2]();
  });
}
