// Classifies images with each kind of call.
//
//     node dist/main.js [--address HOST:PORT] [--ca FILE] [--token TOKEN] [--timeout SECONDS]
//                       classify|upload|stream FILE...
import { createReadStream, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { setTimeout as sleep } from "node:timers/promises";
import type * as grpc from "@grpc/grpc-js";
import type { Classification__Output } from "./generated/resnet50/v1/Classification.js";
import type { ClassifyResponse__Output } from "./generated/resnet50/v1/ClassifyResponse.js";
import type { ClassifyStreamResponse__Output } from "./generated/resnet50/v1/ClassifyStreamResponse.js";
import { connect, type Connection } from "./connection.js";
import { explain, explainError } from "./errors.js";

const OPTIONS = { topK: 1 };
const CHUNK_BYTES = 1 << 20;

type Callback = (error: grpc.ServiceError | null, response?: ClassifyResponse__Output) => void;

/** Returns the response of a call as a promise. */
function promised(call: (callback: Callback) => void): Promise<ClassifyResponse__Output> {
  return new Promise((resolve, reject) =>
    call((error, response) => (response ? resolve(response) : reject(error))),
  );
}

/** Classifies a file in one message. */
function classify({ client, metadata }: Connection, file: string, deadline: Date) {
  const request = { options: OPTIONS, image: { encoded: readFileSync(file) } };
  return promised((callback) => client.classify(request, metadata, { deadline }, callback));
}

/** Classifies a file in chunks, of any size up to the server's `max_image_bytes`. */
function upload({ client, metadata }: Connection, file: string, deadline: Date) {
  return promised((callback) => {
    const call = client.classifyUpload(metadata, { deadline }, callback);
    call.write({ options: { options: OPTIONS } });
    const chunks = createReadStream(file, { highWaterMark: CHUNK_BYTES });
    chunks.on("error", (error) => (call.cancel(), callback(error as grpc.ServiceError)));
    chunks.on("data", (chunk) => {
      // The server reads no faster than it computes: wait until the chunk is sent.
      if (!call.write({ chunk })) {
        chunks.pause();
        call.once("drain", () => chunks.resume());
      }
    });
    chunks.on("end", () => call.end());
  });
}

/** Repeats a call that the server refuses for now, after the time that it asks for. */
async function withRetries(
  call: (deadline: Date) => Promise<ClassifyResponse__Output>,
  deadline: Date,
): Promise<ClassifyResponse__Output> {
  for (;;) {
    try {
      return await call(deadline);
    } catch (error) {
      const { code, retryAfterMs } = explainError(error);
      const late = Date.now() + (retryAfterMs ?? 0) >= deadline.getTime();
      if (code !== "RESOURCE_EXHAUSTED" || retryAfterMs === undefined || late) throw error;
      console.log(`overloaded: retry after ${Math.round(retryAfterMs)} ms`);
      await sleep(retryAfterMs);
    }
  }
}

/** Classifies files as the frames of one stream; every frame is answered, in order. */
async function stream({ client, metadata }: Connection, files: string[], deadline: Date) {
  const call = client.classifyStream(metadata, { deadline });
  call.write({ config: { options: OPTIONS, delivery: "DELIVERY_ORDERED" } });
  const sending = (async () => {
    for (const [index, file] of files.entries()) {
      const frame = { frameId: index + 1, image: { encoded: readFileSync(file) } };
      if (!call.write({ frame })) await new Promise((resolve) => call.once("drain", resolve));
    }
    call.end();
  })();
  sending.catch(() => call.cancel());
  try {
    for await (const answer of call as AsyncIterable<ClassifyStreamResponse__Output>) {
      if (answer.outcome === "error" && answer.error) {
        // The frame failed alone: the stream continues.
        const { code, field, message } = explain(answer.error);
        console.log(`frame ${answer.frameId}: ${code} ${field}: ${message}`);
      } else if (answer.outcome === "classification") {
        console.log(`frame ${answer.frameId}: ${best(answer.classification)}`);
      }
    }
  } finally {
    await sending;
  }
}

function best(classification: Classification__Output | null | undefined): string {
  const [category] = classification?.categories ?? [];
  return category ? `${category.label} ${category.probability.toFixed(4)}` : "no category";
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      address: { type: "string", default: "127.0.0.1:50051" },
      ca: { type: "string" },
      token: { type: "string" },
      timeout: { type: "string", default: "30" },
    },
  });
  const [command, ...files] = positionals;
  const connection = connect(values.address, values);
  // The server schedules by it, and drops images whose deadline has passed.
  const deadline = new Date(Date.now() + Number(values.timeout) * 1000);
  try {
    if (command === "stream") {
      await stream(connection, files, deadline);
    } else if (command === "classify" || command === "upload") {
      const call = command === "upload" ? upload : classify;
      for (const file of files) {
        const response = await withRetries((due) => call(connection, file, due), deadline);
        console.log(`${command}: ${best(response.classification)}`);
      }
    } else {
      throw new Error(`command: is ${command}, must be classify, upload or stream`);
    }
  } catch (error) {
    const { code, message, field, reason, requestId } = explainError(error);
    console.log(`error: ${code}: ${message}`);
    console.log(`field: ${field}, reason: ${reason}, request ID: ${requestId}`);
    process.exitCode = 1;
  } finally {
    connection.client.close();
  }
}

await main();
