/** The view of figures: rates, latency, batches, queues and engines by variant, once a second. */

import { Chart, colourOf } from "./chart.js";
import { byId, element, show } from "./dom.js";
import { bytes, count, number, percent, seconds } from "./format.js";
import { CallError } from "./gateway.js";
import { showError } from "./parts.js";

const RETRY_MS = 2000;
const UNREACHABLE = new CallError("The gateway does not respond.", { code: "UNAVAILABLE" });

/** Title, format, options, and the values of a variant's metrics. */
const BY_VARIANT = [
  ["Images/s", number, { least: 1 }, (metrics) => [metrics.images_per_s]],
  ["Latency p50 / p99, ms", number, {}, ({ stages }) => pair(stages.total)],
  ["Images in a batch", number, { least: 1 }, (metrics) => [metrics.batch_mean]],
  ["Images in the queue", count, { least: 1 }, (metrics) => [metrics.queue_images]],
  ["Engine p50 / p99, ms", number, {}, ({ stages }) => pair(stages.compute)],
];

export class LiveView {
  #context;
  #events = null;
  #timer = 0;

  /** @param {object} context See `console.js`. */
  constructor(context) {
    this.#context = context;
    this.charts = BY_VARIANT.map(([title, format, options]) => new Chart(title, format, options));
    this.devices = new Chart("Devices busy", percent, {
      least: 1,
      shared: false,
      axis: percent,
    });
    byId("live-charts").append(
      ...[...this.charts, this.devices].map((chart) =>
        element("div", { class: "panel" }, chart.element),
      ),
    );
    this.#showTotal({});
  }

  show() {
    this.#listen();
  }

  hide() {
    clearTimeout(this.#timer);
    this.#events?.abort();
    this.#events = null;
  }

  async #listen() {
    this.hide();
    const events = new AbortController();
    this.#events = events;
    try {
      for await (const figures of this.#context.gateway.live(events.signal)) this.#take(figures);
      throw new CallError("The gateway has ended the figures.", { code: "UNAVAILABLE" });
    } catch (error) {
      if (events.signal.aborted) return;
      byId("live-state").textContent = "";
      const told = error instanceof CallError;
      showError(
        byId("live-error"),
        told ? error : UNREACHABLE,
        this.#context.askForToken,
      );
      this.#context.reportFailure(told ? error : UNREACHABLE);
      // A gateway without metrics, or one that wants a token, answers the same until then.
      if (!told || error.code === "UNAVAILABLE")
        this.#timer = setTimeout(() => this.#listen(), RETRY_MS);
    }
  }

  #take({ time, servers, total }) {
    const failures = servers.filter(({ failure }) => failure);
    showError(
      byId("live-error"),
      failures.length
        ? new CallError(failures.map(({ name, failure }) => `${name}: ${failure}`).join("; "), {
            code: "METRICS",
          })
        : null,
    );
    const answering = servers.length - failures.length;
    byId("live-state").textContent =
      servers.length === 1 && answering === 1
        ? `${servers[0].name}, up ${seconds(total?.uptime_s)}`
        : `${answering} of ${servers.length} servers`;
    if (answering === 0) this.#context.reportFailure(UNREACHABLE);
    this.#showTotal(total ?? {});
    const variants = (total?.variants ?? []).filter(({ loaded }) => loaded);
    BY_VARIANT.forEach(([, , , values], index) =>
      this.charts[index].add(
        time,
        Object.fromEntries(variants.map((metrics) => [metrics.name, values(metrics)])),
      ),
    );
    const busy = Object.entries(total?.busy ?? {}).map(([name, share]) => [name, [Math.min(1, share)]]);
    this.devices.add(time, Object.fromEntries(busy));
    // Without figures, the colours of the lines that are shown remain.
    if (total === null || total === undefined) return;
    byId("live-legend").replaceChildren(
      ...variants.map(({ name, engines }) =>
        element(
          "span",
          { class: colourOf(name) },
          `${name} `,
          element("span", { class: "hint engine" }, engines.join(", ")),
        ),
      ),
      element("span", { class: "hint plain" }, "dashed: 99th percentile"),
    );
  }

  #showTotal(total) {
    const refused = sum(total.refused_per_s);
    const rows = [
      ["Images/s", number(total.images_per_s)],
      ["Requests/s", number(total.requests_per_s)],
      ["Failed/s", number(total.failed_per_s), total.failed_per_s > 0],
      ["Rejected/s", number(refused), refused > 0],
      ["In flight", count(total.inside_requests)],
      ["Streams", count(total.open_streams)],
      ["Dropped/s", number(total.dropped_per_s)],
      ["Memory", bytes(total.memory_bytes)],
    ];
    show(
      byId("live-figures"),
      rows.map(([term, value, alarm]) =>
        element(
          "div",
          { "data-alarm": Boolean(alarm) },
          element("dt", {}, term),
          element("dd", {}, value),
        ),
      ),
    );
  }
}

const pair = (latency) => [latency?.p50_ms ?? null, latency?.p99_ms ?? null];
const sum = (rates) => (rates ? Object.values(rates).reduce((total, rate) => total + rate, 0) : null);
