/** The variants of the server, and the selects that name them. */

import { element } from "./dom.js";

export class Variants {
  #gateway;
  #listeners = [];
  list = [];

  constructor(gateway) {
    this.#gateway = gateway;
  }

  /** Call a function after each change of the list. */
  onChange(listener) {
    this.#listeners.push(listener);
  }

  /** Read the list again. */
  async refresh() {
    this.list = await this.#gateway.variants();
    this.#fillSelects();
    for (const listener of this.#listeners) listener(this.list);
  }

  /** Return the loaded variant of a name, "" for the default; undefined if there is none. */
  find(name) {
    return this.list.find((variant) =>
      name ? variant.name === name && isLoaded(variant) : variant.serverDefault,
    );
  }

  get default() {
    return this.find("");
  }

  #fillSelects() {
    const loaded = new Map(this.list.filter(isLoaded).map((variant) => [variant.name, variant]));
    const names = [...loaded.keys()];
    const option = (value, text) => element("option", { value }, text);
    const standard = this.default;
    const default_ = option("", standard ? `default (${label(standard)})` : "default");
    const others = [...loaded.values()].map((variant) => option(variant.name, label(variant)));
    for (const select of document.querySelectorAll("[data-variants]"))
      refill(select, [default_, ...others]);
    for (const select of document.querySelectorAll("[data-loaded]"))
      refill(select, names.map((name) => option(name, name)));
    // The candidate is another variant than the first.
    const [variant, candidate] = document.querySelectorAll("[data-loaded]");
    if (variant.value === candidate.value)
      candidate.value = names.find((name) => name !== variant.value) ?? "";
  }
}

/** Whether a variant has no categories. */
export function embedsOnly({ activation }) {
  return activation === "ACTIVATION_NONE";
}

const label = (variant) => (embedsOnly(variant) ? `${variant.name}, embeddings only` : variant.name);

/** Whether a variant answers requests. */
export function isLoaded({ state }) {
  return state === "VARIANT_STATE_READY" || state === "VARIANT_STATE_UNHEALTHY";
}

/** Replace the options of a select and keep its value, if it is among them. */
function refill(select, options) {
  const { value } = select;
  select.replaceChildren(...options.map((option) => option.cloneNode(true)));
  if (options.some((option) => option.value === value)) select.value = value;
}
