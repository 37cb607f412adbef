// The WebSocket: opened again when it is lost, and held for lost when nothing is heard for long.

const PAUSES_S = [0.5, 1, 2, 4, 5];
const SILENCE_S = 12; // the server says something every 4 s
const REASONS = {
  4401: "The token is missing or no longer valid. Open the address that pvc-live printed when it started.",
  4408: "This page sent too much that was refused.",
  4429: "As many viewers look as may. Trying again.",
  1001: "The session ended. Waiting for it to come back.",
};

export class Connection {
  /** on: {message(type, value), picture(blob), changed(state, reason)}; state is connecting, open or lost. */
  constructor(url, on) {
    this.url = url;
    this.on = on;
    this.attempt = 0;
    this.heardAt = 0;
    this.timer = 0;
    setInterval(() => this.#lookForSilence(), 2000);
    addEventListener("online", () => this.#again(0));
    document.addEventListener("visibilitychange", () => document.hidden || this.#lookForSilence());
    this.open();
  }

  open() {
    clearTimeout(this.timer);
    const socket = new WebSocket(this.url);
    this.socket = socket;
    this.heardAt = Date.now();
    socket.binaryType = "blob";
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.heardAt = Date.now();
      if (event.data instanceof Blob) return this.on.picture(event.data);
      const { type, value } = JSON.parse(event.data);
      if (type === "state") {
        this.attempt = 0;
        this.on.changed("open", "");
      }
      this.on.message(type, value);
    };
    socket.onclose = (event) => socket === this.socket && this.#lost(event.code);
  }

  /** False if there is nobody to hear it. */
  send(order) {
    if (this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(order instanceof ArrayBuffer || order instanceof Blob ? order : JSON.stringify(order));
    return true;
  }

  /** Bytes that have not left yet: a camera waits for them. */
  get backlog() {
    return this.socket.bufferedAmount;
  }

  #lost(code) {
    const reason = REASONS[code] ?? "pvc-live cannot be reached. It connects again by itself.";
    this.on.changed("lost", reason);
    if (code === 4401 || code === 4408) return; // trying again changes nothing
    this.#again(PAUSES_S[Math.min(this.attempt, PAUSES_S.length - 1)]);
    this.attempt += 1;
  }

  #again(seconds) {
    if (this.socket.readyState <= WebSocket.OPEN) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), 1000 * seconds);
  }

  #lookForSilence() {
    if (this.socket.readyState > WebSocket.OPEN || Date.now() - this.heardAt < 1000 * SILENCE_S) return;
    const socket = this.socket;
    this.socket = { readyState: WebSocket.CLOSED, bufferedAmount: 0 };
    socket.close();
    this.#lost(0);
  }
}
