// The websocket: it reconnects, and sends what is watched again after every reconnect.

const WAIT_MIN_MS = 250;
const WAIT_MAX_MS = 500; // Longer waits would show later than within a second that all is well again.

export class Feed {
  #socket = null;
  #watch = null;
  #wait = WAIT_MIN_MS;
  #timer = 0;

  /** `onMessage` gets every message as an object; `onState` gets "connecting", "open" or "lost". */
  constructor(url, onMessage, onState) {
    this.url = url;
    this.onMessage = onMessage;
    this.onState = onState;
    // After sleep, or when the network is back, there is no need to wait for the timer.
    addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => !document.hidden && this.#hurry());
    this.#connect();
  }

  watch(symbol, interval) {
    this.#watch = { symbol, interval };
    this.#say();
  }

  #connect() {
    this.onState("connecting");
    const socket = new WebSocket(this.url);
    this.#socket = socket;
    socket.onopen = () => {
      this.#wait = WAIT_MIN_MS;
      this.onState("open");
      this.#say();
    };
    socket.onmessage = (event) => this.onMessage(JSON.parse(event.data));
    socket.onclose = () => {
      this.onState("lost");
      // Jitter: pages that lost the same server should not all reconnect at the same moment.
      this.#timer = setTimeout(() => this.#connect(), this.#wait * (0.5 + Math.random()));
      this.#wait = Math.min(WAIT_MAX_MS, this.#wait * 2);
    };
  }

  #say() {
    if (this.#watch && this.#socket.readyState === WebSocket.OPEN) {
      this.#socket.send(JSON.stringify({ watch: this.#watch }));
    }
  }

  #hurry() {
    if (this.#socket.readyState === WebSocket.CLOSED) {
      clearTimeout(this.#timer);
      this.#connect();
    }
  }
}
