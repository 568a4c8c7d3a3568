package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

// Calls about images may be repeated: gRPC does so by itself while servers are unavailable. Before
// grpc-go 1.40 it needs the environment variable GRPC_GO_RETRY=on.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [
      {"service": "resnet50.v1.InferenceService", "method": "Classify"},
      {"service": "resnet50.v1.InferenceService", "method": "Embed"},
      {"service": "resnet50.v1.InferenceService", "method": "ClassifyBatch"},
      {"service": "resnet50.v1.InferenceService", "method": "EmbedBatch"}
    ],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.1s",
      "maxBackoff": "1s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// connect returns a connection; with TLS if ca names a file of trusted certificates.
func connect(address, ca string) (*grpc.ClientConn, error) {
	// In grpc-go 1.34 and later: grpc.WithTransportCredentials(insecure.NewCredentials()).
	security := grpc.WithInsecure()
	if ca != "" {
		credentials, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			return nil, err
		}
		security = grpc.WithTransportCredentials(credentials)
	}
	// In grpc-go 1.63 and later: grpc.NewClient.
	return grpc.Dial(address, security, grpc.WithDefaultServiceConfig(serviceConfig))
}

// withToken adds a token to the calls of a context.
func withToken(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}
