// The live picture: draws the newest; one that arrives during decoding replaces a waiting one.

import { byId } from "./dom.js";

export class Picture {
  constructor() {
    this.canvas = byId("picture");
    this.next = null;
    this.busy = false;
    this.numDrawn = 0;
    byId("fullscreen").addEventListener("click", () => this.fullscreen());
  }

  show(blob) {
    this.next = blob;
    if (!this.busy) this.#draw();
  }

  fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else byId("frame").requestFullscreen?.().catch(() => {});
  }

  async #draw() {
    this.busy = true;
    while (this.next && !document.hidden) {
      const blob = this.next;
      this.next = null;
      try {
        const bitmap = await createImageBitmap(blob);
        const { canvas } = this;
        if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
          Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
        }
        canvas.getContext("2d", { alpha: false }).drawImage(bitmap, 0, 0);
        bitmap.close();
        this.numDrawn += 1;
        byId("empty").hidden = true;
      } catch {
        // skip a picture that cannot be decoded
      }
    }
    this.busy = false;
  }
}
