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
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/turns"
	"github.com/dunlin-mqtt/dunlin/internal/safelog"
	"github.com/dunlin-mqtt/dunlin/packets"
	"golang.org/x/sync/singleflight"
)

// Options configure the questions to a server. A negative number or duration means the default,
// except for AllowFor and DenyFor.
type Options struct {
	// URL is the address of the server. Required. Use https: the questions contain passwords.
	URL string
	// Client makes the requests. Nil: one that follows no redirects.
	Client *http.Client
	// Header is added to the requests, for instance Authorization. It must not be modified
	// afterwards.
	Header http.Header
	// Secret signs the requests. Empty: they are not signed.
	Secret []byte
	// Timeout bounds the time of a request. Before the request, a question waits for its turn, at
	// most as long again. Zero: 5 s.
	Timeout time.Duration
	// MaxConcurrent bounds the requests in progress. Zero: 64. One peer has at most three quarters
	// of them. For a CONNECT, a peer is an address (see hooks.Client.Network), together with the
	// User Name if it was accepted from there before. Otherwise a peer is the verified name.
	MaxConcurrent int
	// MaxWaiting bounds the questions that wait for their turn, in bytes. Peers take turns. When
	// there are too many questions, the peer with the most loses its last ones; these are refused.
	// Zero: 8 MiB.
	MaxWaiting int
	// AllowFor is how long an answer that allows is cached. DenyFor is the same for an answer that
	// denies or abstains. A client whose rights were taken away may keep them for this time. Zero:
	// 30 s and 5 s; negative: not cached.
	AllowFor, DenyFor time.Duration
	// MaxCached and MaxCachedBytes bound the cached answers. The least recently used answers make
	// room; a peer with more than an eighth makes room for itself. Zero: 16,384 answers, 16 MiB.
	MaxCached, MaxCachedBytes int
	// BreakAfter is how many failures in a row open the circuit. For BreakFor the server is then
	// not asked, and everything is refused unless a cached answer allows it. After that, one
	// question tries whether the server works again. Questions about one peer open the circuit only
	// for this peer, unless the server cannot be reached at all: the server may fail because of
	// these questions. A question that waited in vain for its turn is not a failure of the server.
	// Zero: 5 failures, 10 s.
	BreakAfter int
	BreakFor   time.Duration
	// Logger logs when the circuit opens and closes. Nil: slog.Default().
	Logger *slog.Logger
}

// An asker asks questions and caches the answers. Equal questions are asked once. Authenticator and
// Authorizer both use it.
type asker struct {
	poster
	o       Options
	turns   *turns.Queue
	flights singleflight.Group
	circuit circuit
	kept    kept
	salt    []byte // of the keys in kept
	unable  packets.ReasonCode
}

// questionSize is the memory of a waiting question, without its text, in bytes.
const questionSize = 1024

func newAsker(o Options, unable packets.ReasonCode) (*asker, error) {
	for _, d := range []struct {
		of  *time.Duration
		def time.Duration
	}{{&o.AllowFor, 30 * time.Second}, {&o.DenyFor, 5 * time.Second},
		{&o.BreakFor, 10 * time.Second}} {
		if *d.of == 0 || *d.of < 0 && d.of == &o.BreakFor {
			*d.of = d.def
		}
	}
	for _, n := range []struct {
		of  *int
		def int
	}{
		{&o.MaxConcurrent, 64}, {&o.MaxWaiting, 8 << 20}, {&o.MaxCached, 16_384},
		{&o.MaxCachedBytes, 16 << 20}, {&o.BreakAfter, 5},
	} {
		if *n.of <= 0 {
			*n.of = n.def
		}
	}
	o.Logger = safelog.Logger(o.Logger)
	a := &asker{
		poster: poster{client: o.Client, url: o.URL, header: o.Header, secret: o.Secret,
			timeout: o.Timeout},
		o:      o,
		turns:  turns.New(o.MaxConcurrent, max(1, o.MaxConcurrent*3/4), o.MaxWaiting),
		kept:   newKept(o.MaxCached, o.MaxCachedBytes),
		salt:   make([]byte, sha256.Size),
		unable: unable,
	}
	a.circuit = circuit{after: o.BreakAfter, wait: o.BreakFor, log: o.Logger.With("url", o.URL),
		peers: map[string]*failures{}}
	_, _ = rand.Read(a.salt) // never fails
	return a, a.check()
}

