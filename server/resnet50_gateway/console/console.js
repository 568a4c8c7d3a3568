/** The console: views by the address's hash, token, state of the server. */

import { AdministrationView } from "./administration.js";
import { byId } from "./dom.js";
import { Gateway } from "./gateway.js";
import { ImagesView } from "./images.js";
import { LiveView } from "./live.js";
import { showError } from "./parts.js";
import { Variants } from "./variants.js";
import { VideoView } from "./video.js";

const RETRY_MS = 3000;

const gateway = new Gateway();
const variants = new Variants(gateway);
const context = {
  gateway,
  variants,
  askForToken,
  confirm,
  announce,
  reportConnection,
  reportFailure,
};
const views = {
  classify: new ImagesView(context),
  video: new VideoView(context),
  live: new LiveView(context),
  variants: new AdministrationView(context),
};
let shown = "";
let retry = 0;
/** Number of reads of the variants; a later one replaces those before. */
let reads = 0;

/** Show the view that the address names. */
function navigate() {
  const name = location.hash.slice(1);
  const next = Object.hasOwn(views, name) ? name : "classify";
  if (next === shown) return;
  if (shown) views[shown].hide();
  for (const other of Object.keys(views)) byId(`view-${other}`).hidden = other !== next;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${next}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId(`${next}-title`).textContent} · resnet50 console`;
  if (shown) byId("main").focus({ preventScroll: true });
  shown = next;
  views[next].show();
}

/** Read the variants; retry until the server answers. */
async function connect() {
  clearTimeout(retry);
  reads += 1;
  const read = reads;
  try {
    await variants.refresh();
  } catch (error) {
    if (read !== reads) return;
    reportConnection(error);
    if (!error.needsToken) connectLater();
  }
}

function connectLater() {
  retry = setTimeout(connect, RETRY_MS);
}

/** Show that the variants cannot be read. */
function reportConnection(error) {
  showState(error.needsToken ? "warn" : "bad", error.needsToken ? "needs a token" : "unreachable");
  showError(byId("connection-error"), error, askForToken);
}

/** See whether the server answers at all, after a call that failed. */
function reportFailure(error) {
  if (error.code === "UNAVAILABLE") connect();
}

function showState(state, text) {
  byId("server-state").dataset.state = state;
  byId("server-state-text").textContent = text;
}

variants.onChange(() => {
  showError(byId("connection-error"), null);
  const standard = variants.default;
  if (standard === undefined) showState("warn", "loading");
  else if (standard.state === "VARIANT_STATE_READY") showState("good", "ready");
  else showState("bad", "out of service");
});

/** Tell a screen reader. */
function announce(text) {
  byId("announcer").textContent = text;
}

function askForToken() {
  const field = byId("token-form").elements.token;
  field.value = gateway.token;
  byId("token-dialog").showModal();
  field.focus();
}

function setToken(token) {
  gateway.token = token;
  byId("token-button").toggleAttribute("data-set", token !== "");
  byId("token-dialog").close();
  connect();
  views[shown].hide();
  views[shown].show();
}

/** Ask whether to do it; resolve to true or false. */
function confirm(title, text, action) {
  const dialog = byId("confirm-dialog");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = action;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

byId("token-button").addEventListener("click", askForToken);
byId("token-cancel").addEventListener("click", () => byId("token-dialog").close());
byId("token-forget").addEventListener("click", () => setToken(""));
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(event.target.elements.token.value.trim());
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
addEventListener("hashchange", navigate);
navigate();
connect();
