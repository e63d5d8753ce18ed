package webhook

import (
	"container/list"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

// Options are how questions are asked.
type Options struct {
	// URL is where they go. Required. It should be one with https: passwords go there.
	URL string
	// Client makes the requests. Nil: one that follows no redirects.
	Client *http.Client
	// Header is added to the requests, for instance Authorization. It must not be modified afterwards.
	Header http.Header
	// Secret signs the requests. Empty: they are not signed.
	Secret []byte
	// Timeout is how long an answer may take, the wait for its turn included. Zero: 5 s.
	Timeout time.Duration
	// MaxConcurrent bounds the requests under way. Zero: 64.
	MaxConcurrent int
	// AllowFor and DenyFor are how long answers that allow, and those that deny or abstain, are kept. Zero: 30 s and 5 s; negative: they are not.
	// So long, somebody whose rights were taken away may still have them.
	AllowFor, DenyFor time.Duration
	// MaxCached bounds the answers that are kept. Those that were not used for longest make room. Zero: 16,384.
	MaxCached int
	// BreakAfter is how many failures in a row open the circuit: for BreakFor nothing is asked, and everything refused that
	// no kept answer allows; then one question tries whether the server is back. Zero: 5 failures, 10 s.
	BreakAfter int
	BreakFor   time.Duration
	// Logger is told when the circuit opens and closes. Nil: slog.Default().
	Logger *slog.Logger
}

// An asker asks questions, equal ones once, and keeps the answers. It is what Authenticator and Authorizer share.
type asker struct {
	poster
	o       Options
	turns   *semaphore.Weighted
	flights singleflight.Group
	circuit circuit
	salt    []byte // of the keys in kept
	unable  packets.ReasonCode

	mu   sync.Mutex
	kept map[key]*list.Element // of *answer; guarded by mu
	used *list.List            // the same, the last used one first; guarded by mu
}

// A key stands for a question. It is a MAC, so that what is kept does not tell passwords.
type key [sha256.Size]byte

func newAsker(o Options, unable packets.ReasonCode) (*asker, error) {
	for _, d := range []struct {
		of  *time.Duration
		def time.Duration
	}{{&o.AllowFor, 30 * time.Second}, {&o.DenyFor, 5 * time.Second}, {&o.BreakFor, 10 * time.Second}} {
		if *d.of == 0 {
			*d.of = d.def
		}
	}
	for _, n := range []struct {
		of  *int
		def int
	}{{&o.MaxConcurrent, 64}, {&o.MaxCached, 16_384}, {&o.BreakAfter, 5}} {
		if *n.of <= 0 {
			*n.of = n.def
		}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	a := &asker{
		poster: poster{client: o.Client, url: o.URL, header: o.Header, secret: o.Secret, timeout: o.Timeout},
		o:      o,
		turns:  semaphore.NewWeighted(int64(o.MaxConcurrent)),
		salt:   make([]byte, sha256.Size),
		unable: unable,
		kept:   map[key]*list.Element{},
		used:   list.New(),
	}
	a.circuit = circuit{after: o.BreakAfter, wait: o.BreakFor, log: o.Logger.With("url", o.URL)}
	_, _ = rand.Read(a.salt) // never fails
	return a, a.check()
}

// An answer is one that made sense. It is immutable.
type answer struct {
	Result     string             `json:"result"`
	ReasonCode packets.ReasonCode `json:"reason_code"`
	Reason     string             `json:"reason"`
	Cache      *float64           `json:"cache_seconds"`
	grant

	key   key
	until time.Time // it is kept
	at    time.Time // it came
}

// ask returns the answer to a question. It blocks until there is one, at most for the time-out, or ctx ends. The error is a
// *packets.Error.
func (a *asker) ask(ctx context.Context, question any) (*answer, error) {
	body, err := json.Marshal(question)
	if err != nil {
		return nil, a.failed(err)
	}
	mac := hmac.New(sha256.New, a.salt)
	mac.Write(body)
	k := key(mac.Sum(nil))
	if x := a.lookup(k); x != nil {
		return x, nil
	}
	flight := a.flights.DoChan(string(k[:]), func() (any, error) { return a.fetch(k, body) }) // ends with the time-out
	select {
	case r := <-flight:
		if r.Err != nil {
			return nil, a.failed(r.Err)
		}
		return r.Val.(*answer), nil
	case <-ctx.Done():
		return nil, a.failed(ctx.Err())
	}
}

// failed makes the refusal of a question that has no answer.
func (a *asker) failed(err error) error {
	return &packets.Error{Code: a.unable, Reason: "no decision", Err: fmt.Errorf("webhook: %w", err)}
}

// decide makes the decision that an answer is. deny is the Reason Code of one that names none.
func (x *answer) decide(deny packets.ReasonCode) error {
	switch {
	case x.Result == "allow":
		return nil
	case x.Result == "abstain":
		return hooks.ErrAbstain
	case x.ReasonCode.Failed():
		deny = x.ReasonCode
	}
	return &packets.Error{Code: deny, Reason: x.Reason, Err: errors.New("webhook: the server denies it")}
}

// fetch asks the server and keeps the answer.
func (a *asker) fetch(k key, body []byte) (*answer, error) {
	if x := a.lookup(k); x != nil {
		return x, nil // of a flight that ended just before
	}
	if !a.circuit.enter() {
		return nil, errors.New("the circuit is open after failures")
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.timeout)
	defer cancel()
	x, err := a.request(ctx, body)
	a.circuit.leave(err)
	if err != nil {
		return nil, err
	}
	x.key = k
	a.keep(x)
	return x, nil
}

func (a *asker) request(ctx context.Context, body []byte) (*answer, error) {
	if err := a.turns.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("waiting for one of %d requests under way: %w", a.o.MaxConcurrent, err)
	}
	defer a.turns.Release(1)
	status, b, err := a.post(ctx, body, "")
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("status %d, not 200", status)
	}
	x := &answer{at: time.Now()}
	if err := json.Unmarshal(b, x); err != nil {
		return nil, fmt.Errorf("an answer that is not what it should be: %w", err)
	}
	switch {
	case x.Result != "allow" && x.Result != "deny" && x.Result != "abstain":
		return nil, fmt.Errorf("an answer whose result %q is none of allow, deny and abstain", x.Result)
	case x.ReasonCode != 0 && !x.ReasonCode.Failed():
		return nil, fmt.Errorf("an answer whose reason_code %d is not 128 or more", x.ReasonCode)
	}
	return x, x.grant.check()
}

