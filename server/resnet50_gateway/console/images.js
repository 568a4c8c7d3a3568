/** The view of images: drop, categories, timing, nearest images. */

import { byId, element, show, svg, terms } from "./dom.js";
import { bytes, cosine, count, milliseconds, percent, shortDigest } from "./format.js";
import { ImageMemory } from "./memory.js";
import { bars, showError, timing } from "./parts.js";
import { imageSnippets, showSnippets } from "./snippets.js";
import { embedsOnly } from "./variants.js";

const CACHE = { CACHE_USE_HIT: "hit", CACHE_USE_SHARED: "shared with an equal request" };
const WARNINGS = { IMAGE_WARNING_TRUNCATED: "The image's data ended early; the rest is grey." };
/** Shown of a vector: one bar for as many numbers. */
const BARS = 128;

export class ImagesView {
  #memory = new ImageMemory();
  #context;
  #calls = new AbortController();
  /** A file that was refused for its token, which is sent again with another one. */
  #refused = null;

  /** @param {object} context See `console.js`. */
  constructor(context) {
    this.#context = context;
    this.options = byId("classify-options");
    this.drop = byId("drop");
    this.result = byId("result");
    this.options.addEventListener("submit", (event) => event.preventDefault());
    byId("file").addEventListener("change", ({ target }) => {
      this.#take([...target.files]);
      target.value = "";
    });
    this.drop.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.drop.toggleAttribute("data-over", true);
    });
    this.drop.addEventListener("dragleave", () => this.drop.removeAttribute("data-over"));
    // A file beside the target would replace the page.
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      this.drop.removeAttribute("data-over");
      if (this.drop.contains(event.target)) this.#take([...event.dataTransfer.files]);
    });
    addEventListener("paste", ({ clipboardData }) => {
      if (!byId("view-classify").hidden) this.#take([...clipboardData.files]);
    });
  }

  show() {
    if (this.#refused !== null && this.#refused.token !== this.#context.gateway.token)
      this.#take([this.#refused.file]);
  }

  hide() {}

  /** Classify files one after another; newer ones replace those that wait. */
  async #take(files) {
    if (files.length === 0) return;
    this.#calls.abort();
    this.#calls = new AbortController();
    this.#refused = null;
    const { signal } = this.#calls;
    for (const file of files) {
      this.#preview(file);
      await this.#send(file, signal);
      if (signal.aborted) return;
    }
  }

  async #send(file, signal) {
    const { gateway, variants, announce } = this.#context;
    const variant = this.options.elements.variant.value;
    const found = variants.find(variant);
    const embeds = found !== undefined && embedsOnly(found);
    const top_k = this.options.elements.top_k.value;
    const query = embeds ? { variant } : { variant, top_k };
    this.result.setAttribute("aria-busy", "true");
    let error = null;
    let image = null;
    const { token } = gateway;
    const began = performance.now();
    try {
      const answer = embeds
        ? await gateway.embed(file, query, signal)
        : await gateway.classify(file, { ...query, include_embedding: true }, signal);
      const roundTrip = performance.now() - began;
      const embedding = answer.embedding ?? answer.classification?.embedding;
      image = await this.#memory.add(file, answer, embedding, { query, roundTrip });
    } catch (failure) {
      error = failure;
    }
    if (signal.aborted) return;
    this.result.setAttribute("aria-busy", "false");
    if (error !== null) {
      const place = element("div", { class: "error", role: "alert" });
      showError(place, error, this.#context.askForToken);
      if (error.needsToken) this.#refused = { file, token };
      this.#context.reportFailure(error);
      show(this.result, place);
    } else {
      this.#showImage(image);
      const best = image.answer.classification?.categories?.[0];
      announce(best ? `${best.label}, ${percent(best.probability)}` : "Embedded");
    }
    showSnippets(byId("classify-call"), this.#snippets(file, query, embeds));
  }

  #snippets(file, query, embeds) {
    const method = embeds ? "embed" : "classify";
    return imageSnippets(method, file.name || "image.png", query, this.#context.gateway.token !== "");
  }

  #preview(file) {
    const preview = byId("preview");
    const missing = byId("no-preview");
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.onerror = () => {
      preview.hidden = true;
      missing.hidden = false;
      missing.textContent = `${file.name}: the browser has no preview`;
    };
    preview.alt = file.name || "Pasted image";
    preview.hidden = false;
    missing.hidden = true;
    preview.src = URL.createObjectURL(file);
    this.drop.toggleAttribute("data-filled", true);
  }

  #showImage(image) {
    const { file, answer } = image;
    const embedding = answer.embedding ?? answer.classification?.embedding;
    const outcome = answer.classification ? categories(answer.classification) : vector(embedding);
    const { timing: times = {}, variant = {}, imageWarnings = [] } = answer;
    show(
      this.result,
      outcome,
      imageWarnings.map((warning) => element("p", { class: "warning" }, WARNINGS[warning] ?? warning)),
      timing(times),
      terms("facts", [
        ["Variant", variant.name],
        ["Digest", element("code", { title: variant.digest }, shortDigest(variant.digest))],
        ["Batch", `${count(times.batchSize)} ${Number(times.batchSize) === 1 ? "image" : "images"}`],
        ["Cache", CACHE[times.cache]],
        ["Round trip", milliseconds(image.roundTrip)],
        ["File", `${file.name || "pasted"}, ${bytes(file.size)}`],
      ]),
    );
    this.#showNearest(image);
  }

  #showNearest(image) {
    const others = this.#memory.nearest(image);
    byId("seen").hidden = others.length === 0;
    byId("seen-hint").textContent =
      "The images of this page, by the cosine of their embeddings with this one. Embeddings of other weights are not comparable.";
    byId("thumbnails").replaceChildren(
      ...others.map(({ image: other, cosine: value }) =>
        element("li", {}, this.#thumbnail(other, value)),
      ),
    );
  }

  #thumbnail(image, value) {
    const name = image.file.name || "pasted";
    const best = image.answer.classification?.categories?.[0]?.label;
    const picture = image.thumbnail
      ? element("img", { src: image.thumbnail, alt: "" })
      : element("span", { class: "blank", "aria-hidden": "true" }, name.split(".").pop().toUpperCase());
    return element(
      "button",
      { type: "button", title: name, onclick: () => this.#again(image) },
      picture,
      element("span", { class: "name" }, best ?? name),
      element("span", { class: "number" }, value === null ? "other weights" : `cosine ${cosine(value)}`),
    );
  }

  /** Show an image and its answer once more. */
  #again(image) {
    this.#calls.abort();
    this.result.setAttribute("aria-busy", "false");
    this.#preview(image.file);
    this.#showImage(image);
    showSnippets(byId("classify-call"), this.#snippets(image.file, image.query, !image.answer.classification));
    byId("choose").scrollIntoView({ block: "center" });
  }
}

