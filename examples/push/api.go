package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	maxBody       = 1 << 20 // bytes of a request
	bodyTimeout   = 30 * time.Second
	maxCalls      = 1000 // requests of the backend at once
	maxUserCalls  = 8    // and of each account
	defaultTTL    = 7 * 24 * time.Hour
	maxTTL        = 30 * 24 * time.Hour
	defaultLife   = 90 * 24 * time.Hour // of a session
	maxLife       = 400 * 24 * time.Hour
	maxLabelBytes = 100
)

// A caller is who makes a request: the backend, which has the key, or a client, which has a token.
type caller byte

const (
	anybody caller = iota
	backend
	client
	both
)

// A call is a request under way.
type call struct {
	*service
	*http.Request
	session session // empty for the backend
}

// A route is a method and a path, and what they do. The answer is written as JSON, nil as nothing.
type route struct {
	pattern string
	who     caller
	do      func(c *call) (answer any, err error)
}

var routes = []route{
	{"PUT /v1/users/{name}", backend, putAccount},
	{"GET /v1/users/{name}", backend, getAccount},
	{"DELETE /v1/users/{name}", backend, deleteAccount},
	{"POST /v1/users/{name}/sessions", backend, postSession},
	{"PUT /v1/devices/{name}", backend, putAccount},
	{"GET /v1/devices/{name}", backend, getAccount},
	{"DELETE /v1/devices/{name}", backend, deleteAccount},
	{"POST /v1/devices/{name}/sessions", backend, postSession},
	{"PUT /v1/devices/{name}/owners/{user}", backend, join},
	{"DELETE /v1/devices/{name}/owners/{user}", backend, leave},
	{"GET /v1/groups/{name}", backend, getGroup},
	{"PUT /v1/groups/{name}/members/{user}", backend, join},
	{"DELETE /v1/groups/{name}/members/{user}", backend, leave},
	{"DELETE /v1/sessions/{id}", backend, deleteSession},
	{"POST /v1/push", both, postPush},
	{"GET /v1/push/{id}", backend, getPush},
	{"GET /v1/me", client, getMe},
	{"POST /v1/me/refresh", client, refresh},
	{"DELETE /v1/me/session", client, signOut},
	{"GET /v1/openapi.json", anybody, getOpenAPI},
}

// api serves the routes.
func (s *service) api() http.Handler {
	mux := http.NewServeMux()
	for _, x := range routes {
		mux.HandleFunc(x.pattern, func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			answer, err := (&call{service: s, Request: r}).serve(&x)
			reply(w, answer, err)
		})
	}
	mux.HandleFunc("/v1/", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, nil, fail(http.StatusNotFound, "no such path or method; see /v1/openapi.json"))
	})
	return mux
}

func (c *call) serve(x *route) (answer any, err error) {
	if x.who == anybody {
		return x.do(c)
	}
	if err := c.identify(x.who); err != nil {
		return nil, err
	}
	most := maxUserCalls
	if c.session.Account == "" {
		most = maxCalls
	}
	if !c.calls.add(c.session.Account, most) {
		return nil, fail(http.StatusTooManyRequests, "%d requests are under way", most)
	}
	defer c.calls.remove(c.session.Account)
	for _, part := range []string{"name", "user"} {
		if name := c.PathValue(part); !validName(name) && strings.Contains(x.pattern, "{"+part+"}") {
			return nil, fail(http.StatusBadRequest, "%.80q is not a name: 1 to 64 bytes of "+
				"letters, digits, and . _ - @", name)
		}
	}
	return x.do(c)
}

// identify finds out who calls, and refuses whoever may not.
func (c *call) identify(who caller) (err error) {
	token, ok := strings.CutPrefix(c.Header.Get("Authorization"), "Bearer ")
	switch isBackend := c.isKey(token); {
	case !ok:
		return fail(http.StatusUnauthorized, "expected the header Authorization: Bearer TOKEN")
	case !isBackend:
		if c.session, err = c.db.session(c.Context(), token); err == nil && who == backend {
			err = fail(http.StatusForbidden, "this is for the backend")
		}
	case who == client:
		err = fail(http.StatusForbidden, "this is for clients")
	}
	return err
}

// validName says whether a text can be the name of a user, a device, a group, or a collapse key.
func validName(name string) bool {
	letters := false
	for _, r := range name {
		letter := r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r))
		if !letter && !strings.ContainsRune("._-@", r) {
			return false
		}
		letters = letters || letter
	}
	return letters && len(name) <= 64
}

// text reads the body of a request.
func (c *call) text() ([]byte, error) {
	text, err := io.ReadAll(c.Body)
	if err == nil && !utf8.Valid(text) {
		err = fail(http.StatusBadRequest, "the body is not UTF-8")
	}
	return text, err
}

// strict decodes JSON that is one value with known fields.
func strict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fail(http.StatusBadRequest, "the body is not the JSON that is expected: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fail(http.StatusBadRequest, "the body has something behind the JSON value")
	}
	return nil
}

// A failure is an error for the caller.
type failure struct {
	status int
	text   string
}

func (f *failure) Error() string { return f.text }

func fail(status int, format string, args ...any) error {
	return &failure{status, fmt.Sprintf(format, args...)}
}

// created is an answer with status 201.
type created struct{ any }

// reply writes an answer or an error.
func reply(w http.ResponseWriter, answer any, err error) {
	status, h := http.StatusOK, w.Header()
	if x, ok := answer.(created); ok {
		status, answer = http.StatusCreated, x.any
	}
	if err != nil {
		status, answer = statusOf(err), map[string]string{"error": err.Error()}
	}
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", "1")
	}
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer)
}

// statuses of Reason Codes; the others have 503.
var statuses = map[packets.ReasonCode]int{
	packets.NotAuthorized:        http.StatusForbidden,
	packets.Banned:               http.StatusForbidden,
	packets.QuotaExceeded:        http.StatusTooManyRequests,
	packets.MessageRateTooHigh:   http.StatusTooManyRequests,
	packets.TopicNameInvalid:     http.StatusBadRequest,
	packets.MalformedPacket:      http.StatusBadRequest,
	packets.ProtocolError:        http.StatusBadRequest,
	packets.PayloadFormatInvalid: http.StatusBadRequest,
	packets.PacketTooLarge:       http.StatusRequestEntityTooLarge,
}

func statusOf(err error) int {
	status := 0
	if f, ok := errors.AsType[*failure](err); ok {
		status = f.status
	} else if e, ok := errors.AsType[*packets.Error](err); ok {
		status = statuses[e.Code]
	} else if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		status = http.StatusRequestEntityTooLarge
	}
	switch {
	case status != 0:
		return status
	case errors.Is(err, errNoTicket):
		return http.StatusUnauthorized
	case errors.Is(err, errUnknown):
		return http.StatusNotFound
	case errors.Is(err, errTooMany):
		return http.StatusConflict
	}
	return http.StatusServiceUnavailable
}
