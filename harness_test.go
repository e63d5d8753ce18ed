package dunlin

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/script"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// This file is the two ways in which the scripts of package internal/conformance meet the broker:
// the bare core, fed with bytes by the test itself, without any goroutine; and a Broker over
// in-memory connections. Both run in virtual time.

// quiet is a logger for tests that cause errors on purpose.
var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// configFor makes a Config of the settings of a script.
func configFor(settings []script.Setting) (Config, error) {
	c := Config{Authenticator: hooks.AllowAll, Logger: quiet}
	rules := &scriptRules{}
	for _, s := range settings {
		n, numErr := strconv.Atoi(s.Value)
		d, durErr := time.ParseDuration(s.Value)
		ints := map[string]*int{
			"receive-maximum": &c.ReceiveMaximum, "max-packet-size": &c.MaxPacketSize,
			"topic-alias-maximum": &c.TopicAliasMaximum,
			"max-inflight":        &c.MaxInflight, "max-queued-messages": &c.MaxQueuedMessages,
			"max-connections":  &c.MaxConnections,
			"max-topic-levels": &c.MaxTopicLevels, "max-subscriptions": &c.MaxSubscriptions,
			"max-connect-size": &c.MaxConnectSize,
			"max-sessions":     &c.MaxSessions, "max-retained": &c.MaxRetained,
			"max-queued-bytes": &c.MaxQueuedBytes,
		}
		durations := map[string]*time.Duration{
			"server-keep-alive": &c.MaxKeepAlive, "max-session-expiry": &c.MaxSessionExpiry,
			"sys-interval":    &c.SysInterval,
			"connect-timeout": &c.ConnectTimeout, "max-message-expiry": &c.MaxMessageExpiry,
		}
		bools := map[string]*bool{
			"no-retain": &c.DisableRetain, "no-wildcards": &c.DisableWildcards,
			"no-shared": &c.DisableShared, "no-topic-alias": &c.DisableTopicAlias,
			"no-subscription-ids": &c.DisableSubscriptionIDs, "queue-qos0": &c.QueueQoS0,
			"check-payload-format": &c.CheckPayloadFormat,
		}
		switch p, q, r := ints[s.Key], durations[s.Key], bools[s.Key]; {
		case p != nil:
			if numErr != nil {
				return c, fmt.Errorf("config %s: %w", s.Key, numErr)
			}
			if *p = n; s.Key == "topic-alias-maximum" && n == 0 {
				c.DisableTopicAlias = true
			}
		case q != nil:
			if durErr != nil {
				if numErr != nil {
					return c, fmt.Errorf("config %s: %w", s.Key, durErr)
				}
				d = time.Duration(n) * time.Second
			}
			*q = d
		case r != nil:
			*r = true
		case s.Key == "max-qos":
			q := packets.QoS(n)
			c.MaxQoS = &q
		case s.Key == "response-information":
			c.ResponseInformation = s.Value
		case s.Key == "versions":
			for _, v := range strings.Split(s.Value, ",") {
				n, _ := strconv.Atoi(v)
				c.Versions = append(c.Versions, packets.Version(n))
			}
		case s.Key == "overflow":
			c.Overflow = map[string]Overflow{"drop-oldest": OverflowDropOldest,
				"drop-newest": OverflowDropNewest, "disconnect": OverflowDisconnect}[s.Value]
		case s.Key == "deny-subscribe":
			rules.denySubscribe = append(rules.denySubscribe, s.Value)
			c.Authorizer = rules
		case s.Key == "deny-publish":
			rules.denyPublish = append(rules.denyPublish, s.Value)
			c.Authorizer = rules
		case s.Key == "auth":
			if c.EnhancedAuth == nil {
				c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{}
			}
			c.EnhancedAuth[s.Value] = challengeAuth{}
		case s.Key == "password":
			name, pass, _ := strings.Cut(s.Value, ":")
			c.Authenticator = passwordAuth(name, pass)
		case s.Key == "refuse":
			id, code, _ := strings.Cut(s.Value, ":")
			n, err := strconv.ParseUint(code, 0, 8)
			if err != nil {
				return c, fmt.Errorf("config refuse: %w", err)
			}
			c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
				r *hooks.ConnectRequest) error {
				if r.Client.ID == id {
					return packets.Errorf(packets.ReasonCode(n), "refused by the test")
				}
				return nil
			})
		default:
			return c, fmt.Errorf("config: the harness does not know %q", s.Key)
		}
	}
	return c, nil
}

