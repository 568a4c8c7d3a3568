/** The view of video: webcam or file, live category, latency, delivered and dropped frames. */

import { Chart } from "./chart.js";
import { byId, show, termRows } from "./dom.js";
import { count, milliseconds, number, percent } from "./format.js";
import { CallError } from "./gateway.js";
import { bars, showError } from "./parts.js";
import { showSnippets, videoSnippets } from "./snippets.js";
import { FrameStream } from "./stream.js";

const JPEG_QUALITY = 0.85;
const FIGURES_MS = 500;
const CAMERA_ERRORS = {
  NotAllowedError: "The browser may not use the camera: allow it in the page's settings.",
  NotFoundError: "There is no camera.",
  NotReadableError: "Another program uses the camera.",
};

export class VideoView {
  #context;
  #stream = null;
  #camera = null;
  /** Name of the file that plays; null for the camera. */
  #name = null;
  /** Number of starts and stops; a start that waited for the camera meanwhile has no effect. */
  #attempt = 0;
  #frameError = "";
  #timer = 0;
  #nextFrame = 0;
  #canvas = document.createElement("canvas");

  /** @param {object} context See `console.js`. */
  constructor(context) {
    this.#context = context;
    this.options = byId("video-options");
    this.video = byId("video");
    this.chart = new Chart("Round trip p50 / p99, ms", number, { seconds: 30, shared: false });
    byId("video-chart").append(this.chart.element);
    this.options.addEventListener("submit", (event) => event.preventDefault());
    // The other options hold for the next frame.
    for (const option of ["variant", "delivery"])
      this.options.elements[option].addEventListener("change", () => {
        if (this.#stream !== null && !this.video.ended) this.#open();
      });
    byId("webcam").addEventListener("click", () => this.#startCamera());
    byId("video-file").addEventListener("change", ({ target }) => {
      const [file] = target.files;
      target.value = "";
      if (file) this.#startFile(file);
    });
    byId("stop").addEventListener("click", () => this.#stop("stopped"));
    this.video.addEventListener("ended", () => {
      // The answers of the last frames still arrive.
      if (this.#stream === null) return;
      byId("video-state").textContent = "waiting for the last answers";
      this.#stream.finish();
    });
    this.#showFigures();
  }

  show() {
    showError(byId("video-error"), null);
  }

  hide() {
    this.#stop(this.#stream === null ? "" : "stopped");
  }

  async #startCamera() {
    const attempt = this.#start();
    let camera;
    try {
      if (!navigator.mediaDevices)
        throw new Error("Browsers give pages the camera over HTTPS and on localhost only.");
      camera = await navigator.mediaDevices.getUserMedia({ video: { width: 1280 } });
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#fail(new CallError(CAMERA_ERRORS[error.name] ?? error.message, { code: "NO_CAMERA" }));
      return;
    }
    if (attempt !== this.#attempt) {
      stopTracks(camera);
      return;
    }
    this.#camera = camera;
    for (const track of camera.getTracks())
      track.addEventListener("ended", () => this.#stop("the camera has stopped"));
    this.video.srcObject = camera;
    this.#play(null, attempt);
  }

  #startFile(file) {
    const attempt = this.#start();
    this.video.src = URL.createObjectURL(file);
    this.#play(file.name, attempt);
  }

  /** Stop the video that is shown; return the number of the attempt to show another one. */
  #start() {
    this.#stop("");
    this.#frameError = "";
    showError(byId("video-error"), null);
    return this.#attempt;
  }

  /** Play and send frames; the name of a file, or null for the camera. */
  async #play(name, attempt) {
    try {
      await this.video.play();
    } catch {
      if (attempt !== this.#attempt) return;
      this.#stop("");
      this.#fail(
        new CallError(`${name ?? "camera"}: the browser cannot play it`, { code: "NO_VIDEO" }),
      );
      return;
    }
    if (attempt !== this.#attempt) return;
    this.#name = name;
    this.chart.clear();
    byId("video-empty").hidden = true;
    byId("stop").disabled = false;
    this.#timer = setInterval(() => this.#showFigures(), FIGURES_MS);
    this.#open();
  }

  /** Open a stream with the options; it replaces the one that is open. */
  #open() {
    const { gateway } = this.#context;
    const { variant, delivery, rate } = this.options.elements;
    this.#stream?.finish();
    const query = { delivery: delivery.value, variant: variant.value };
    const stream = new FrameStream(gateway.openStream(query), gateway.token, {
      onAnswer: (result) => {
        if (this.#stream === stream) this.#showAnswer(result);
      },
      onFrameError: (error) => {
        // Every frame may have the same one.
        if (error.message !== this.#frameError) showError(byId("video-error"), error);
        this.#frameError = error.message;
      },
      onEnd: (error) => {
        if (this.#stream !== stream) return;
        const reason = this.video.ended ? "the video has ended" : "the server has ended the stream";
        this.#stop(error === null ? reason : "");
        if (error !== null) this.#fail(error);
      },
    });
    this.#stream = stream;
    byId("video-state").textContent = "streaming";
    showSnippets(
      byId("video-call"),
      videoSnippets(this.#name, query, Number(rate.value), gateway.token !== ""),
    );
    this.#nextFrame = 0;
    this.#captureNext(stream);
  }

  /** Send the frames that the video shows, at most so many a second as the options say. */
  #captureNext(stream) {
    const { video } = this;
    const next = (video.requestVideoFrameCallback ?? requestAnimationFrame).bind(
      video.requestVideoFrameCallback ? video : window,
    );
    next(async (now) => {
      if (this.#stream !== stream) return;
      const period = 1000 / Number(this.options.elements.rate.value);
      if (now >= this.#nextFrame) {
        this.#nextFrame = Math.max(this.#nextFrame + period, now - period / 2);
        if (stream.ready) {
          const frame = await this.#frame();
          if (frame !== null && this.#stream === stream) await stream.send(frame);
        } else stream.skipped += 1;
      }
      this.#captureNext(stream);
    });
  }

  /** Return the frame that is shown as a JPEG, its shorter side scaled as the options say. */
  #frame() {
    const { videoWidth: width, videoHeight: height } = this.video;
    const scale = Math.min(1, Number(this.options.elements.side.value) / Math.min(width, height));
    this.#canvas.width = Math.round(width * scale);
    this.#canvas.height = Math.round(height * scale);
    this.#canvas
      .getContext("2d")
      .drawImage(this.video, 0, 0, this.#canvas.width, this.#canvas.height);
    return new Promise((resolve) => {
      this.#canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY);
    });
  }

  #showAnswer(result) {
    const categories = result.classification?.categories ?? [];
    byId("video-bars").replaceChildren(...bars(categories));
    byId("caption").hidden = categories.length === 0;
    if (categories.length > 0) {
      byId("caption-label").textContent = categories[0].label;
      byId("caption-probability").textContent = percent(categories[0].probability);
    }
  }

  #showFigures() {
    const stream = this.#stream;
    const figures = stream?.figures() ?? {};
    if (stream !== null)
      this.chart.add(performance.now() / 1000, { latency: [figures.p50, figures.p99] });
    show(
      byId("video-figures"),
      termRows([
        ["Answers/s", number(figures.rate)],
        ["Median", milliseconds(figures.p50)],
        ["On the server", milliseconds(figures.server)],
        ["Delivered", count(stream?.delivered)],
        ["Dropped", count(stream?.dropped)],
        ["Not sent", count(stream?.skipped)],
      ]),
    );
  }

  #fail(error) {
    byId("video-state").textContent = "";
    showError(byId("video-error"), error, this.#context.askForToken);
    this.#context.reportFailure(error);
  }

  #stop(reason) {
    this.#attempt += 1;
    clearInterval(this.#timer);
    this.#showFigures();
    this.#stream?.finish();
    this.#stream = null;
    stopTracks(this.#camera);
    this.#camera = null;
    this.video.pause();
    this.video.srcObject = null;
    if (this.video.src) {
      URL.revokeObjectURL(this.video.src);
      this.video.removeAttribute("src");
      this.video.load();
    }
    byId("stop").disabled = true;
    byId("video-state").textContent = reason;
    byId("video-empty").hidden = false;
    byId("caption").hidden = true;
  }
}

/** Switch a camera off. */
function stopTracks(camera) {
  for (const track of camera?.getTracks() ?? []) track.stop();
}
