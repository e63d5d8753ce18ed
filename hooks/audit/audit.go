// Package audit writes down what concerns security: who was let in and who was refused, and why; what was denied; bans; changes of rules.
//
//	trail := audit.New(slog.NewJSONHandler(file, nil), 0)
//	defer trail.Close(ctx)
//	config.Observer = trail.Observer()
//	go rules.Watch(ctx, 0, func(err error) { trail.Reload("acl file", err) })
//
// Each record is one of these, with the attributes named. Those of a client are client_id, user (the name that was verified, or else the
// User Name; missing if there is none), remote and local (addresses, missing for in-process clients) and certificate (the
// fingerprint of one that was verified).
//
//	level  message             attributes
//	INFO   connect accepted    the client's, version, session_present
//	WARN   connect refused     the client's, code, reason, err
//	INFO   disconnected        the client's, code, reason, err
//	WARN   access denied       the client's, action, topic, err
//	WARN   access revoked      the client's, topic, err
//	WARN   banned              kind, value, why, until
//	ERROR  panic               the client's, err
//	INFO   reloaded            what
//	ERROR  reload failed       what, err
//	ERROR  records lost        count
//
// code is a number of MQTT 5.0, reason its name. No record holds a password. Texts that clients choose are cut at 512 bytes; that
// none of them breaks a record is the part of the slog.Handler, as those of package slog do.
package audit

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	// defaultQueue is how many records may wait where the caller of New does not say.
	defaultQueue = 8192
	// maxText is how much of a text is written, in bytes.
	maxText = 512
)

// A Trail gives records to a slog.Handler. Nothing that happens in the broker waits for the Handler: records go to a queue, and one
// goroutine takes them from there. Where the queue is full, records are lost; how many is written as soon as there is room.
type Trail struct {
	handler slog.Handler
	queue   chan slog.Record
	lost    atomic.Uint64 // and not yet written of
	done    chan struct{} // closed when the goroutine has ended

	mu     sync.RWMutex // held while queueing, so that nothing is queued after Close has begun
	closed bool         // guarded by mu
}

// New returns a Trail to h, which writes until Close. queue is how many records may wait; zero: 8,192.
func New(h slog.Handler, queue int) *Trail {
	if queue <= 0 {
		queue = defaultQueue
	}
	t := &Trail{handler: h, queue: make(chan slog.Record, queue), done: make(chan struct{})}
	go t.run() // Close waits for it
	return t
}

// Close returns when all records have been written, or when ctx ends, with its error; in that case the rest is still written while the
// program runs. Records that come after the beginning of Close are lost.
func (t *Trail) Close(ctx context.Context) error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.queue)
	}
	t.mu.Unlock()
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *Trail) run() {
	defer close(t.done)
	for r := range t.queue {
		t.handle(r)
		if n := t.lost.Swap(0); n > 0 {
			r := slog.NewRecord(time.Now(), slog.LevelError, "records lost", 0)
			r.AddAttrs(slog.Uint64("count", n))
			t.handle(r)
		}
	}
}

// handle gives a record to the Handler. What that returns nobody could be told.
func (t *Trail) handle(r slog.Record) {
	if ctx := context.Background(); t.handler.Enabled(ctx, r.Level) {
		_ = t.handler.Handle(ctx, r)
	}
}

// write queues a record.
func (t *Trail) write(level slog.Level, message string, attrs ...slog.Attr) {
	r := slog.NewRecord(time.Now(), level, message, 0)
	r.AddAttrs(attrs...)
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return
	}
	select {
	case t.queue <- r:
	default:
		t.lost.Add(1)
	}
}

// Reload writes that something was reloaded, or why not, if err is not nil. It goes into the functions that the Watch methods of
// this module report to.
func (t *Trail) Reload(what string, err error) {
	if err != nil {
		t.write(slog.LevelError, "reload failed", slog.String("what", what), failure(err))
		return
	}
	t.write(slog.LevelInfo, "reloaded", slog.String("what", what))
}

// Observer returns what tells the broker's events to t.
func (t *Trail) Observer() *hooks.Observer {
	return &hooks.Observer{
		Connected: func(c *hooks.Client, present bool) {
			t.write(slog.LevelInfo, "connect accepted", append(of(c), slog.String("version", c.Version.String()), slog.Bool("session_present", present))...)
		},
		Refused:      t.ended(slog.LevelWarn, "connect refused"),
		Disconnected: t.ended(slog.LevelInfo, "disconnected"),
		Denied: func(c *hooks.Client, action hooks.Action, topic string, err error) {
			t.write(slog.LevelWarn, "access denied", append(of(c), slog.String("action", action.String()), text("topic", topic), failure(err))...)
		},
		Revoked: func(c *hooks.Client, filter string, err error) {
			t.write(slog.LevelWarn, "access revoked", append(of(c), text("topic", filter), failure(err))...)
		},
		Banned: func(kind, value, why string, until time.Time) {
			attrs := []slog.Attr{slog.String("kind", kind), text("value", value), text("why", why)}
			if !until.IsZero() {
				attrs = append(attrs, slog.Time("until", until))
			}
			t.write(slog.LevelWarn, "banned", attrs...)
		},
		Panicked: func(c *hooks.Client, value any) {
			t.write(slog.LevelError, "panic", append(of(c), text("err", fmt.Sprint(value)))...)
		},
	}
}

func (t *Trail) ended(level slog.Level, message string) func(*hooks.Client, packets.ReasonCode, error) {
	return func(c *hooks.Client, code packets.ReasonCode, err error) {
		t.write(level, message, append(of(c), slog.Int("code", int(code)), slog.String("reason", code.String()), failure(err))...)
	}
}

// of returns the attributes of a client, which may be nil.
func of(c *hooks.Client) (attrs []slog.Attr) {
	if c == nil {
		return nil
	}
	attrs = append(attrs, text("client_id", c.ID))
	if user, ok := c.User(); ok {
		if strings.HasPrefix(user, "eyJ") && strings.Count(user, ".") >= 2 {
			user = "(a token)" // where tokens are sent as User Names
		}
		attrs = append(attrs, text("user", user))
	}
	if c.RemoteAddr != nil {
		attrs = append(attrs, slog.String("remote", c.RemoteAddr.String()))
	}
	if c.LocalAddr != nil {
		attrs = append(attrs, slog.String("local", c.LocalAddr.String()))
	}
	if c.TLS != nil && len(c.TLS.VerifiedChains) > 0 {
		attrs = append(attrs, slog.String("certificate", auth.Fingerprint(c.TLS.PeerCertificates[0])))
	}
	return attrs
}

func text(key, s string) slog.Attr {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return slog.String(key, s)
}

// failure returns the attribute of an error, none for nil: slog leaves out empty ones.
func failure(err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return text("err", err.Error())
}