type scriptRules struct{ denySubscribe, denyPublish []string }

func (r *scriptRules) Authorize(_ context.Context, q *hooks.AccessRequest) error {
	list := r.denyPublish
	if q.Action == hooks.ActionSubscribe {
		list = r.denySubscribe
	}
	for _, f := range list {
		if f == q.Topic || packets.MatchTopic(f, q.Topic) {
			return packets.Errorf(packets.NotAuthorized, "denied by the test")
		}
	}
	return nil
}

func passwordAuth(name, pass string) hooks.Authenticator {
	return hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		if r.Connect.Username == name && subtle.ConstantTimeCompare(r.Connect.Password,
			[]byte(pass)) == 1 {
			return nil
		}
		return packets.Errorf(packets.BadUserNameOrPassword, "wrong name or password")
	})
}

// challengeAuth sends "challenge" and wants "response".
type challengeAuth struct{}

func (challengeAuth) Start(context.Context, *hooks.ConnectRequest) (hooks.Exchange, error) {
	return &challengeExchange{}, nil
}

type challengeExchange struct{ asked bool }

func (e *challengeExchange) Next(_ context.Context, data []byte) ([]byte, bool, error) {
	if !e.asked {
		e.asked = true
		return []byte("challenge"), false, nil
	}
	if string(data) != "response" {
		return nil, false, packets.Errorf(packets.NotAuthorized, "wrong response")
	}
	return nil, true, nil
}

// coreHarness drives connections without sockets or goroutines: bytes in, bytes out.
type coreHarness struct {
	b     *Broker
	links []*coreLink
}

func newCoreHarness(cfg Config) (*coreHarness, error) {
	b, err := New(cfg)
	return &coreHarness{b: b}, err
}

// A coreLink is both ends of a connection: a net.Conn that takes whatever is written.
type coreLink struct {
	h        *coreHarness
	c        *conn
	mu       sync.Mutex
	out      []byte
	deadline time.Time
	closed   bool // by the broker
	over     bool // finish has been called
}

func (h *coreHarness) Open(string) (script.Link, error) {
	l := &coreLink{h: h}
	var err error
	if l.c, err = h.b.adopt(h.b.ctx, brokerEnd{l}); err != nil {
		return nil, err
	}
	h.links = append(h.links, l)
	return l, nil
}

func (l *coreLink) Send(b []byte) error {
	if l.over {
		return io.ErrClosedPipe
	}
	t := l.h.b.getTurn()
	l.c.unpark(t)
	t.read = roomFor(t.read, len(b))
	t.read.B = append(t.read.B, b...)
	err := l.c.input(t)
	l.c.park(t)
	if err != nil {
		l.finish(err)
	}
	l.h.settle()
	return nil
}

// roomFor returns x with room for n more bytes, or its content in a larger buffer.
func roomFor(x *link.Buffer, n int) *link.Buffer {
	if cap(x.B)-len(x.B) >= n {
		return x
	}
	y := link.NewBuffer(len(x.B) + n)
	y.B = append(y.B, x.B...)
	x.Free()
	return y
}

func (l *coreLink) finish(err error) {
	if !l.over {
		l.over = true
		l.c.finish(err)
	}
}

// settle plays the runtime's part for read deadlines that have passed.
func (h *coreHarness) settle() {
	for again := true; again; {
		again = false
		for _, l := range h.links {
			l.mu.Lock()
			due := !l.over && !l.deadline.IsZero() && !l.deadline.After(time.Now())
			closed := l.closed
			l.mu.Unlock()
			if l.over {
				continue
			}
			if closed {
				l.finish(net.ErrClosed)
				again = true
			} else if due {
				if err := l.c.expired(time.Now()); err != nil {
					l.finish(err)
					again = true
				}
			}
		}
	}
}

