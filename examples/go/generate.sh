#!/bin/sh
# Writes the stubs into resnet50/, from the protos of the contract and google/rpc/*.proto.
set -eu
protos=${PROTOS:-../../protos}
googleapis=${GOOGLEAPIS:?name the directory that has google/rpc/status.proto}
module=resnet50-go-example
files='resnet50/v1/image.proto resnet50/v1/result.proto resnet50/v1/inference.proto'
set -- --go_out=. --go-grpc_out=. --go_opt=module=$module --go-grpc_opt=module=$module
for file in $files; do
  set -- "$@" "--go_opt=M$file=$module/resnet50" "--go-grpc_opt=M$file=$module/resnet50"
done
# shellcheck disable=SC2086
protoc -I"$protos" -I"$googleapis" "$@" $files
