// A connection to the server: protos, TLS, token, and retries that gRPC makes by itself.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType as Contract } from "./generated/inference.js";
import type { ProtoGrpcType as ErrorDetails } from "./generated/error_details.js";
import type { InferenceServiceClient } from "./generated/resnet50/v1/InferenceService.js";

// The options that `npm run types` generates the types for.
const definition = loadSync(["resnet50/v1/inference.proto", "google/rpc/error_details.proto"], {
  includeDirs: [fileURLToPath(new URL("../protos", import.meta.url))],
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
export const api = grpc.loadPackageDefinition(definition) as unknown as Contract & ErrorDetails;

// Calls about images may be repeated: gRPC does so by itself while servers are unavailable.
const SERVICE = "resnet50.v1.InferenceService";
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: ["Classify", "Embed", "ClassifyBatch", "EmbedBatch"].map((method) => ({
        service: SERVICE,
        method,
      })),
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "1s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};

export interface Connection {
  client: InferenceServiceClient;
  metadata: grpc.Metadata;
}

export function connect(address: string, options: { ca?: string; token?: string }): Connection {
  const credentials = options.ca
    ? grpc.credentials.createSsl(readFileSync(options.ca))
    : grpc.credentials.createInsecure();
  const metadata = new grpc.Metadata();
  if (options.token) metadata.set("authorization", `Bearer ${options.token}`);
  const client = new api.resnet50.v1.InferenceService(address, credentials, {
    "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  });
  return { client, metadata };
}
