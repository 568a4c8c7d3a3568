/** The view of variants: their state, load, unload, default, and traffic splits. */

import { byId, element, show, terms } from "./dom.js";
import { bytes, cosine, count, milliseconds, number, percent, seconds, shortDigest } from "./format.js";
import { showError } from "./parts.js";
import { changeSnippets, showSnippets } from "./snippets.js";
import { embedsOnly, isLoaded } from "./variants.js";

const POLL_MS = 3000;
const STATES = {
  VARIANT_STATE_READY: ["ready", "good"],
  VARIANT_STATE_LOADING: ["loading", "accent"],
  VARIANT_STATE_DRAINING: ["draining", ""],
  VARIANT_STATE_FAILED: ["failed", "bad"],
  VARIANT_STATE_UNHEALTHY: ["out of service", "bad"],
};

export class AdministrationView {
  #context;
  #timer = 0;
  #shown = false;
  #mayReadSplits = true;

  /** @param {object} context See `console.js`. */
  constructor(context) {
    this.#context = context;
    context.variants.onChange((list) => this.#showVariants(list));
    byId("refresh").addEventListener("click", () => this.#poll());
    byId("load-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const { name, replace } = event.target.elements;
      this.#load(name.value.trim(), replace.checked);
    });
    byId("split-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#setSplit(event.target.elements);
    });
  }

  show() {
    this.#shown = true;
    this.#mayReadSplits = true;
    this.#poll();
  }

