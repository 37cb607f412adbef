// The user's controls: forms, buttons, dialogs.

import { byId, toast } from "./dom.js";

export class Controls {
  /** send(order): false if there is no connection. */
  constructor(send) {
    this.send = (order, done) => {
      if (!send(order)) toast("Not connected: nothing was sent.");
      else if (done) toast(done);
    };
    this.standing = "";
    this.paused = false;
    this.#forms();
    byId("pause").addEventListener("click", () => this.send({ do: "pause", paused: !this.paused }));
    byId("snapshot").addEventListener("click", () => this.send({ do: "snapshot" }));
    byId("reset").addEventListener("click", () => byId("reset-dialog").showModal());
    byId("reset-dialog").addEventListener("close", (event) => event.target.returnValue === "reset" && this.send({ do: "reset" }));
    this.#sourceDialog();
  }

  /** Show the session's question, without overwriting what the user is typing. */
  show(status) {
    const field = byId("question");
    if (document.activeElement !== field && field.value === this.standing) field.value = status.question ?? "";
    this.standing = status.question ?? "";
    this.#mark();
    this.paused = Boolean(status.paused);
    byId("pause").setAttribute("aria-pressed", String(this.paused));
    byId("pause").firstChild.textContent = this.paused ? "Resume" : "Pause";
  }

  enable(isConnected) {
    for (const id of ["pause", "snapshot", "reset", "source-open"]) byId(id).disabled = !isConnected;
  }

  #forms() {
    byId("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const question = byId("ask").value.trim();
      if (!question) return byId("ask").focus();
      this.send({ do: "ask", question }, "Asked. Waiting for the answer.");
      byId("ask").value = "";
    });
    byId("question").addEventListener("input", () => this.#mark());
    byId("question-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const question = byId("question").value.trim();
      if (question && question !== this.standing) this.send({ do: "question", question }, "Question changed.");
    });
    byId("question").addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.target.value = this.standing;
        this.#mark();
      }
    });
  }

  #mark() {
    const value = byId("question").value.trim();
    byId("question-set").disabled = !value || value === this.standing;
  }

  #sourceDialog() {
    const dialog = byId("source-dialog");
    const text = byId("source-text");
    byId("source-open").addEventListener("click", () => dialog.showModal());
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "switch" && text.value.trim()) this.send({ do: "switch", source: text.value.trim() }, "Switching the source.");
      dialog.returnValue = "";
    });
    for (const example of dialog.querySelectorAll(".example")) {
      example.addEventListener("click", () => {
        text.value = example.dataset.source;
        text.focus();
      });
    }
  }
}
