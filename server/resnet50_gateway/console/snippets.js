/** The same call as a command of curl, and in Python with the SDK. */

import { element } from "./dom.js";
import { CHANGE_TIMEOUT_MS, urlOf } from "./gateway.js";

/** The port of gRPC is not known here; this is its default. */
const SERVER = `${location.hostname || "localhost"}:50051`;

const shell = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;
const python = (text) => JSON.stringify(String(text));

const header = (hasToken) => (hasToken ? ` \\\n  -H "Authorization: Bearer $RESNET50_TOKEN"` : "");
const client = (name, hasToken) =>
  `${name}(${python(SERVER)}${hasToken ? ', token=os.environ["RESNET50_TOKEN"]' : ""})`;
const imports = (hasToken) => (hasToken ? "import os\n\n" : "");

/** Return arguments of Python; those without a value are left out. */
function keywords(values) {
  return Object.entries(values)
    .filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .map(([name, value]) => {
      if (typeof value === "boolean") return `, ${name}=${value ? "True" : "False"}`;
      return `, ${name}=${typeof value === "number" ? value : python(value)}`;
    })
    .join("");
}

/** Snippets of an image that was classified or embedded. */
export function imageSnippets(method, fileName, query, hasToken) {
  const options = { variant: query.variant, top_k: query.top_k && Number(query.top_k) };
  const shown =
    method === "classify"
      ? "for category in answer.categories:\n        print(category.label, category.probability)"
      : "print(answer.space, answer.vector[:5])";
  return {
    curl: `curl ${shell(urlOf(`v1/${method}`, query))} \\\n  --data-binary @${shell(fileName)}${header(hasToken)}`,
    Python: `${imports(hasToken)}from resnet50_client import Client

with ${client("Client", hasToken)} as client:
    answer = client.${method}(${python(fileName)}${keywords(options)})
    ${shown}`,
  };
}

/** Snippet of a video that is classified frame by frame; curl has no WebSocket for it. */
export function videoSnippets(source, query, rate, hasToken) {
  const options = { delivery: query.delivery, variant: query.variant };
  return {
    Python: `${imports(hasToken)}from resnet50_client import Client, frames_from_video

with ${client("Client", hasToken)} as client:
    frames = frames_from_video(${source === null ? "0" : python(source)}, fps=${rate}${source === null ? "" : ", real_time=True"})
    with client.classify_stream(frames${keywords(options)}) as stream:
        for answer in stream:
            if not answer.dropped:
                print(answer.frame_id, answer.result.categories[0].label)`,
  };
}

/**
 * Snippets of a change of variants or splits.
 * @param {string} method Of resnet50.v1.VariantService.
 * @param {object} message Its request.
 * @param {string} function_ Of the SDK's AdminClient.
 * @param {object} values Its arguments; the first one is positional.
 */
export function changeSnippets(method, message, function_, values, hasToken) {
  const [first, ...rest] = Object.values(values).length ? Object.entries(values) : [];
  const positional = first === undefined ? "" : python(first[1]);
  return {
    curl: `curl ${shell(urlOf(`resnet50.v1.VariantService/${method}`))} \\
  -H 'Content-Type: application/json' -H 'Connect-Timeout-Ms: ${CHANGE_TIMEOUT_MS}' \\
  -d ${shell(JSON.stringify(message))}${header(hasToken)}`,
    Python: `${imports(hasToken)}from resnet50_client.admin import AdminClient

with ${client("AdminClient", hasToken)} as client:
    print(client.${function_}(${positional}${keywords(Object.fromEntries(rest))}))`,
  };
}

/**
 * Show snippets in a panel, one at a time, with a button that copies.
 * @param {HTMLElement} panel
 * @param {Object<string, string>} snippets By language.
 */
export function showSnippets(panel, snippets) {
  const languages = Object.keys(snippets);
  const chosen = languages.includes(panel.dataset.language) ? panel.dataset.language : languages[0];
  const code = element(
    "pre",
    { role: "tabpanel", tabindex: "0", "aria-label": `The call in ${chosen}` },
    snippets[chosen],
  );
  const tabs = languages.map((language) =>
    element(
      "button",
      {
        type: "button",
        role: "tab",
        class: "small",
        "aria-selected": String(language === chosen),
        tabindex: language === chosen ? "0" : "-1",
        onclick: () => choose(language),
        onkeydown: ({ key }) => {
          const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
          if (step) {
            const at = languages.indexOf(language) + step + languages.length;
            choose(languages[at % languages.length]);
          }
        },
      },
      language,
    ),
  );
  function choose(language) {
    panel.dataset.language = language;
    showSnippets(panel, snippets);
    panel.querySelector('[aria-selected="true"]').focus();
  }
  const copy = element("button", { type: "button", class: "small" }, "Copy");
  copy.addEventListener("click", async () => {
    copy.textContent = (await copied(snippets[chosen], code)) ? "Copied" : "Press Ctrl+C";
  });
  panel.replaceChildren(
    element(
      "div",
      { class: "bar" },
      element("h2", {}, "The same call"),
      element("div", { role: "tablist", "aria-label": "Language" }, tabs),
      copy,
    ),
    code,
  );
  panel.hidden = false;
}

/** Copy a text; without access to the clipboard (plaintext HTTP), select it. */
async function copied(text, code) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return false;
  }
}