  hide() {
    this.#shown = false;
    clearTimeout(this.#timer);
  }

  /** Read variants and splits now, and every few seconds while the view is shown. */
  async #poll() {
    try {
      await this.#context.variants.refresh();
      if (this.#mayReadSplits) await this.#readSplits();
    } catch (error) {
      this.#context.reportConnection(error);
    }
    clearTimeout(this.#timer);
    if (this.#shown) this.#timer = setTimeout(() => this.#poll(), POLL_MS);
  }

  async #readSplits() {
    try {
      const { reports = [] } = await this.#context.gateway.administer("ListTrafficSplits", {});
      keepFocus(() => show(byId("splits-list"), reports.map((report) => this.#split(report))));
    } catch (error) {
      // Until there is another token the answer is the same.
      this.#mayReadSplits = !error.needsToken && error.code !== "UNIMPLEMENTED";
      const text = error.needsToken ? "To see and change splits, enter an admin token." : error.message;
      show(byId("splits-list"), element("li", { class: "hint" }, text));
    }
  }

  #load(name, replace) {
    const message = replace ? { name, replace } : { name };
    this.#notice(`Loading ${name}: the weights are read, built, warmed up and checked.`);
    this.#change("LoadVariant", message, "load_variant", message, ({ evicted = [] }) =>
      evicted.length
        ? `${name} is loaded; ${evicted.join(", ")} made room for it.`
        : `${name} is loaded.`,
    );
  }

  async #unload(name) {
    const agreed = await this.#context.confirm(
      `Unload ${name}?`,
      "Requests in flight are completed; further ones for it are refused.",
      "Unload",
    );
    if (agreed)
      this.#change("UnloadVariant", { name }, "unload_variant", { name }, () => `${name} is unloaded.`);
  }

  #setDefault(name) {
    this.#change(
      "SetDefaultVariant",
      { name },
      "set_default_variant",
      { name },
      ({ previous }) => `${name} is the default${previous ? `, no longer ${previous}` : ""}.`,
    );
  }

  #setSplit({ variant, candidate, canary, shadow }) {
    const [canaryPercent, shadowPercent] = [Number(canary.value), Number(shadow.value)];
    const split = { variant: variant.value, candidate: candidate.value, canaryPercent, shadowPercent };
    const values = {
      variant: variant.value,
      candidate: candidate.value,
      canary_percent: canaryPercent,
      shadow_percent: shadowPercent,
    };
    this.#change("SetTrafficSplit", { split }, "set_traffic_split", values, () => "The split is set.");
  }

  async #endSplit(variant) {
    const agreed = await this.#context.confirm(
      `End the split of ${variant}?`,
      `${variant} serves all its requests again; the counts are lost.`,
      "End split",
    );
    if (agreed)
      this.#change(
        "DeleteTrafficSplit",
        { variant },
        "delete_traffic_split",
        { variant },
        () => `The split of ${variant} has ended.`,
      );
  }

  /** Make a change, show its outcome and the same call, and read the state again. */
  async #change(method, message, function_, values, told) {
    const { gateway, announce } = this.#context;
    showSnippets(
      byId("variants-call"),
      changeSnippets(method, message, function_, values, gateway.token !== ""),
    );
    showError(byId("variants-error"), null);
    try {
      const text = told(await gateway.administer(method, message));
      this.#notice(text);
      announce(text);
      this.#mayReadSplits = true;
    } catch (error) {
      this.#fail(error);
    }
    if (this.#shown) this.#poll();
  }

  #notice(text) {
    show(byId("variants-notice"), text);
  }

  #fail(error) {
    show(byId("variants-notice"));
    showError(byId("variants-error"), error, this.#context.askForToken);
  }

  #showVariants(list) {
    keepFocus(() => show(byId("variants-list"), list.map((variant) => this.#variant(variant))));
  }

  #variant(variant) {
    const [state, kind] = STATES[variant.state] ?? [variant.state, ""];
    const { latency, loading, publishedAccuracy: accuracy, quantization } = variant;
    const problem = variant.problem || variant.lastFailure;
    return element(
      "li",
      { class: "panel variant" },
      element(
        "div",
        { class: "head" },
        element("h2", {}, variant.name),
        element("span", { class: `tag ${kind}` }, state),
        variant.serverDefault ? element("span", { class: "tag accent" }, "default") : null,
        variant.trained === false && isLoaded(variant)
          ? element("span", { class: "tag" }, "random weights")
          : null,
        this.#actions(variant),
      ),
      variant.description ? element("p", { class: "hint" }, variant.description) : null,
      problem ? element("p", { class: "warning" }, problem) : null,
      loading
        ? element("p", { class: "hint" }, `${stageOf(loading)}, ${seconds(loading.elapsedS)}`)
        : null,
      terms("columns-of-facts", [
        ["Digest", variant.digest ? element("code", { title: variant.digest }, shortDigest(variant.digest)) : null],
        ["Engine", [variant.engine, variant.device, variant.precision].filter(Boolean).join(" · ")],
        ["Categories", embedsOnly(variant) ? "embeddings only" : count(variant.categoryCount)],
        ["Memory", Number(variant.memoryBytes) ? bytes(variant.memoryBytes) : null],
        ["In flight", count(variant.requests ?? 0)],
        ["A batch of b images", latency ? `${number(latency.alphaMs)} + ${number(latency.betaMs)} · b ms` : null],
        ["Published accuracy", accuracy ? `${number(accuracy.accAt1)} % ${accuracy.dataset}` : null],
        ["Agreement with float", quantization ? percent(quantization.top1Agreement) : null],
      ]),
    );
  }

  #actions({ name, serverDefault, state }) {
    if (!isLoaded({ state })) return null;
    const button = (text, action, call) =>
      element(
        "button",
        {
          type: "button",
          class: "small",
          "data-action": `${action}-${name}`,
          "aria-label": `${text}: ${name}`,
          onclick: call,
        },
        text,
      );
    return element(
      "div",
      { class: "actions" },
      serverDefault ? null : button("Make default", "default", () => this.#setDefault(name)),
      button("Reload", "reload", () => this.#load(name, true)),
      serverDefault ? null : button("Unload", "unload", () => this.#unload(name)),
    );
  }

  #split(report) {
    const { split, comparison, ended } = report;
    const side = ({ answered = 0, failed = 0 } = {}) =>
      `${count(answered)}${Number(failed) ? `, ${count(failed)} failed` : ""}`;
    const latency = ({ answered = 0, p50Ms, p99Ms } = {}) =>
      Number(answered) ? `${milliseconds(p50Ms)} / ${milliseconds(p99Ms)}` : null;
    return element(
      "li",
      { class: "split" },
      element(
        "div",
        { class: "head" },
        element("h3", {}, `${split.variant} → ${split.candidate}`),
        element("span", { class: "tag" }, `canary ${number(split.canaryPercent ?? 0)} %`),
        element("span", { class: "tag" }, `shadow ${number(split.shadowPercent ?? 0)} %`),
        ended ? element("span", { class: "tag bad" }, "ended") : null,
        element(
          "button",
          {
            type: "button",
            class: "small",
            "data-action": `end-${split.variant}`,
            "aria-label": `End the split of ${split.variant}`,
            onclick: () => this.#endSplit(split.variant),
          },
          "End split",
        ),
      ),
      ended ? element("p", { class: "warning" }, ended) : null,
      terms("columns-of-facts", [
        ["Agreement", comparison ? percent(comparison.top1Agreement ?? 0) : "no image compared yet"],
        ["Mean cosine", comparison ? cosine(comparison.embeddingCosine ?? 0) : null],
        ["Compared", comparison ? `${count(comparison.images)}, ${count(report.skipped ?? 0)} skipped` : null],
        ["Compute", comparison ? `${milliseconds(comparison.variantComputeMs)} → ${milliseconds(comparison.candidateComputeMs)}` : null],
        ["Variant answered", side(report.variantAnswers)],
        ["Variant p50 / p99", latency(report.variantAnswers)],
        ["Candidate answered", side(report.candidateAnswers)],
        ["Candidate p50 / p99", latency(report.candidateAnswers)],
        ["Set", `${seconds(report.elapsedS ?? 0)} ago`],
      ]),
    );
  }
}

/** Replace buttons, and focus the one that had the focus. */
function keepFocus(replace) {
  const focused = document.activeElement?.dataset?.action;
  replace();
  if (focused) document.querySelector(`[data-action="${CSS.escape(focused)}"]`)?.focus();
}

function stageOf({ stage = "" }) {
  return stage.replace("LOADING_STAGE_", "").toLowerCase().replaceAll("_", " ");
}
