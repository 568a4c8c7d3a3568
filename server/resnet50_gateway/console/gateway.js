/** Calls of the gateway that serves this page. */

/** Loading reads, builds and checks weights, which takes minutes on some devices. */
export const CHANGE_TIMEOUT_MS = 900_000;
const ROOT = new URL("../", document.baseURI);

/** A call that failed, with the words of the server. */
export class CallError extends Error {
  /**
   * @param {string} message
   * @param {{code?: string, field?: string, limit?: number|string, reason?: string, served?: string,
   *   requestId?: string, status?: number}} facts
   */
  constructor(message, facts = {}) {
    super(message);
    this.name = "CallError";
    Object.assign(this, facts);
  }

  /** Whether a token, or another one, may help. */
  get needsToken() {
    return this.code === "UNAUTHENTICATED" || this.code === "PERMISSION_DENIED";
  }
}

/** Return the error of an object of JSON: problem details, a frame's error, or Connect's. */
export function errorOf(content, status) {
  return new CallError(content.detail ?? content.message ?? content.title ?? `HTTP ${status}`, {
    status,
    code: String(content.code ?? content.title ?? `HTTP ${status}`).toUpperCase().replaceAll(" ", "_"),
    field: content.field,
    limit: content.limit,
    reason: content.reason,
    served: content.served,
    requestId: content.requestId,
  });
}

export class Gateway {
  /** Sent with each call; in memory only. */
  token = "";

  /** Classify an image file; see POST /v1/classify. */
  classify(file, query, signal) {
    return this.#send("v1/classify", query, file, signal);
  }

  /** Embed an image file; see POST /v1/embed. */
  embed(file, query, signal) {
    return this.#send("v1/embed", query, file, signal);
  }

  /** Return the variants of the server. */
  async variants() {
    return (await this.#fetch("v1/variants", {})).variants ?? [];
  }

  /** Call a method of resnet50.v1.VariantService with JSON. */
  administer(method, message) {
    return this.#fetch(`resnet50.v1.VariantService/${method}`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        "connect-protocol-version": "1",
        "connect-timeout-ms": String(CHANGE_TIMEOUT_MS),
      },
      body: JSON.stringify(message),
    });
  }

  /** Open a WebSocket for frames. */
  openStream(query) {
    const url = urlOf("v1/stream", query);
    url.protocol = url.protocol.replace("http", "ws");
    return new WebSocket(url);
  }

  /**
   * Yield the objects of GET /v1/live, one a second.
   * @param {AbortSignal} signal Ends it.
   */
  async *live(signal) {
    const response = await this.#open("v1/live", { signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events)
        if (event.startsWith("data:")) yield JSON.parse(event.slice(5));
    }
  }

  #send(path, query, file, signal) {
    const headers = { "content-type": file.type || "application/octet-stream" };
    return this.#fetch(urlOf(path, query), { method: "POST", body: file, headers, signal });
  }

  async #fetch(path, options) {
    return (await this.#open(path, options)).json();
  }

  /** Return a response that is a success. */
  async #open(path, options) {
    const headers = { ...options.headers };
    if (this.token) headers.authorization = `Bearer ${this.token}`;
    let response;
    try {
      response = await fetch(new URL(path, ROOT), { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new CallError("The gateway does not respond. Is it running?", { code: "UNAVAILABLE" });
    }
    if (response.ok) return response;
    let content = {};
    try {
      content = await response.json();
    } catch {
      // Of a proxy: the status is all there is.
    }
    throw errorOf(content, response.status);
  }
}

/** Return a URL of the gateway; empty values of the query are left out. */
export function urlOf(path, query = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query))
    if (value !== "" && value !== null && value !== undefined) url.searchParams.set(name, value);
  return url;
}