/** Make the best category and the bars of all. */
function categories({ categories: found = [] }) {
  if (found.length === 0)
    return element("p", { class: "empty" }, "No category is above its threshold.");
  return [
    element(
      "p",
      { class: "best" },
      element("strong", { id: "best" }, found[0].label),
      element("span", { class: "number" }, percent(found[0].probability)),
    ),
    element("ol", { class: "bars", "aria-label": "Categories" }, bars(found)),
  ];
}

/** Make a picture of a vector, of a variant without categories. */
function vector({ values, dimension, space }) {
  const group = Math.max(1, Math.ceil(values.length / BARS));
  const heights = [];
  for (let start = 0; start < values.length; start += group)
    heights.push(Math.max(...values.slice(start, start + group).map(Math.abs)));
  const most = Math.max(...heights, 1e-9);
  return [
    element("p", { class: "best" }, element("strong", { id: "best" }, `${count(dimension)} numbers`)),
    svg(
      "svg",
      {
        class: "vector",
        viewBox: `0 0 ${heights.length} 1`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `The largest of each ${group} numbers of the embedding`,
      },
      heights.map((height, index) =>
        svg("rect", { x: index, y: 1 - height / most, width: 0.75, height: height / most }),
      ),
    ),
    terms("facts", [["Space", element("code", {}, space)]]),
  ];
}
