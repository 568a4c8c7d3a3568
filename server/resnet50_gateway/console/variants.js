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
    const names = [...new Set(this.list.filter(isLoaded).map(({ name }) => name))];
    const standard = this.default?.name;
    const default_ = element("option", { value: "" }, standard ? `default (${standard})` : "default");
    const others = names.map((name) => element("option", { value: name }, name));
    for (const select of document.querySelectorAll("[data-variants]"))
      refill(select, [default_, ...others]);
    for (const select of document.querySelectorAll("[data-loaded]")) refill(select, others);
    // The candidate is another variant than the first.
    const [variant, candidate] = document.querySelectorAll("[data-loaded]");
    if (variant.value === candidate.value)
      candidate.value = names.find((name) => name !== variant.value) ?? "";
  }
}

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
