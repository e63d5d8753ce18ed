package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is how a request is read and answered: JSON, errors, cursors.

// A problem is an error that a request is answered with.
type problem struct {
	status        int
	code, message string
	count         *int          // the count to confirm, if code is "count"
	retryAfter    time.Duration // when it may work; 0: nobody knows
}

func (p *problem) Error() string { return p.message }

// fail returns a problem. code is for programs, the message for people.
func fail(status int, code, format string, args ...any) error {
	return &problem{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

// asProblem says how err is answered.
func asProblem(err error) *problem {
	var p *problem
	var refused *packets.Error
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, dunlin.ErrBrokerClosed):
		return &problem{status: http.StatusServiceUnavailable, code: "closed",
			message: "the broker is closed"}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &problem{status: http.StatusServiceUnavailable, code: "interrupted",
			message: "the request has ended before all was done"}
	case errors.As(err, &refused):
		return &problem{status: http.StatusUnprocessableEntity, code: "refused",
			message: err.Error()}
	}
	return &problem{status: http.StatusBadRequest, code: "bad_request", message: err.Error()}
}

const jsonType = "application/json; charset=utf-8"

// asJSON returns v as a line of JSON, in which "<", ">" and "&" are escaped.
func asJSON(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fail(http.StatusInternalServerError, "internal", "the answer is no JSON")
	}
	return append(text, '\n'), nil
}

// answerJSON writes v.
func answerJSON(w http.ResponseWriter, status int, v any) {
	text, err := asJSON(v)
	if err != nil {
		answerProblem(w, err)
		return
	}
	write(w, status, jsonType, text)
}

// write writes an answer.
func write(w http.ResponseWriter, status int, kind string, text []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text) // who asked may be gone
}

// An errorAnswer is the JSON of a problem.
type errorAnswer struct {
	Error errorText `json:"error"`
}

type errorText struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Count   *int   `json:"count,omitempty"`
}

func answerProblem(w http.ResponseWriter, err error) {
	p := asProblem(err)
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(p.retryAfter/time.Second)))
	}
	answerJSON(w, p.status, errorAnswer{errorText{p.code, p.message, p.count}})
}

// readJSON decodes the body of r, which must be one JSON object with known fields.
func readJSON(r *http.Request, v any) error {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return fail(http.StatusUnsupportedMediaType, "content_type",
			"the body must be JSON, with Content-Type: application/json")
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err = d.Decode(v); err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		} else if err == nil {
			err = errors.New("there is more after the JSON object")
		}
	}
	var long *http.MaxBytesError
	if errors.As(err, &long) {
		return fail(http.StatusRequestEntityTooLarge, "too_large",
			"the body is longer than %d bytes", long.Limit)
	}
	return fail(http.StatusBadRequest, "bad_json", "the body is not what is expected: %v", err)
}
