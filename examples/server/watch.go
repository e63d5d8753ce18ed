package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what the log says about clients: -connection-messages and -v. Functions of an
// Observer must return at once, so the lines are written by a goroutine; lines that it has no time
// for are left out, and counted.

const (
	waiting = 4096 // lines that may wait
	longest = 512  // bytes of a text in them that came from a client
)

// short cuts what is too long for a line.
func short(text string) string {
	if len(text) <= longest {
		return text
	}
	return strings.ToValidUTF8(text[:longest], "") + "..."
}

// A watcher writes lines about clients.
type watcher struct {
	log                 *slog.Logger
	connection, packets atomic.Bool
	come, refused       rate
	lines               chan line
	missed              atomic.Int64
	done                sync.WaitGroup
}

type line struct {
	text  string
	about []any
}

// watch starts a watcher, whose end must be called.
func (lo *logging) watch(log *slog.Logger) *watcher {
	w := &watcher{log: log, lines: make(chan line, waiting)}
	w.connection.Store(lo.connection)
	w.packets.Store(lo.packets)
	w.done.Go(w.write) // end waits for it
	return w
}

func (w *watcher) write() {
	for l := range w.lines {
		if n := w.missed.Swap(0); n > 0 {
			w.log.Warn("lines about clients were left out: there were more than could be written",
				"lines", n)
		}
		w.log.Info(l.text, l.about...)
	}
}

// end writes what waits. No function of the observer may be called any more.
func (w *watcher) end() {
	close(w.lines)
	w.done.Wait()
}

// say has a line written.
func (w *watcher) say(text string, about ...any) {
	if !w.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	for i, a := range about {
		switch a := a.(type) {
		case string:
			about[i] = short(a)
		case error:
			about[i] = short(a.Error())
		}
	}
	select {
	case w.lines <- line{short(text), about}:
	default:
		w.missed.Add(1)
	}
}

// packet has a line about a packet written, with -v.
func (w *watcher) packet(format string, of ...any) {
	if w.packets.Load() {
		w.say(fmt.Sprintf(format, of...))
	}
}

// observer is what the broker tells. Without -v it is not told of messages, which would cost
// something for each.
func (w *watcher) observer() *hooks.Observer {
	o := &hooks.Observer{
		Connected: func(e hooks.Connected) {
			c := e.Client
			w.received(c)
			w.packet("Sending CONNACK to %s (%d, 0)", c.ID, digit(e.SessionPresent))
			w.client(&w.come, "client connected", c)
		},
		Refused: func(e hooks.Refused) {
			what := "connection refused"
			if e.Client.Version != 0 { // there was a CONNECT
				what = "client refused"
				w.received(e.Client)
				w.packet("Refused CONNECT from %s: %v", e.Client.ID, e.Code)
			}
			w.client(&w.refused, what, e.Client, "code", e.Code, "err", e.Err)
		},
		Disconnected: func(e hooks.Disconnected) {
			switch {
			case e.Err == nil:
				w.packet("Received DISCONNECT from %s", e.Client.ID)
				w.client(&w.come, "client disconnected", e.Client)
			case e.Code == packets.UnspecifiedError: // which says less than Err
				w.client(&w.come, "client gone", e.Client, "err", e.Err)
			default:
				w.client(&w.come, "client gone", e.Client, "code", e.Code, "err", e.Err)
			}
		},
	}
	if !w.packets.Load() {
		return o
	}
	o.Subscribed = func(e hooks.Subscribed) {
		w.packet("Received SUBSCRIBE from %s (%s, granted QoS %d)", e.Client.ID, e.Filter, e.QoS)
	}
	o.Unsubscribed = func(e hooks.Unsubscribed) {
		w.packet("Received UNSUBSCRIBE from %s (%s)", e.Client.ID, e.Filter)
	}
	o.Denied = func(e hooks.Denied) {
		what := map[hooks.Action]string{hooks.ActionPublish: "PUBLISH from",
			hooks.ActionSubscribe: "SUBSCRIBE from", hooks.ActionDeliver: "PUBLISH to"}[e.Action]
		w.packet("Denied %s %s (%s): %v", what, e.Client.ID, e.Topic, e.Err)
	}
	o.Published = func(e hooks.Published) {
		// $SYS is not what anybody wants to read here
		if m := e.Message; e.Client.RemoteAddr != nil {
			w.packet("Received PUBLISH from %s (q%d, r%d, '%s', ... (%d bytes)), %d subscribers",
				e.Client.ID, m.QoS, digit(m.Retain), e.Topic(), len(m.Payload), e.Matched)
		}
	}
	o.Delivered = func(e hooks.Delivered) {
		w.packet("Sending PUBLISH to %s (q%d, m%d, '%s', ... (%d bytes))", e.Client.ID, e.QoS,
			e.PacketID, e.Topic(), len(e.Message.Payload))
	}
	o.Acknowledged = func(e hooks.Acknowledged) {
		w.packet("Received PUBACK or PUBCOMP from %s (m%d)", e.Client.ID, e.PacketID)
	}
	o.Dropped = func(e hooks.Dropped) {
		if e.Message != nil {
			w.packet("Dropped PUBLISH to %s ('%s'): %v", e.Client.ID, e.Topic(), e.Reason)
		}
	}
	return o
}

// received has a line about the CONNECT of c written, with -v.
func (w *watcher) received(c *hooks.Client) {
	w.packet("Received CONNECT from %v as %s (p%d, c%d, k%d%s)", c.RemoteAddr, c.ID, c.Version,
		digit(c.CleanStart), c.KeepAlive, user(c))
}

// client has a line about a client written, unless there were too many of its kind.
func (w *watcher) client(kind *rate, text string, c *hooks.Client, about ...any) {
	if !w.connection.Load() {
		return
	}
	more, ok := kind.take(time.Now())
	if !ok {
		return
	}
	args := []any{"client", c.ID, "remote", c.RemoteAddr}
	if c.HasUsername {
		args = append(args, "user", c.Username)
	}
	if c.Listener != nil {
		args = append(args, "listener", c.Listener.Name)
	}
	args = append(args, about...)
	if more > 0 {
		args = append(args, "others_left_out", more)
	}
	w.say(text, args...)
}

func digit(on bool) int {
	if on {
		return 1
	}
	return 0
}

func user(c *hooks.Client) string {
	if !c.HasUsername {
		return ""
	}
	return ", u'" + strings.ToValidUTF8(c.Username, "?") + "'"
}

const (
	// perSecond is how many lines about clients of one kind there are in a second, after the first
	// burst.
	perSecond = 10
	burst     = 100
)

// A rate lets some lines through, and counts the others. The zero value is ready for use.
type rate struct {
	mu     sync.Mutex
	used   float64   // of burst; guarded by mu, as is all
	at     time.Time // when used was right
	missed int
}

// take says whether there is room for a line, and how many have found none since the last.
func (r *rate) take(now time.Time) (missed int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = max(0, r.used-now.Sub(r.at).Seconds()*perSecond)
	r.at = now
	if r.used+1 > burst {
		r.missed++
		return 0, false
	}
	r.used++
	missed, r.missed = r.missed, 0
	return missed, true
}
