// The google.rpc details of an error: which field, which reason, when to retry.
import * as grpc from "@grpc/grpc-js";
import type { Status__Output } from "./generated/google/rpc/Status.js";
import { api } from "./connection.js";

const rpc = api.google.rpc;

export interface Explanation {
  code: string;
  message: string;
  field?: string;
  reason?: string;
  requestId?: string;
  retryAfterMs?: number;
}

/** Returns the contents of a google.rpc.Status: that of a call, a frame, or an image of a batch. */
export function explain(status: Status__Output): Explanation {
  const found: Explanation = { code: grpc.status[status.code] ?? "UNKNOWN", message: status.message };
  for (const { type_url, value } of status.details) {
    const content = value as Buffer;
    switch (type_url.split("/").pop()) {
      case "google.rpc.BadRequest":
        found.field = rpc.BadRequest.deserialize(content).fieldViolations[0]?.field;
        break;
      case "google.rpc.ErrorInfo":
        found.reason = rpc.ErrorInfo.deserialize(content).reason;
        break;
      case "google.rpc.RequestInfo":
        found.requestId = rpc.RequestInfo.deserialize(content).requestId;
        break;
      case "google.rpc.RetryInfo": {
        const delay = rpc.RetryInfo.deserialize(content).retryDelay;
        found.retryAfterMs = (delay?.seconds ?? 0) * 1000 + (delay?.nanos ?? 0) / 1e6;
      }
    }
  }
  return found;
}

/** Returns the explanation of an error of a call; errors that are not gRPC's are thrown again. */
export function explainError(error: unknown): Explanation {
  const failed = error as Partial<grpc.ServiceError>;
  if (failed.code === undefined || !(failed.metadata instanceof grpc.Metadata)) throw error;
  const [details] = failed.metadata.get("grpc-status-details-bin");
  if (details instanceof Buffer) return explain(rpc.Status.deserialize(details));
  return { code: grpc.status[failed.code], message: failed.details ?? "" };
}
