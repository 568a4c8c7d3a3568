package main

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// explanation has the google.rpc details of a status: which field, which reason, when to retry.
type explanation struct {
	code       codes.Code
	message    string
	field      string
	reason     string
	requestID  string
	retryAfter time.Duration
}

// explain returns the contents of a status: that of a call, a frame, or an image of a batch.
func explain(failed *status.Status) explanation {
	found := explanation{code: failed.Code(), message: failed.Message()}
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				found.field = violation.GetField()
			}
		case *errdetails.ErrorInfo:
			found.reason = detail.GetReason()
		case *errdetails.RequestInfo:
			found.requestID = detail.GetRequestId()
		case *errdetails.RetryInfo:
			delay := detail.GetRetryDelay()
			found.retryAfter = time.Duration(delay.GetSeconds())*time.Second + time.Duration(delay.GetNanos())
		}
	}
	return found
}
