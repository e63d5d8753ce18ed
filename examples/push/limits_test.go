package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
)

// newIdle is a service without a broker, which delivers nothing.
func newIdle(t *testing.T) *service {
	db, err := openDatabase(filepath.Join(t.TempDir(), "push.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.sql.Close() })
	return newService(db, testKey)
}

func (s *service) answer(token, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	s.api().ServeHTTP(w, r)
	return w
}

// What comes faster than it is delivered is refused, by number and by size, with Retry-After.
func TestTooManyPushesAreRefused(t *testing.T) {
	s := newIdle(t)
	short := make([]*dunlin.Message, maxWaiting+1)
	for i := range short {
		short[i] = &dunlin.Message{Topic: "groups/birds"}
	}
	long := make([]*dunlin.Message, 100)
	for i := range long {
		long[i] = &dunlin.Message{Topic: "groups/birds",
			Payload: bytes.Repeat([]byte("x"), maxWaiting/100*pushWeight)}
	}
	for name, list := range map[string][]*dunlin.Message{"short": short, "long": long} {
		if n, err := s.publish(t.Context(), list); n != 0 || !errors.Is(err, errBusy) {
			t.Errorf("%s pushes: %d were taken, %v", name, n, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.publish(gone, short[:1]); !errors.Is(err, context.Canceled) {
		t.Errorf("a push of somebody who has hung up ended with %v", err)
	}
	if n := s.waiting.Load(); n != 0 {
		t.Fatalf("%d pushes wait", n)
	}
	s.waiting.Store(maxWaiting)
	for _, body := range []string{`{"to":"groups/birds"}`, `[{"to":"groups/birds"}]`} {
		w := s.answer(testKey, "POST", "/v1/push", body)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" {
			t.Errorf("%s was answered with %d %v", body, w.Code, w.Header())
		}
	}
}

// Who makes many requests at once keeps nobody else from making one.
func TestRequestsOfAnAccountAreBounded(t *testing.T) {
	s := newIdle(t)
	token := map[string]string{}
	for _, name := range []string{"users/ann", "users/eve"} {
		if _, err := s.db.addAccount(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		x, err := s.db.issue(t.Context(), name, "", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		token[name] = x.Token
	}
	for range maxUserCalls {
		s.calls.add("users/eve", maxUserCalls)
	}
	for name, want := range map[string]int{"users/eve": 429, "users/ann": 200} {
		if w := s.answer(token[name], "GET", "/v1/me", ""); w.Code != want {
			t.Errorf("%s was answered with %d", name, w.Code)
		}
	}
	s.calls.remove("users/eve")
	if w := s.answer(token["users/eve"], "GET", "/v1/me", ""); w.Code != 200 {
		t.Errorf("later the answer was %d", w.Code)
	}
}

// A push with a collapse key takes the place of earlier ones when it is published, and not before:
// after a crash in between the earlier ones are delivered.
func TestCollapseTakesThePlaceOnlyWhenPublished(t *testing.T) {
	s := newIdle(t)
	ctx := t.Context()
	for want := range int64(3) {
		n, err := s.db.collapse(ctx, "users/ann", "weather", time.Hour)
		if err != nil || n != want+1 {
			t.Fatalf("the number is %d, %v", n, err)
		}
		if latest, err := s.db.latest(ctx, "users/ann/weather"); err != nil || latest != want {
			t.Fatalf("number %d is not published, and the latest is %d, %v", n, latest, err)
		}
		if err := s.db.supersede(ctx, "users/ann/weather", n); err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i < maxCollapse; i++ {
		key := strings.Repeat("k", 1+i%50) + strings.Repeat("l", 1+i/50)
		if _, err := s.db.collapse(ctx, "users/ann", key, time.Hour); err != nil {
			t.Fatalf("key %d: %v", i, err)
		}
	}
	if _, err := s.db.collapse(ctx, "users/ann", "one-more", time.Hour); !errors.Is(err, errTooMany) {
		t.Fatalf("one key more than %d: %v", maxCollapse, err)
	}
	if _, err := s.db.collapse(ctx, "users/ann", "weather", time.Hour); err != nil {
		t.Fatalf("a key that is there: %v", err)
	}
}
