/**
 * Calls of openapi-fetch with the types that openapi-typescript has generated from `/openapi.json`:
 * `make openapi-clients`. Prints a line of JSON: the outcome of each call.
 */
import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

const [url, token, path, base64] = process.argv.slice(2) as [string, string, string, string];
const image = new Blob([readFileSync(path)]);
const text = readFileSync(base64, "ascii");
const broken = new Blob(["no image"]);
const client = createClient<paths>({ baseUrl: url, headers: { authorization: `Bearer ${token}` } });
const anonymous = createClient<paths>({ baseUrl: url });

// A file's type is `string` in the generated types.
const file = (content: Blob) => content as unknown as string;
const binary = {
  headers: { "content-type": "application/octet-stream" },
  bodySerializer: (body: unknown) => body as BodyInit,
};
const asForm = (body: { image: string | string[] }) => {
  const form = new FormData();
  for (const one of [body.image].flat() as unknown as Blob[]) form.append("image", one, "photo.jpg");
  return form;
};

// Answers with a binary form as well are `string | …` in the generated types.
function must<T>(found: { data?: T; error?: unknown }): Exclude<T, string> {
  if (found.data === undefined) throw new Error(JSON.stringify(found.error));
  return found.data as Exclude<T, string>;
}

const form = must(
  await client.POST("/v1/classify", {
    params: { query: { top_k: 2, include_embedding: true } },
    body: { image: file(image) },
    bodySerializer: (body) => asForm(body as components["schemas"]["ImageForm"]),
  }),
);
const body = must(
  await client.POST("/v1/classify", {
    params: { header: { "x-priority": "bulk", "x-timeout-ms": 60000 } },
    body: file(image),
    ...binary,
  }),
);
const vector = must(
  await client.POST("/v1/embed", {
    params: { query: { l2_normalize: true, type: "float16" } },
    body: file(image),
    ...binary,
  }),
);
const bytes = must(
  await client.POST("/v1/embed", {
    body: file(image),
    bodySerializer: binary.bodySerializer,
    headers: { ...binary.headers, accept: "application/octet-stream" },
    parseAs: "arrayBuffer",
  }),
);
const three = { image: [file(image), file(broken), file(image)] };
const classified = must(
  await client.POST("/v1/classify:batch", {
    params: { query: { top_k: 1 } },
    body: three,
    bodySerializer: asForm,
  }),
);
const embedded = must(await client.POST("/v1/embed:batch", { body: three, bodySerializer: asForm }));
const listed = must(await client.GET("/v1/variants"));
const bad = await client.POST("/v1/classify", { body: file(broken), ...binary });
const unauthorized = await anonymous.POST("/v1/classify", { body: file(image), ...binary });
const missing = await client.POST("/v1/embed", {
  params: { query: { variant: "pets" } },
  body: file(image),
  ...binary,
});
const model = { model: "resnet50" };
const infer = (named: string) =>
  client.POST("/v2/models/{model}/infer", {
    params: { path: { model: named } },
    body: { inputs: [{ name: "IMAGE", shape: [1], datatype: "BYTES", data: [text] }] },
  });
const inferred = must(await infer("resnet50"));

console.log(
  JSON.stringify({
    form: form.classification?.categories.map(({ label }) => label),
    "form embedding": form.classification?.embedding?.values.length,
    body: body.classification?.categories.length,
    timing: (body.timing?.totalUs ?? 0) > 0,
    vector: vector.embedding?.values.length,
    bytes: bytes.byteLength,
    type: vector.embedding?.type,
    space: vector.embedding?.space,
    batch: classified.results.map(({ classification }) => classification !== undefined),
    "batch error": classified.results[1]?.error?.code,
    "embed batch": embedded.results.map(({ embedding }) => embedding !== undefined),
    variants: listed.variants.map(({ name, state }) => [name, state]),
    error: [bad.response.status, bad.error?.code, bad.error?.field],
    "no token": [unauthorized.error?.status, unauthorized.error?.reason],
    "no variant": [missing.error?.status, missing.error?.served],
    embeddings: must(
      await client.POST("/v1/embeddings", { body: { input: `data:image/jpeg;base64,${text}` } }),
    ).data[0]?.embedding.length,
    "embeddings error": (await client.POST("/v1/embeddings", { body: { input: "a text" } })).error
      ?.error.param,
    weaviate: must(await client.POST("/vectors", { body: { image: text } })).dim,
    "weaviate error": (await client.POST("/vectors", { body: { image: "-" } })).error?.error.slice(0, 5),
    infer: inferred.outputs.map(({ name }) => name),
    "infer error": (await infer("pets")).error?.error.slice(0, 10),
    oip: [
      must(await client.GET("/v2/health/ready")).ready,
      must(await client.GET("/v2/models/{model}", { params: { path: model } })).versions,
      must(await client.GET("/v2/models/{model}/config", { params: { path: model } })).platform !== "",
      must(await client.GET("/v2/models/stats")).model_stats.length,
      must(await client.POST("/v2/repository/index")).map(({ state }) => state),
    ],
  }),
);
