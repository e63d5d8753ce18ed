package httpgw

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// This file is the two ways to read events: GET /events and GET /poll.

// A reader is a visitor that reads a filter.
type reader struct {
	h      *Handler
	v      *visitor
	filter string
	feed   *feed
	rules  uint64          // of the broker, when the filter was allowed
	ctx    context.Context // ends with the request, and when the Grant expires
	cancel context.CancelFunc
}

// read begins to read the filter of a request. close must follow, if there is no error.
func (h *Handler) read(r *http.Request, v *visitor) (*reader, error) {
	filter, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	x := &reader{h: h, v: v, filter: filter}
	if err := x.allowed(r.Context()); err != nil {
		return nil, err
	}
	if x.feed, err = h.feeds.enter(v, filter); err != nil {
		return nil, err
	}
	x.ctx, x.cancel = r.Context(), func() {}
	if at := v.grant.Expires; !at.IsZero() {
		x.ctx, x.cancel = context.WithDeadline(x.ctx, at)
	}
	return x, nil
}

func (x *reader) close() {
	x.cancel()
	x.h.feeds.leave(x.feed)
}

// allowed asks whether the visitor may read the filter.
func (x *reader) allowed(ctx context.Context) error {
	x.rules = x.h.b.RulesVersion() // before the question: they may change meanwhile
	return x.h.b.MayRead(ctx, x.v.client, &x.v.grant, x.filter)
}

// may says whether the visitor may still read. It asks again only if the rules have changed.
func (x *reader) may() bool {
	switch {
	case x.ctx.Err() != nil, x.h.b.Barred(x.v.client) != nil:
		return false
	case x.rules == x.h.b.RulesVersion():
		return true
	}
	return x.allowed(x.ctx) == nil
}

// gets returns what the visitor gets of an event that readers share: e, or an event of its own if a
// hook changes it, or nil.
func (x *reader) gets(e *kept) *kept {
	if x.h.b.MayReceive(x.ctx, x.v.client, &x.v.grant, e.topic) != nil {
		return nil
	}
	if x.h.b.DeliveryInterceptor() == nil {
		return e
	}
	var seen event
	if err := json.Unmarshal(e.data, &seen); err != nil {
		panic("BUG: " + err.Error()) // encode made it
	}
	mount := x.v.grant.MountPoint
	m, err := x.h.shown(x.ctx, x.v, seen.message(mount))
	if err != nil {
		return nil
	}
	seen = newEvent(m, mount)
	return &kept{number: e.number, topic: e.topic, data: seen.encode()}
}

// aliveEvery is how often a stream without events says that it is there.
const aliveEvery = 15 * time.Second

// events is GET /events.
func (h *Handler) events(w http.ResponseWriter, r *http.Request, v *visitor) {
	x, err := h.read(r, v)
	if err != nil {
		fail(w, err)
		return
	}
	defer x.close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // by nginx
	out := patiently(w)
	out.control.SetReadDeadline(time.Time{}) // or the stream would end with it
	n, gap := x.feed.start(r.Header.Get("Last-Event-ID"))
	if gap {
		io.WriteString(out, "event: lost\ndata: 0\n\n")
	}
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		b := x.feed.from(n)
		n = b.next
		ok := x.may() && x.send(out, b) == nil
		if x.feed.release(b.events); !ok {
			return
		}
		if len(b.events) > 0 || b.lost > 0 {
			continue
		}
		if out.flush() != nil {
			return
		}
		select {
		case <-b.news:
		case <-alive.C:
			// for an Authorizer that does not tell when it has changed its mind
			if x.allowed(x.ctx) != nil {
				return
			}
			io.WriteString(out, ":\n\n")
		case <-x.ctx.Done():
			return
		case <-x.feed.ended:
			return
		}
	}
}

// send writes a batch as server-sent events.
func (x *reader) send(out *patient, b batch) (err error) {
	if b.lost > 0 {
		_, err = fmt.Fprintf(out, "event: lost\ndata: %d\n\n", b.lost)
	}
	for _, e := range b.events {
		if err != nil {
			return err
		}
		if e = x.gets(e); e == nil {
			continue
		}
		if _, err = fmt.Fprintf(out, "id: %s\ndata: ", x.feed.id(e.number+1)); err == nil {
			_, err = out.Write(e.data)
		}
		if err == nil {
			_, err = io.WriteString(out, "\n\n")
		}
	}
	return err
}

// poll is GET /poll.
func (h *Handler) poll(w http.ResponseWriter, r *http.Request, v *visitor) {
	p := numbers{r: r}
	wait := time.Duration(p.of("wait", 60)) * time.Second
	if p.err != nil {
		fail(w, p.err)
		return
	}
	x, err := h.read(r, v)
	if err != nil {
		fail(w, err)
		return
	}
	defer x.close()
	out := patiently(w)
	out.control.SetReadDeadline(time.Time{})
	over := time.NewTimer(wait)
	defer over.Stop()
	var a pollAnswer
	defer func() { x.feed.release(a.events) }()
	n, gap := x.feed.start(r.URL.Query().Get("after"))
	a.Gap = gap
	for waiting := true; waiting && len(a.events) == 0 && a.Lost == 0; {
		b := x.feed.from(n)
		if !x.may() {
			x.feed.release(b.events)
			http.Error(w, "not allowed any more", http.StatusForbidden)
			return
		}
		n = b.next
		x.collect(&a, b)
		if len(b.events) > 0 || b.lost > 0 {
			continue
		}
		select {
		case <-b.news:
		case <-over.C:
			waiting = false
		case <-x.ctx.Done():
			waiting = false
		case <-x.feed.ended:
			waiting = false
		}
	}
	a.After = x.feed.id(n)
	a.write(out)
}

// A pollAnswer is the answer to GET /poll.
type pollAnswer struct {
	events []*kept
	After  string `json:"after"`
	Lost   uint64 `json:"lost"`
	Gap    bool   `json:"gap"`
}

// write writes the answer. It does not copy the events, which all readers share.
func (a *pollAnswer) write(out *patient) {
	rest, err := json.Marshal(a)
	if err != nil {
		panic("BUG: " + err.Error()) // nothing in it can fail
	}
	out.Header().Set("Content-Type", "application/json")
	before := `{"events":[`
	for _, e := range a.events {
		if _, err := io.WriteString(out, before); err != nil {
			return // the client has gone
		}
		if _, err := out.Write(e.data); err != nil {
			return
		}
		before = ","
	}
	if len(a.events) > 0 {
		before = ""
	}
	fmt.Fprintf(out, "%s],%s\n", before, rest[1:]) // its error is that of the client as well
}

// collect adds a batch.
func (x *reader) collect(a *pollAnswer, b batch) {
	a.Lost += b.lost
	var others []*kept
	for _, e := range b.events {
		got := x.gets(e)
		if got != nil {
			a.events = append(a.events, got)
		}
		if got != e {
			others = append(others, e)
		}
	}
	x.feed.release(others)
}
