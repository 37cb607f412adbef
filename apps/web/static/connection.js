// The WebSocket: reopened when it is lost, and considered lost when the server is silent for too long.

const PAUSES_S = [0.5, 1, 2, 4, 5];
const SILENCE_S = 12; // the server sends at least a sign of life every 4 s
const REASONS = {
  4401: "The token is missing or no longer valid. Open the address that pvc-live printed when it started.",
  4408: "The server refused too many messages from this page. Reload the page to connect again.",
  4429: "The limit on viewers is reached. Trying again.",
  1001: "The session ended. Waiting for it to restart.",
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

  /** False if there is no connection. */
  send(order) {
    if (this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(order instanceof ArrayBuffer || order instanceof Blob ? order : JSON.stringify(order));
    return true;
  }

  /** Bytes not sent yet; the camera waits for them. */
  get backlog() {
    return this.socket.bufferedAmount;
  }

  #lost(code) {
    const reason = REASONS[code] ?? "Cannot reach pvc-live. Reconnecting automatically.";
    this.on.changed("lost", reason);
    if (code === 4401 || code === 4408) return; // trying again would not help
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
