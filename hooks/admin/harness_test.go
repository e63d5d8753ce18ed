package admin

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
)

// A bench is a broker, and a Handler that takes a role for a password.
type bench struct {
	t      *testing.T
	broker *mqtttest.Broker
	h      *Handler
	role   string // of the requests
}

// byRole takes the user "reader", "actor" or "nobody", whatever the password.
func byRole(r *http.Request) (Identity, error) {
	user, _, ok := r.BasicAuth()
	if !ok {
		return Identity{}, errors.New("no user")
	}
	roles := map[string]Role{"reader": RoleRead, "actor": RoleAct}
	return Identity{User: user, Role: roles[user]}, nil
}

func newBench(t *testing.T, edits ...func(*Options)) *bench {
	return benchOf(t, mqtttest.NewBroker(t), edits...)
}

// benchOf is newBench for a broker that is there.
func benchOf(t *testing.T, broker *mqtttest.Broker, edits ...func(*Options)) *bench {
	o := Options{Authorize: byRole, Logger: slog.New(slog.DiscardHandler)}
	for _, edit := range edits {
		edit(&o)
	}
	h := New(map[string]*dunlin.Broker{"main": broker.Broker()}, o)
	t.Cleanup(func() { h.Close() })
	return &bench{t: t, broker: broker, h: h, role: "actor"}
}

// request makes a request, as the page would.
func (b *bench) request(method, path, body string) *http.Request {
	r := httptest.NewRequest(method, "http://127.0.0.1:8080"+path, strings.NewReader(body))
	if b.role != "" {
		r.SetBasicAuth(b.role, "x")
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	return r
}

// do serves a request, and wants an answer with that status.
func (b *bench) do(r *http.Request, status int) string {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.h.ServeHTTP(w, r)
	text, err := io.ReadAll(w.Body)
	require.NoError(b.t, err)
	require.Equal(b.t, status, w.Code, "%s %s: %s", r.Method, r.URL, text)
	return string(text)
}

// get asks for a path below that of the broker, with a query of names and values.
func (b *bench) get(v any, path string, query ...string) {
	b.t.Helper()
	text := b.do(b.request("GET", at(path, query...), ""), 200)
	require.NoError(b.t, json.Unmarshal([]byte(text), v), text)
}

// refused asks for a path, and returns the error, which must have that status.
func (b *bench) refused(status int, path string, query ...string) errorText {
	b.t.Helper()
	return asError(b.t, b.do(b.request("GET", at(path, query...), ""), status))
}

// act does an action, and wants that many done.
func (b *bench) act(count int, name, body string) {
	b.t.Helper()
	text := b.do(b.request("POST", at(name), body), 200)
	var done doneView
	require.NoError(b.t, json.Unmarshal([]byte(text), &done))
	require.Equal(b.t, count, done.Count, text)
}

// actRefused does an action, and returns the error, which must have that status.
func (b *bench) actRefused(status int, name, body string) errorText {
	b.t.Helper()
	return asError(b.t, b.do(b.request("POST", at(name), body), status))
}

func asError(t *testing.T, text string) errorText {
	t.Helper()
	var e errorAnswer
	require.NoError(t, json.Unmarshal([]byte(text), &e), text)
	require.NotEmpty(t, e.Error.Code, text)
	require.NotEmpty(t, e.Error.Message, text)
	return e.Error
}

// at is a path below that of the broker.
func at(path string, query ...string) string {
	q := url.Values{}
	for i := 0; i < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	path = api + "/brokers/main/" + path
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return path
}

// quote is s as JSON.
func quote(s string) string {
	text, _ := json.Marshal(s) // a string always is
	return string(text)
}
