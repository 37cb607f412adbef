// Four small charts of the last ten minutes. A gap is a time without frames.

import { byId, cleared, clock, colour, element } from "./dom.js";

const SPAN_S = 600;
const GAP_S = 4;
const KEPT = 600;
const whole = (value) => Math.round(value).toLocaleString();
const contextShare = (s, now) => now && `context ${Math.round((100 * s.rows) / now.context_limit)} %`;
const CHARTS = [
  { title: "Frames per second", lines: ["fps"], unit: "fps", text: (s) => s.fps.toFixed(1), more: contextShare },
  { title: "Latency to context", lines: ["p99", "p50"], unit: "ms", text: (s) => whole(s.p50), more: (s) => `p99 ${whole(s.p99)}` },
  { title: "Dropped frames", lines: ["dropped"], unit: "/s", text: (s) => whole(s.dropped), more: (s, now) => now && `${whole(now.num_dropped)} in total`, bars: true },
  { title: "Memory", lines: ["mb"], unit: "MB", text: (s) => (s.mb === null ? "?" : whole(s.mb)) },
];

export class Charts {
  constructor() {
    this.samples = [];
    this.now = null;
    this.pointed = null; // the sample under the pointer
    this.charts = CHARTS.map((chart) => this.#make(chart));
    new ResizeObserver(() => this.draw()).observe(byId("charts"));
  }

  setAll(samples, now) {
    this.samples = samples;
    this.now = now;
    this.draw();
  }

  add({ sample, now }) {
    this.samples = [...this.samples.slice(1 - KEPT), sample];
    this.now = now;
    this.draw();
  }

  draw() {
    if (document.hidden) return;
    for (const chart of this.charts) this.#draw(chart);
  }

  #make(spec) {
    const value = element("p", { className: "chart-value", text: "\u2013" });
    const time = element("span", { className: "chart-time" });
    const canvas = element("canvas", { role: "img", "aria-label": spec.title });
    const head = element("div", { className: "chart-head" }, element("h3", { text: spec.title }), time);
    byId("charts").append(element("div", { className: "chart" }, head, value, canvas));
    canvas.addEventListener("pointermove", (event) => this.#point(canvas, event.offsetX));
    canvas.addEventListener("pointerleave", () => this.#point(canvas, null));
    return { ...spec, value, time, canvas };
  }

  #point(canvas, x) {
    const at = x === null ? null : Date.now() / 1000 - SPAN_S * (1 - x / canvas.clientWidth);
    const distance = (sample) => Math.abs(sample.at - at);
    this.pointed = at === null || !this.samples.length ? null : this.samples.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    this.draw();
  }

  #draw(chart) {
    const shown = this.pointed ?? this.samples.at(-1);
    if (shown) {
      const more = chart.more?.(shown, this.now);
      const small = element("small", { text: ` ${chart.unit}${more ? ` \u00b7 ${more}` : ""}` });
      chart.value.replaceChildren(chart.text(shown), small);
      chart.time.textContent = this.pointed ? clock(shown.at) : "";
      chart.canvas.setAttribute("aria-label", `${chart.title}, last ten minutes; now ${chart.text(shown)} ${chart.unit}`);
    }
    const drawing = cleared(chart.canvas);
    if (!drawing) return;
    const { context, width, height } = drawing;
    const end = Date.now() / 1000;
    const top = niceTop(1.35 * Math.max(0, ...this.samples.flatMap((s) => chart.lines.map((name) => s[name] ?? 0))));
    const x = (at) => (width * (at - (end - SPAN_S))) / SPAN_S;
    const y = (value) => height - 1 - ((height - 6) * value) / top;
    context.strokeStyle = colour("--grid");
    context.lineWidth = 1;
    for (const share of [0, 0.5, 1]) line(context, 0, Math.round(y(share * top)) + 0.5, width);
    chart.lines.forEach((name, index) => {
      const isMain = index === chart.lines.length - 1;
      const ink = colour(isMain ? "--accent" : "--field-line");
      if (chart.bars) bars(context, this.samples, name, x, y, colour("--warn"));
      else path(context, this.samples, name, x, y, ink, isMain ? height : null);
    });
    context.fillStyle = colour("--muted");
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "left";
    context.fillText(top.toLocaleString(), 2, y(top) + 10);
    if (this.pointed) {
      context.fillStyle = colour("--text");
      context.fillRect(x(this.pointed.at), 0, 1, height);
    }
  }
}

function line(context, x, y, width) {
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x + width, y);
  context.stroke();
}

/** A line with gaps; unless `floor` is null, with a light area between the line and `floor`. */
function path(context, samples, name, x, y, ink, floor) {
  const runs = [];
  let last = -Infinity;
  for (const sample of samples) {
    if (sample[name] === null) continue;
    if (sample.at - last > GAP_S) runs.push([]);
    runs.at(-1).push([x(sample.at), y(sample[name])]);
    last = sample.at;
  }
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  for (const run of runs) {
    const curve = new Path2D();
    run.forEach(([px, py], index) => (index ? curve.lineTo(px, py) : curve.moveTo(px, py)));
    if (floor !== null) {
      const area = new Path2D(curve);
      area.lineTo(run.at(-1)[0], floor);
      area.lineTo(run[0][0], floor);
      context.globalAlpha = 0.12;
      context.fillStyle = ink;
      context.fill(area);
      context.globalAlpha = 1;
    }
    context.strokeStyle = ink;
    context.stroke(curve);
  }
}

function bars(context, samples, name, x, y, ink) {
  context.fillStyle = ink;
  for (const sample of samples) {
    if (sample[name] > 0) context.fillRect(x(sample.at) - 1, y(sample[name]), 2, y(0) - y(sample[name]));
  }
}

/** A round number above the value. */
function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 5, 7.5, 10].map((factor) => factor * power).find((top) => top >= value);
}
