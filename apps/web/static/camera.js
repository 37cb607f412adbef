// This browser's camera: small JPEGs, sent one at a time and never faster than the connection can send.

import { byId, toast } from "./dom.js";

const FPS = 10;
const WIDTH = 640;
const BACKLOG = 64 * 1024;

export class OwnCamera {
  constructor(send, backlog) {
    this.send = send;
    this.backlog = backlog;
    this.limits = { bytes: 512 * 1024, side: 1920, fps: FPS };
    this.stream = null;
    byId("camera").addEventListener("click", () => (this.stream ? this.stop() : this.start()));
    if (!navigator.mediaDevices?.getUserMedia) {
      byId("camera").disabled = true;
      byId("camera-hint").textContent = "This browser allows the camera only on https:// pages and on localhost.";
    }
  }

  async start() {
    try {
      const video = { width: { ideal: WIDTH }, facingMode: "environment" };
      this.stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      toast(error.name === "NotAllowedError" ? "The browser denied access to the camera." : "No camera is available in this browser.");
      return;
    }
    this.stream.getVideoTracks()[0].addEventListener("ended", () => this.stop());
    if (!this.send({ do: "camera", on: true })) return this.#stopTracks();
    this.video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, srcObject: this.stream });
    await this.video.play();
    this.#label();
    byId("source-dialog").close();
    this.#loop();
  }

  /** Stop the camera; tell: also inform the server, unless it already knows. */
  stop(tell = true) {
    if (!this.stream) return;
    this.#stopTracks();
    if (tell) this.send({ do: "camera", on: false });
    this.#label();
  }

  /** The owner of the camera in use, from the server: you, other or nobody. */
  owner(owner) {
    if (owner === "you") this.isOwner = true;
    else if (this.stream && (this.isOwner || owner === "other")) {
      this.stop(false);
      if (owner === "nobody") toast("This browser's camera is no longer in use.");
    }
    if (owner !== "you") this.isOwner = false;
    byId("camera").disabled = owner === "other" || !navigator.mediaDevices?.getUserMedia;
  }

  async #loop() {
    const canvas = document.createElement("canvas");
    const stream = this.stream;
    while (this.stream === stream) {
      const started = performance.now();
      if (this.isOwner && this.video.videoWidth && this.backlog() < BACKLOG) {
        const scale = Math.min(1, WIDTH / this.video.videoWidth);
        canvas.width = Math.round(this.video.videoWidth * scale);
        canvas.height = Math.round(this.video.videoHeight * scale);
        canvas.getContext("2d", { alpha: false }).drawImage(this.video, 0, 0, canvas.width, canvas.height);
        const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.8));
        if (blob && blob.size <= this.limits.bytes && this.stream === stream) this.send(blob);
      }
      const period = 1000 / Math.min(FPS, this.limits.fps);
      await new Promise((done) => setTimeout(done, Math.max(0, period - (performance.now() - started))));
    }
  }

  #stopTracks() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = this.video = null;
  }

  #label() {
    byId("camera").textContent = this.stream ? "Stop this camera" : "Use this camera";
  }
}
