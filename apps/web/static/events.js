// The events: a list, newest first, and a band of the last ten minutes with a bar for each alert.

import { byId, cleared, clock, colour, element, timeElement } from "./dom.js";

const KEPT = 300;
const SPAN_S = 600;
const QUIET = ["snapshot", "question", "reset", "rollover"];
const NAMES = {
  alert: "Alert", "alert-end": "Alert over", rollover: "Context renewed", reset: "Reset", source: "Source",
  question: "Question", snapshot: "Snapshot", trouble: "Trouble", end: "End",
};

export class Events {
  constructor() {
    this.list = byId("events");
    this.band = byId("band");
    this.setAll([], []);
  }

  setAll(events, openAlerts) {
    this.events = [...events];
    this.open = new Map(openAlerts.map((event) => [event.alert, event]));
    this.list.replaceChildren(...events.map(item).reverse());
    if (!events.length) this.list.append(element("li", { className: "none", text: "No events yet." }));
    this.draw();
  }

  add(event) {
    this.list.querySelector(".none")?.remove();
    this.list.prepend(item(event));
    while (this.list.children.length > KEPT) this.list.lastChild.remove();
    this.events = [...this.events.slice(1 - KEPT), event];
    if (event.kind === "alert") this.open.set(event.alert, event);
    if (event.kind === "alert-end") this.open.delete(event.alert);
    this.draw();
  }

  get openAlerts() {
    return [...this.open.keys()];
  }

  draw() {
    const drawing = cleared(this.band);
    if (!drawing) return;
    const { context, width } = drawing;
    const end = Date.now() / 1000;
    const x = (seconds) => Math.max(0, (width * (seconds - (end - SPAN_S))) / SPAN_S);
    context.fillStyle = colour("--grid");
    context.beginPath();
    context.roundRect(0, 2, width, 14, 4);
    context.fill();
    context.fillStyle = colour("--alert");
    for (const [from, to] of this.#alertSpans(end)) {
      if (to < end - SPAN_S) continue;
      context.beginPath();
      context.roundRect(x(from), 2, Math.max(x(to) - x(from), 3), 14, 4);
      context.fill();
    }
    for (const event of this.events) {
      const at = seconds(event);
      if (at < end - SPAN_S || event.kind.startsWith("alert")) continue;
      context.fillStyle = colour(QUIET.includes(event.kind) ? "--accent" : "--bad");
      context.fillRect(x(at) - 1, 2, 2, 14);
    }
    axis(context, width, 30);
    const numAlerts = this.#alertSpans(end).filter(([, to]) => to >= end - SPAN_S).length;
    this.band.setAttribute("aria-label", `Last ten minutes: ${numAlerts} alerts, ${this.open.size} of them active`);
  }

  /** [from, to] of each alert; an open one lasts until now. */
  #alertSpans(now) {
    const begun = new Map([...this.open].map(([name, event]) => [name, seconds(event)]));
    const spans = [...begun.values()].map((from) => [from, now]);
    const started = new Map();
    for (const event of this.events) {
      if (event.kind === "alert") started.set(event.alert, seconds(event));
      if (event.kind === "alert-end") spans.push([started.get(event.alert) ?? 0, seconds(event)]);
    }
    return spans;
  }
}

const seconds = (event) => Date.parse(event.at) / 1000;

/** Times under a band or a chart. */
function axis(context, width, y) {
  context.fillStyle = colour("--muted");
  context.font = "11px system-ui, sans-serif";
  const now = Date.now() / 1000;
  context.textAlign = "left";
  context.fillText(clock(now - SPAN_S), 0, y);
  context.textAlign = "center";
  context.fillText("5 min ago", width / 2, y);
  context.textAlign = "right";
  context.fillText("now", width, y);
}

function item(event) {
  const name = element("span", { className: "visually-hidden", text: `${NAMES[event.kind] ?? event.kind}: ` });
  const text = element("span", { className: "event-text", title: NAMES[event.kind] ?? event.kind }, name, event.text);
  return element("li", { className: "event", "data-kind": event.kind }, text, timeElement(event.at));
}
