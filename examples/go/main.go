// Command resnet50-go-example classifies images with each kind of call:
//
//	resnet50-go-example [-address HOST:PORT] [-ca FILE] [-token TOKEN] [-timeout SECONDS] \
//	    classify|upload|stream FILE...
//
// `go generate` makes its stubs; GOOGLEAPIS names a directory that has google/rpc/status.proto.
package main

//go:generate sh generate.sh

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"resnet50-go-example/resnet50"
)

const chunkBytes = 1 << 20

var options = &resnet50.ClassifyOptions{TopK: 1}

func main() {
	address := flag.String("address", "127.0.0.1:50051", "`HOST:PORT` of the server")
	ca := flag.String("ca", "", "`FILE` of trusted certificates; plaintext without")
	token := flag.String("token", "", "`TOKEN` of the caller")
	timeout := flag.Float64("timeout", 30, "`SECONDS` for all files together")
	flag.Parse()
	if err := run(*address, *ca, *token, time.Duration(*timeout*float64(time.Second)), flag.Args()); err != nil {
		failed, isStatus := status.FromError(err)
		if !isStatus {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		found := explain(failed)
		fmt.Printf("error: %s: %s\n", found.code, found.message)
		fmt.Printf("field: %s, reason: %s, request ID: %s\n", found.field, found.reason, found.requestID)
		os.Exit(1)
	}
}

func run(address, ca, token string, timeout time.Duration, arguments []string) error {
	connection, err := connect(address, ca)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := resnet50.NewInferenceServiceClient(connection)
	// The server schedules by the deadline, and drops images whose deadline has passed.
	ctx, cancel := context.WithTimeout(withToken(context.Background(), token), timeout)
	defer cancel()
	if len(arguments) == 0 {
		return errors.New("command: is missing, must be classify, upload or stream")
	}
	command, files := arguments[0], arguments[1:]
	switch command {
	case "stream":
		return stream(ctx, client, files)
	case "classify", "upload":
		call := classify
		if command == "upload" {
			call = upload
		}
		for _, file := range files {
			response, err := withRetries(ctx, func() (*resnet50.ClassifyResponse, error) {
				return call(ctx, client, file)
			})
			if err != nil {
				return err
			}
			fmt.Printf("%s: %s\n", command, best(response.GetClassification()))
		}
		return nil
	}
	return fmt.Errorf("command: is %q, must be classify, upload or stream", command)
}

// classify classifies a file in one message.
func classify(
	ctx context.Context, client resnet50.InferenceServiceClient, file string,
) (*resnet50.ClassifyResponse, error) {
	encoded, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	image := &resnet50.Image{Source: &resnet50.Image_Encoded{Encoded: encoded}}
	return client.Classify(ctx, &resnet50.ClassifyRequest{Options: options, Image: image})
}

// upload classifies a file in chunks, of any size up to the server's max_image_bytes.
func upload(
	ctx context.Context, client resnet50.InferenceServiceClient, file string,
) (*resnet50.ClassifyResponse, error) {
	content, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	ctx, cancel := context.WithCancel(ctx) // ends the call if the file cannot be read
	defer cancel()
	call, err := client.ClassifyUpload(ctx)
	if err != nil {
		return nil, err
	}
	first := &resnet50.ClassifyUploadRequest_Options{
		Options: &resnet50.ClassifyUploadOptions{Options: options},
	}
	err = call.Send(&resnet50.ClassifyUploadRequest{Part: first})
	for chunk := make([]byte, chunkBytes); err == nil; {
		length, failed := content.Read(chunk)
		if length > 0 {
			part := &resnet50.ClassifyUploadRequest_Chunk{Chunk: chunk[:length]}
			err = call.Send(&resnet50.ClassifyUploadRequest{Part: part})
		}
		if failed == io.EOF {
			break
		}
		if failed != nil {
			return nil, failed
		}
	}
	if err != nil && err != io.EOF { // EOF: the server has ended the call, CloseAndRecv says why
		return nil, err
	}
	return call.CloseAndRecv()
}

// stream classifies files as the frames of one stream; every frame is answered, in order.
func stream(ctx context.Context, client resnet50.InferenceServiceClient, files []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, err := client.ClassifyStream(ctx)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		err := send(call, files)
		if err != nil {
			cancel()
		}
		sent <- err
	}()
	for {
		answer, err := call.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if failed := <-sent; failed != nil && failed != io.EOF { // EOF: Recv has the reason
				return failed
			}
			return err
		}
		switch outcome := answer.GetOutcome().(type) {
		case *resnet50.ClassifyStreamResponse_Error: // the frame failed alone: the stream continues
			found := explain(status.FromProto(outcome.Error))
			fmt.Printf("frame %d: %s %s: %s\n", answer.GetFrameId(), found.code, found.field, found.message)
		case *resnet50.ClassifyStreamResponse_Classification:
			fmt.Printf("frame %d: %s\n", answer.GetFrameId(), best(outcome.Classification))
		}
	}
}

// send sends the configuration of a stream, then its frames; it waits while the server takes none.
func send(call resnet50.InferenceService_ClassifyStreamClient, files []string) error {
	config := &resnet50.ClassifyStreamRequest_Config{Config: &resnet50.ClassifyStreamConfig{
		Options:  options,
		Delivery: resnet50.Delivery_DELIVERY_ORDERED,
	}}
	if err := call.Send(&resnet50.ClassifyStreamRequest{Part: config}); err != nil {
		return err
	}
	for index, file := range files {
		encoded, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		frame := &resnet50.ClassifyStreamRequest_Frame{Frame: &resnet50.Frame{
			FrameId: uint64(index + 1),
			Image:   &resnet50.Image{Source: &resnet50.Image_Encoded{Encoded: encoded}},
		}}
		if err := call.Send(&resnet50.ClassifyStreamRequest{Part: frame}); err != nil {
			return err
		}
	}
	return call.CloseSend()
}

// withRetries repeats a call that the server refuses for now, after the time that it asks for.
func withRetries(
	ctx context.Context, call func() (*resnet50.ClassifyResponse, error),
) (*resnet50.ClassifyResponse, error) {
	for {
		response, err := call()
		failed, isStatus := status.FromError(err)
		if err == nil || !isStatus || failed.Code() != codes.ResourceExhausted {
			return response, err
		}
		delay := explain(failed).retryAfter
		if deadline, _ := ctx.Deadline(); delay == 0 || time.Now().Add(delay).After(deadline) {
			return nil, err
		}
		fmt.Printf("overloaded: retry after %d ms\n", delay.Milliseconds())
		time.Sleep(delay)
	}
}

func best(classification *resnet50.Classification) string {
	for _, category := range classification.GetCategories() {
		return fmt.Sprintf("%s %.4f", category.GetLabel(), category.GetProbability())
	}
	return "no category"
}