// An answer is a valid answer. It is immutable, except for its places in the lists.
type answer struct {
	Result     string             `json:"result"`
	ReasonCode packets.ReasonCode `json:"reason_code"`
	Reason     string             `json:"reason"`
	Cache      *float64           `json:"cache_seconds"`
	grant

	key   key
	peer  string
	size  int       // in bytes
	until time.Time // it is kept
	at    time.Time // it came

	place, placeOfPeer *list.Element // guarded by the mu of kept
}

// ask returns the answer to a question. It blocks until there is one, at most for twice the
// time-out, or until ctx ends. The error is a *packets.Error. c is the client that the question is
// about.
func (a *asker) ask(ctx context.Context, c turns.Claim, question any) (*answer, error) {
	body, err := json.Marshal(question)
	if err != nil {
		return nil, a.failed(err)
	}
	mac := hmac.New(sha256.New, a.salt)
	mac.Write(body)
	k := key(mac.Sum(nil))
	if x := a.kept.find(k, time.Now()); x != nil {
		return x, nil
	}
	// ends with the time-outs
	flight := a.flights.DoChan(string(k[:]), func() (any, error) { return a.fetch(c, k, body) })
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

// failed returns the refusal for a question without an answer.
func (a *asker) failed(err error) error {
	return &packets.Error{Code: a.unable, Reason: "no decision",
		Err: fmt.Errorf("webhook: %w", err)}
}

// decide returns the decision of an answer. deny is the Reason Code if the answer has none.
func (x *answer) decide(deny packets.ReasonCode) error {
	switch {
	case x.Result == "allow":
		return nil
	case x.Result == "abstain":
		return hooks.ErrAbstain
	case x.ReasonCode.Failed():
		deny = x.ReasonCode
	}
	return &packets.Error{Code: deny, Reason: x.Reason,
		Err: errors.New("webhook: the server denies it")}
}

var errOpen = errors.New("the circuit is open after failures")

// fetch asks the server and caches the answer.
func (a *asker) fetch(c turns.Claim, k key, body []byte) (*answer, error) {
	if x := a.kept.find(k, time.Now()); x != nil {
		return x, nil // of a flight that ended just before
	}
	if a.circuit.open(c.Peer) {
		return nil, errOpen
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.timeout)
	defer cancel()
	c.Size = questionSize + len(body)
	end, err := a.turns.Take(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("waiting for one of %d requests under way: %w", a.o.MaxConcurrent,
			err)
	}
	defer end()
	if !a.circuit.enter(c.Peer) {
		return nil, errOpen
	}
	x, unreachable, err := a.request(body)
	if err != nil {
		a.circuit.failed(c.Peer, unreachable, err)
		return nil, err
	}
	a.circuit.answered(c.Peer)
	x.key, x.peer = k, c.Peer
	a.keep(x)
	return x, nil
}

// request makes a request. If it returns an error, unreachable says whether there was no connection
// to the server.
func (a *asker) request(body []byte) (x *answer, unreachable bool, err error) {
	var connected atomic.Bool
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	status, b, err := a.post(ctx, body, "")
	if err != nil {
		return nil, !connected.Load(), err
	}
	if status != http.StatusOK {
		return nil, false, fmt.Errorf("status %d, not 200", status)
	}
	x = &answer{at: time.Now(), size: answerSize + len(b)}
	if err := json.Unmarshal(b, x); err != nil {
		return nil, false, fmt.Errorf("an answer that is not what it should be: %w", err)
	}
	switch {
	case x.Result != "allow" && x.Result != "deny" && x.Result != "abstain":
		return nil, false, fmt.Errorf(
			"an answer whose result %q is none of allow, deny and abstain",
			x.Result)
	case x.ReasonCode != 0 && !x.ReasonCode.Failed():
		return nil, false, fmt.Errorf("an answer whose reason_code %d is not 128 or more",
			x.ReasonCode)
	}
	return x, false, x.grant.check()
}

// keep caches an answer for as long as it is valid.
func (a *asker) keep(x *answer) {
	ttl := a.o.DenyFor
	if x.Result == "allow" {
		ttl = a.o.AllowFor
	}
	if x.Cache != nil {
		ttl = time.Duration(min(*x.Cache, maxSeconds) * float64(time.Second))
	}
	if x.Expires > 0 {
		ttl = min(ttl, seconds(x.Expires)) // what it grants is over then
	}
	if ttl > 0 {
		x.until = x.at.Add(ttl)
		a.kept.add(x)
	}
}
