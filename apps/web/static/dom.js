// Small helpers. Text is inserted as text, never as HTML: answers and questions are untrusted.

export const byId = (id) => document.getElementById(id);

export function element(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter(Boolean));
  return made;
}

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** The time of day; with the date if it is not today. */
export function timeElement(iso) {
  const at = new Date(iso);
  const isToday = at.toDateString() === new Date().toDateString();
  return element("time", { text: (isToday ? "" : `${DAY.format(at)} `) + CLOCK.format(at), datetime: iso, title: at.toString() });
}

export const clock = (seconds) => CLOCK.format(new Date(1000 * seconds));

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A canvas's cleared 2D context in CSS pixels, and its size. Null while the canvas is not shown. */
export function cleared(canvas) {
  const style = getComputedStyle(canvas);
  const width = canvas.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const height = canvas.clientHeight;
  if (width < 2 || height < 2) return null;
  const ratio = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

let toastTimer = 0;
export function toast(text) {
  const shown = byId("toast");
  shown.textContent = text;
  shown.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (shown.hidden = true), 4500);
}
