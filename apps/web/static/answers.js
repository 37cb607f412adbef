// The answer being written, and the conversation: answers with their questions, newest first.

import { byId, element, timeElement } from "./dom.js";

const KEPT = 100;

export class Answers {
  constructor() {
    this.list = byId("conversation");
    this.randomWeights = false;
    this.setAll([]);
  }

  setAll(entries) {
    this.list.replaceChildren(...entries.map((entry) => this.#item(entry)).reverse());
    if (!entries.length) this.list.append(element("li", { className: "none", text: "Answers will appear here." }));
  }

  add(entry) {
    this.list.querySelector(".none")?.remove();
    this.list.prepend(this.#item(entry));
    while (this.list.children.length > KEPT) this.list.lastChild.remove();
    byId("spoken").textContent = `${entry.question ?? ""} ${entry.answer ?? entry.text}`; // complete, for screen readers
  }

  /** {question, text, done} or null. */
  show(answer) {
    const shown = byId("answer");
    shown.dataset.state = !answer ? "none" : answer.done ? "done" : "writing";
    shown.textContent = answer?.text || (answer ? "" : "No answer yet");
    shown.scrollTop = shown.scrollHeight;
    byId("answer-question").textContent = answer?.question ?? "";
    byId("answer-foot").textContent = this.randomWeights ? "Random weights: these tokens are not an answer." : "";
  }

  /** {frame, question, truth, is_right} of the newest answer, if the source knows the truth. */
  grade(grade) {
    if (!grade) return;
    const items = [...this.list.querySelectorAll(`li[data-frame="${Number(grade.frame)}"]`)];
    const item = items.find((each) => each.querySelector(".said-question span").textContent === grade.question);
    if (!item || item.querySelector(".truth")) return;
    const mark = grade.is_right === null ? "" : grade.is_right ? "\u2713 " : "\u2717 ";
    const text = grade.is_right ? `${mark}right` : `${mark}truth: ${grade.truth}`;
    item.append(element("p", { className: "truth", text, "data-right": String(grade.is_right) }));
  }

  #item(entry) {
    const question = element("p", { className: "said-question" }, element("span", { text: entry.question ?? "" }), timeElement(entry.at));
    const answer = element("p", { className: "said-answer", text: entry.answer ?? entry.text });
    return element("li", { "data-frame": entry.frame, title: `frame ${entry.frame}, ${entry.time_s.toFixed(1)} s` }, question, answer);
  }
}
