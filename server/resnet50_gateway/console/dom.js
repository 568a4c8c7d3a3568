/** Elements: made by scripts, and those of the page. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element.
 * @param {string} name
 * @param {Object<string, unknown>} attributes Functions become listeners of "onEVENT"; true is an
 *   attribute without a value; false, null and undefined are left out.
 * @param {...(Node|string|number|null|undefined|Array)} children
 */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Make an element of SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** Return the element of the page with an id. */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no element ${id}`);
  return found;
}

/** Show or hide an element by its content: no children hide it. */
export function show(target, ...children) {
  const content = children.flat().filter((child) => child !== null && child !== undefined);
  target.replaceChildren(...content);
  target.hidden = content.length === 0;
}

/** Make a list of terms and descriptions, `dl`; rows without a value are left out. */
export function terms(className, rows) {
  return element("dl", { class: className }, termRows(rows));
}

/** Make the rows of a `dl`: [[term, description], …]. */
export function termRows(rows) {
  return rows
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value)));
}

function fill(target, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") target.addEventListener(name.slice(2), value);
    else if (value === true) target.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined)
      target.setAttribute(name, String(value));
  }
  target.append(
    ...children
      .flat(2)
      .filter((child) => child !== null && child !== undefined)
      .map((child) => (child instanceof Node ? child : String(child))),
  );
  return target;
}
