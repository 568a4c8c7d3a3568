/** Frames over a WebSocket: sent as JPEGs, answered one by one. */

import { CallError, errorOf } from "./gateway.js";

/** More frames than this are not sent before one is answered. */
const MOST_PENDING = 8;
const FRAME_ID_BYTES = 8;
/** Figures are of the answers within so many milliseconds. */
const WINDOW_MS = 2000;

export class FrameStream {
  #socket;
  #pending = new Map();
  #answers = [];
  #frames = 0;
  #ended = false;
  #finished = false;

  sent = 0;
  delivered = 0;
  dropped = 0;
  failed = 0;
  /** Frames that the browser did not send because too many were pending. */
  skipped = 0;

  /**
   * @param {WebSocket} socket
   * @param {string} token Sent first, unless it is empty.
   * @param {{onAnswer: (result: object, latencyMs: number) => void,
   *   onFrameError: (error: CallError) => void, onEnd: (error: CallError|null) => void}} listener
   */
  constructor(socket, token, listener) {
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.addEventListener("open", () => {
      if (token) socket.send(JSON.stringify({ token }));
    });
    socket.addEventListener("message", ({ data }) => this.#receive(JSON.parse(data), listener));
    socket.addEventListener("close", ({ code }) => {
      const broken = !this.#ended && code !== 1000;
      this.#end(
        broken ? new CallError("The stream was interrupted.", { code: "UNAVAILABLE" }) : null,
        listener,
      );
    });
  }

  /** Whether a frame would be sent. */
  get ready() {
    const open = this.#socket.readyState === WebSocket.OPEN && !this.#finished;
    return open && this.#pending.size < MOST_PENDING;
  }

  get pending() {
    return this.#pending.size;
  }

  /** Send a frame, a JPEG. */
  async send(blob) {
    const content = await blob.arrayBuffer();
    if (this.#finished || this.#socket.readyState !== WebSocket.OPEN) return;
    this.#frames += 1;
    const message = new Uint8Array(FRAME_ID_BYTES + content.byteLength);
    new DataView(message.buffer).setBigUint64(0, BigInt(this.#frames));
    message.set(new Uint8Array(content), FRAME_ID_BYTES);
    this.#pending.set(this.#frames, performance.now());
    this.sent += 1;
    this.#socket.send(message);
  }

  /** Send no more frames; the answers of those that were sent still arrive. */
  finish() {
    if (this.#finished) return;
    this.#finished = true;
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send('{"end": true}');
    else this.#socket.close();
  }

  /** Return the recent answers a second, and their median and 99th percentile latency. */
  figures() {
    const now = performance.now();
    this.#answers = this.#answers.filter(({ time }) => now - time < WINDOW_MS);
    const latencies = this.#answers.map(({ latency }) => latency).sort((a, b) => a - b);
    const at = (share) => latencies[Math.min(latencies.length - 1, Math.floor(share * latencies.length))];
    return {
      rate: this.#answers.length / (WINDOW_MS / 1000),
      p50: at(0.5) ?? null,
      p99: at(0.99) ?? null,
      server: this.#answers.at(-1)?.server ?? null,
    };
  }

  #receive(answer, listener) {
    if (answer.frameId === undefined) {
      this.#end(errorOf(answer.error ?? {}, 0), listener);
      return;
    }
    const id = Number(answer.frameId);
    const now = performance.now();
    const latency = now - (this.#pending.get(id) ?? now);
    this.#pending.delete(id);
    if (answer.dropped !== undefined) {
      this.dropped += 1;
    } else if (answer.error !== undefined) {
      this.failed += 1;
      listener.onFrameError(errorOf(answer.error, 0));
    } else {
      this.delivered += 1;
      const server = Number(answer.result.timing?.totalUs ?? 0) / 1000;
      this.#answers.push({ time: now, latency, server });
      listener.onAnswer(answer.result, latency);
    }
  }

  #end(error, listener) {
    if (this.#ended) return;
    this.#ended = true;
    this.#pending.clear();
    listener.onEnd(error);
  }
}