// keep takes note of an answer for as long as it may.
func (a *asker) keep(x *answer) {
	ttl := a.o.DenyFor
	if x.Result == "allow" {
		ttl = a.o.AllowFor
	}
	if x.Cache != nil {
		ttl = seconds(*x.Cache)
	}
	if x.Expires > 0 {
		ttl = min(ttl, seconds(x.Expires)) // what it grants is over then
	}
	if ttl <= 0 {
		return
	}
	x.until = x.at.Add(ttl)
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.kept[x.key]; old != nil {
		a.used.Remove(old)
	}
	a.kept[x.key] = a.used.PushFront(x)
	for a.used.Len() > a.o.MaxCached {
		a.forget(a.used.Back())
	}
}

// forget removes an answer. The lock is held.
func (a *asker) forget(e *list.Element) { delete(a.kept, a.used.Remove(e).(*answer).key) }

// lookup returns a kept answer, nil if there is none.
func (a *asker) lookup(k key) *answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.kept[k]
	if e == nil {
		return nil
	}
	x := e.Value.(*answer)
	if !time.Now().Before(x.until) {
		a.forget(e)
		return nil
	}
	a.used.MoveToFront(e)
	return x
}

// A circuit stops questions to a server that does not answer.
type circuit struct {
	after int
	wait  time.Duration
	log   *slog.Logger

	mu      sync.Mutex
	failed  int       // in a row; guarded by mu
	until   time.Time // it is open, if failed is after or more; guarded by mu
	probing bool      // a question tries whether the server is back; guarded by mu
}

// enter says whether a question may be asked, which then has to leave.
func (c *circuit) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed < c.after {
		return true
	}
	if c.probing || time.Now().Before(c.until) {
		return false
	}
	c.probing = true
	return true
}

// leave takes note of how a question went.
func (c *circuit) leave(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		if c.failed >= c.after {
			c.log.Info("webhook: the server answers again")
		}
		c.failed, c.probing = 0, false
		return
	}
	c.failed++
	if c.failed == c.after {
		c.log.Warn("webhook: the server fails, everything is refused for a while", "for", c.wait, "err", err)
	}
	if c.failed >= c.after {
		c.until, c.probing = time.Now().Add(c.wait), false
	}
}
