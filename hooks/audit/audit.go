// Package audit records security events: accepted and refused clients, with the reason; denied
// requests; bans; changes of rules.
//
//	trail := audit.New(slog.NewJSONHandler(file, nil), 0)
//	defer trail.Close(ctx)
//	config.Observer = trail.Observer()
//	go rules.Watch(ctx, 0, func(err error) { trail.Reload("acl file", err) })
//
// Each record is one of the following, with the attributes named. The attributes of a client are
// client_id, user (the verified name, or else the User Name; missing if there is none), remote and
// local (addresses, missing for in-process clients) and certificate (the fingerprint of a verified
// certificate).
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
// code is a Reason Code of MQTT 5.0, and reason its name. No record holds a password. Texts that
// clients choose are cut at 512 bytes. The slog.Handler must escape them, as the handlers of
// package slog do.
package audit

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/queue"
	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	// defaultQueue is the length of the queue if New is given none.
	defaultQueue = 8192
	// maxText is the longest text written, in bytes.
	maxText = 512
)

// A Trail passes records to a slog.Handler. The broker never waits for the Handler: records go to a
// queue, and one goroutine takes them from there. If the queue is full, records are lost; their
// number is written as soon as there is room. A record is also lost if the Handler returns an error
// or panics. Records about one address do not fill the last quarter of the queue.
type Trail struct {
	handler slog.Handler
	queue   *queue.Queue[slog.Record]
	lost    atomic.Uint64 // and not yet written of
	done    chan struct{} // closed when the goroutine has ended
}

// New returns a Trail to h, which writes until Close. records is the length of the queue; a record
// takes 4 KiB at most. Zero or negative: 8,192.
func New(h slog.Handler, records int) *Trail {
	if records <= 0 {
		records = defaultQueue
	}
	t := &Trail{handler: h, queue: queue.New[slog.Record](records, math.MaxInt),
		done: make(chan struct{})}
	go t.run() // Close waits for it
	return t
}

// Close returns when all records have been written. If ctx ends first, Close returns its error, and
// the rest is still written while the program runs. Records that come after the start of Close are
// lost.
func (t *Trail) Close(ctx context.Context) error {
	t.queue.Close()
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *Trail) run() {
	defer close(t.done)
	for {
		for _, r := range t.queue.Take(1, 0) {
			t.handle(r, 1)
			if n := t.lost.Swap(0); n > 0 {
				r := slog.NewRecord(time.Now(), slog.LevelError, "records lost", 0)
				r.AddAttrs(slog.Uint64("count", n))
				t.handle(r, n)
			}
		}
		switch records, _, closed := t.queue.Load(); {
		case records > 0:
		case closed:
			return
		default:
			<-t.queue.Ready()
		}
	}
}

// handle passes a record to the Handler. If that fails, as on a full disk, or panics, it counts
// records more as lost.
func (t *Trail) handle(r slog.Record, records uint64) {
	written := false
	defer func() {
		if v := recover(); v != nil || !written {
			t.lost.Add(records)
		}
	}()
	ctx := context.Background()
	written = !t.handler.Enabled(ctx, r.Level) || t.handler.Handle(ctx, r) == nil
}

// write queues a record about a client, which may be nil.
func (t *Trail) write(c *hooks.Client, level slog.Level, message string, attrs ...slog.Attr) {
	peer := "" // the broker and its program
	if c != nil {
		ip, _ := c.Network()
		peer = "client " + ip.String()
		attrs = append(of(c), attrs...)
	}
	queued := t.queue.Add(peer, 0, func(uint64) slog.Record {
		r := slog.NewRecord(time.Now(), level, message, 0)
		r.AddAttrs(attrs...)
		return r
	})
	if !queued {
		t.lost.Add(1)
	}
}

// Reload records that what was reloaded or, if err is not nil, why the reload failed. Call it from
// the report functions of the Watch methods of this module.
func (t *Trail) Reload(what string, err error) {
	if err != nil {
		t.write(nil, slog.LevelError, "reload failed", slog.String("what", what), failure(err))
		return
	}
	t.write(nil, slog.LevelInfo, "reloaded", slog.String("what", what))
}

// Observer returns an Observer that records the broker's events in t.
func (t *Trail) Observer() *hooks.Observer {
	return &hooks.Observer{
		Connected: func(e hooks.Connected) {
			t.write(e.Client, slog.LevelInfo, "connect accepted",
				slog.String("version", e.Client.Version.String()),
				slog.Bool("session_present", e.SessionPresent))
		},
		Refused: func(e hooks.Refused) {
			t.ended(e.Client, slog.LevelWarn, "connect refused", e.Code, e.Err)
		},
		Disconnected: func(e hooks.Disconnected) {
			t.ended(e.Client, slog.LevelInfo, "disconnected", e.Code, e.Err)
		},
		Denied: func(e hooks.Denied) {
			t.write(e.Client, slog.LevelWarn, "access denied",
				slog.String("action", e.Action.String()), text("topic", e.Topic), failure(e.Err))
		},
		Revoked: func(e hooks.Revoked) {
			t.write(e.Client, slog.LevelWarn, "access revoked", text("topic", e.Filter),
				failure(e.Err))
		},
		Banned: func(e hooks.Banned) {
			attrs := []slog.Attr{slog.String("kind", e.Kind.String()), text("value", e.Value),
				text("why", e.Reason)}
			if !e.Until.IsZero() {
				attrs = append(attrs, slog.Time("until", e.Until))
			}
			t.write(nil, slog.LevelWarn, "banned", attrs...)
		},
		Panicked: func(e hooks.Panicked) {
			t.write(e.Client, slog.LevelError, "panic", text("err", fmt.Sprint(e.Value)))
		},
	}
}

func (t *Trail) ended(c *hooks.Client, level slog.Level, message string, code packets.ReasonCode,
	err error) {
	t.write(c, level, message, slog.Int("code", int(code)), slog.String("reason", code.String()),
		failure(err))
}

// of returns the attributes of a client, which may be nil.
func of(c *hooks.Client) (attrs []slog.Attr) {
	if c == nil {
		return nil
	}
	attrs = append(attrs, text("client_id", c.ID))
	if user, ok := c.User(); ok {
		attrs = append(attrs, text("user", hooks.ShownUser(user)))
	}
	if c.RemoteAddr != nil {
		attrs = append(attrs, slog.String("remote", c.RemoteAddr.String()))
	}
	if c.LocalAddr != nil {
		attrs = append(attrs, slog.String("local", c.LocalAddr.String()))
	}
	if c.TLS != nil && len(c.TLS.VerifiedChains) > 0 {
		attrs = append(attrs, slog.String("certificate",
			auth.Fingerprint(c.TLS.PeerCertificates[0])))
	}
	return attrs
}

func text(key, s string) slog.Attr {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return slog.String(key, s)
}

// failure returns the attribute of an error. For nil it returns an empty attribute, which slog
// leaves out.
func failure(err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return text("err", err.Error())
}