func (l *coreLink) Recv() ([]byte, bool) {
	synctest.Wait()
	l.h.settle()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.out
	l.out = nil
	return b, l.closed
}

func (l *coreLink) Close() {
	if !l.over {
		l.finish(io.EOF)
	}
	l.h.settle()
}

func (h *coreHarness) Advance(d time.Duration) {
	for end := time.Now().Add(d); ; {
		next := end
		for _, l := range h.links {
			l.mu.Lock()
			if !l.over && !l.deadline.IsZero() && l.deadline.Before(next) {
				next = l.deadline
			}
			l.mu.Unlock()
		}
		time.Sleep(time.Until(next))
		synctest.Wait()
		h.settle()
		if !time.Now().Before(end) {
			return
		}
	}
}

func (h *coreHarness) Close() {
	for _, l := range h.links {
		l.Close()
	}
	h.b.Close()
}

func (l *coreLink) Read([]byte) (int, error) { return 0, io.EOF }
func (l *coreLink) Write(b []byte) (int, error) {
	return l.TryWrite(b)
}

func (l *coreLink) TryWrite(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, net.ErrClosed
	}
	l.out = append(l.out, b...)
	return len(b), nil
}

// brokerEnd is the broker's end: a net.Conn, whose Close is not that of the Link.
type brokerEnd struct{ *coreLink }

func (e brokerEnd) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	return nil
}
func (e brokerEnd) LocalAddr() net.Addr  { return &net.UnixAddr{Name: "core"} }
func (e brokerEnd) RemoteAddr() net.Addr { return &net.UnixAddr{Name: "script"} }
func (e brokerEnd) SetReadDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deadline = t
	return nil
}
func (e brokerEnd) SetDeadline(t time.Time) error    { return e.SetReadDeadline(t) }
func (e brokerEnd) SetWriteDeadline(time.Time) error { return nil }

// brokerHarness is a Broker that serves an in-memory listener.
type brokerHarness struct {
	b      *Broker
	l      *listeners.Memory
	served chan error
	links  []*brokerLink
}

func newBrokerHarness(cfg Config) (*brokerHarness, error) {
	b, err := New(cfg)
	if err != nil {
		return nil, err
	}
	h := &brokerHarness{b: b, l: listeners.NewMemory(), served: make(chan error, 1)}
	go func() { h.served <- b.Serve(h.l) }()
	return h, nil
}

type brokerLink struct {
	nc     net.Conn
	mu     sync.Mutex
	in     []byte
	closed bool
}

func (h *brokerHarness) Open(string) (script.Link, error) {
	nc, err := h.l.Dial()
	if err != nil {
		return nil, err
	}
	l := &brokerLink{nc: nc}
	h.links = append(h.links, l)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := nc.Read(b)
			l.mu.Lock()
			l.in = append(l.in, b[:n]...)
			l.closed = l.closed || err != nil
			l.mu.Unlock()
			if err != nil {
				nc.Close()
				return
			}
		}
	}()
	return l, nil
}

func (l *brokerLink) Send(b []byte) error {
	synctest.Wait()
	_, err := l.nc.Write(b)
	synctest.Wait()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil // one that the broker has closed shows in Recv
}

func (l *brokerLink) Recv() ([]byte, bool) {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.in
	l.in = nil
	return b, l.closed
}

func (l *brokerLink) Close() {
	l.nc.Close()
	synctest.Wait()
}

func (h *brokerHarness) Advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (h *brokerHarness) Close() {
	for _, l := range h.links {
		l.nc.Close()
	}
	h.b.Close()
	<-h.served
}

// bothHarnesses runs f with each harness in a bubble of its own.
func bothHarnesses(t *testing.T, cfg func() Config, f func(t *testing.T, h script.Harness)) {
	t.Run("core", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, err := newCoreHarness(cfg())
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			f(t, h)
		})
	})
	t.Run("broker", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, err := newBrokerHarness(cfg())
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			f(t, h)
		})
	})
	t.Run("broker with a Store", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			withStore := cfg()
			withStore.Store = new(memory.Store)
			h, err := newBrokerHarness(withStore)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			f(t, h)
		})
	})
}
