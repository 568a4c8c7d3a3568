// The stubs and the versions of gRPC and protobuf come from `go generate && go mod tidy`.
module resnet50-go-example

go 1.19
