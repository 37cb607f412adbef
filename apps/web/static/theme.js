// Light, dark, or the system's theme. Remembered in this browser.

import { byId } from "./dom.js";

const NAMES = { auto: "system setting", light: "light", dark: "dark" };
const KEY = "pvc-live-theme";

export class Theme {
  constructor(changed) {
    this.changed = changed;
    this.choice = stored() ?? "auto";
    byId("theme").addEventListener("click", () => this.next());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => changed());
    this.#apply();
  }

  next() {
    const order = ["auto", "light", "dark"];
    this.choice = order[(order.indexOf(this.choice) + 1) % order.length];
    try {
      localStorage.setItem(KEY, this.choice);
    } catch {
      // the browser stores nothing
    }
    this.#apply();
    this.changed();
  }

  #apply() {
    if (this.choice === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.choice;
    byId("theme").dataset.choice = this.choice;
    byId("theme").setAttribute("aria-label", `Theme: ${NAMES[this.choice]}`);
    byId("theme").title = `Theme: ${NAMES[this.choice]}`;
  }
}

function stored() {
  try {
    const found = localStorage.getItem(KEY);
    return found in NAMES ? found : null;
  } catch {
    return null;
  }
}
