/** Parts that several views show. */

import { element, show, terms } from "./dom.js";
import { milliseconds, percent, UNKNOWN } from "./format.js";

const STAGES = [
  ["decode", "decodeUs", "Decode"],
  ["queue", "queueUs", "Queue"],
  ["compute", "computeUs", "Compute"],
];

/** Make the bars of categories, as items of a list. */
export function bars(categories) {
  return categories.map(({ label, probability = 0 }) => {
    const bar = element("span");
    bar.style.width = `${100 * probability}%`;
    return element(
      "li",
      {},
      element("span", { class: "name", title: label }, label),
      element("span", { class: "number" }, percent(probability)),
      element("span", { class: "bar", "aria-hidden": "true" }, bar),
    );
  });
}

/** Make the bar of the server's stages, with a key. */
export function timing(content) {
  const total = Number(content.totalUs ?? 0);
  const parts = STAGES.map(([name, field, text]) => [name, Number(content[field] ?? 0), text]);
  const rest = total - parts.reduce((sum, [, duration]) => sum + duration, 0);
  parts.push(["other", Math.max(0, rest), "Other"]);
  return element(
    "div",
    { class: "timing" },
    element(
      "div",
      { class: "heading" },
      element("h2", {}, "Time on the server"),
      element("span", { class: "number" }, milliseconds(total / 1000)),
    ),
    element(
      "div",
      { class: "split-bar", "aria-hidden": "true" },
      parts
        .filter(([, duration]) => duration > 0)
        .map(([name, duration]) => {
          const part = element("span", { class: name });
          part.style.flexGrow = duration;
          return part;
        }),
    ),
    element(
      "div",
      { class: "key" },
      parts.map(([name, duration, text]) =>
        element(
          "span",
          { class: name },
          `${text} `,
          element("b", {}, total ? milliseconds(duration / 1000) : UNKNOWN),
        ),
      ),
    ),
  );
}

/**
 * Show an error in its place; null hides it.
 * @param {HTMLElement} place
 * @param {CallError|null} error
 * @param {() => void} [askForToken] For errors that a token may solve.
 */
export function showError(place, error, askForToken) {
  if (error === null) return show(place);
  const rows = [
    ["Field", error.field],
    ["Limit", error.limit],
    ["Reason", error.reason],
    ["Served", error.served],
    ["Request", error.requestId],
  ];
  place.classList.toggle("calm", error.needsToken === true);
  return show(
    place,
    element("strong", {}, error.code ?? "ERROR"),
    element("p", { class: "message" }, error.message),
    rows.some(([, value]) => value !== undefined) ? terms("", rows) : null,
    error.needsToken && askForToken
      ? element("button", { type: "button", class: "small", onclick: askForToken }, "Enter a token")
      : null,
  );
}
