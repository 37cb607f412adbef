// The page: passes the server's messages to the parts that show them, and the user's requests to the server.

import { Answers } from "./answers.js";
import { OwnCamera } from "./camera.js";
import { Charts } from "./charts.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { byId, toast } from "./dom.js";
import { Events } from "./events.js";
import { listen } from "./keys.js";
import { Picture } from "./picture.js";
import { Theme } from "./theme.js";

const LATE_S = 10; // without figures or new text of an answer, after which "No frames" is shown

const picture = new Picture();
const answers = new Answers();
const events = new Events();
const charts = new Charts();
const theme = new Theme(() => redraw());
const controls = new Controls((order) => connection.send(order));
const camera = new OwnCamera((order) => connection.send(order), () => connection.backlog);
let status = {};
let lastEvent = 0;
let lastSignAt = 0;
let connectionState = "connecting";

listen({ fullscreen: () => picture.fullscreen(), theme: () => theme.next() });
if (location.search.includes("token=")) history.replaceState(null, "", location.pathname); // it is in a cookie now

const HANDLERS = {
  state(value) {
    lastEvent = value.num_events;
    camera.limits = value.limits;
    answers.setAll(value.conversation);
    events.setAll(value.events, value.open_alerts);
    charts.setAll(value.history, value.now);
    if (value.now) lastSignAt = Date.now();
    HANDLERS.status(value.status);
    answers.show(value.answer);
    HANDLERS.viewers(value.viewers);
    HANDLERS.camera(value.camera);
  },
  status(value) {
    status = value;
    answers.randomWeights = Boolean(value.random_weights);
    answers.grade(value.grade);
    controls.show(value);
    byId("source").textContent = value.source ?? "";
    const notice = value.notice || value.still || "";
    byId("notice").textContent = notice;
    byId("notice").hidden = !notice;
    showState();
  },
  answer(value) {
    lastSignAt = Date.now();
    answers.show(value);
  },
  event(value) {
    if (value.id <= lastEvent) return; // already in the state
    lastEvent = value.id;
    if (value.kind !== "answer") {
      events.add(value);
      if (value.kind === "snapshot") toast(value.text);
      if (value.kind === "reset") {
        answers.setAll([]);
        answers.show(null);
      }
    } else {
      answers.show({ question: value.question, text: value.answer ?? value.text, done: true });
      answers.add(value);
      answers.grade(status.grade);
    }
    showState();
  },
  second(value) {
    lastSignAt = Date.now();
    charts.add(value);
    events.draw();
    showState();
  },
  viewers(value) {
    byId("viewers").textContent = value === 1 ? "1 viewer" : `${value} viewers`;
  },
  camera: (value) => camera.owner(value),
  refused: (value) => toast(`Not done: ${value}.`),
  beat() {},
};

const connection = new Connection(new URL("ws", location.href.replace(/^http/, "ws")), {
  message: (type, value) => HANDLERS[type]?.(value),
  picture: (blob) => picture.show(blob),
  changed(state, reason) {
    connectionState = state;
    document.body.dataset.connection = state;
    byId("banner").textContent = reason;
    byId("banner").hidden = !reason;
    controls.enable(state === "open");
    if (state !== "open") camera.stop(false);
    showState();
  },
});

/** The session's state in a word or two, in the pill and in the window's title. */
function showState() {
  const alerts = events.openAlerts;
  const [text, tone] =
    connectionState === "lost" ? ["Disconnected", "bad"]
    : connectionState === "connecting" ? ["Connecting", ""]
    : status.paused ? ["Paused", "warn"]
    : Date.now() - lastSignAt > 1000 * LATE_S ? ["No frames", "warn"]
    : alerts.length ? [alerts.length === 1 ? `Alert: ${alerts[0]}` : `${alerts.length} alerts`, "bad"]
    : ["Live", "good"];
  const pill = byId("state");
  if (pill.textContent !== text) pill.textContent = text;
  pill.dataset.tone = tone;
  document.title = `${text} - pvc-live`;
}

function redraw() {
  charts.draw();
  events.draw();
}

setInterval(() => {
  showState();
  redraw();
}, 2000);
addEventListener("resize", redraw);
document.addEventListener("visibilitychange", () => document.hidden || redraw());
