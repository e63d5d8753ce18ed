package admin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
)

// This file is what happens, as it happens: security events, and the stream of events.

func eventRoutes() []route {
	return []route{
		{method: "GET", path: ofBroker + "/stats", role: RoleRead, serve: (*call).stats,
			looks: true, answer: statsView{}},
		{method: "GET", path: ofBroker + "/history", role: RoleRead, serve: (*call).past,
			answer: historyView{}},
		{method: "GET", path: ofBroker + "/events", role: RoleRead, serve: (*call).stream},
		{method: "GET", path: ofBroker + "/security", role: RoleRead, serve: (*call).security,
			looks: true, params: []string{"limit"}, answer: page[securityEvent]{}},
		{method: "GET", path: ofBroker + "/bans", role: RoleRead, serve: (*call).bans, looks: true,
			params: []string{"after", "limit"}, answer: page[banView]{}},
	}
}

// stats measures now.
func (c *call) stats() error { return c.answer(asStats(c.desk.b, time.Now())) }

// past has the samples of the last hour.
func (c *call) past() error { return c.answer(c.desk.history.all()) }

// keptEvents is how many security events of each kind are kept of each broker.
const keptEvents = 500

// A securityEvent is something that the operator of a broker should know of.
type securityEvent struct {
	At time.Time `json:"at"`
	// What is "refused", "denied", "revoked", "banned", "panic", "store failed" or "store works".
	What   string `json:"what"`
	Client string `json:"client,omitempty"`
	User   string `json:"user,omitempty"`
	Remote string `json:"remote,omitempty"`
	// About is the topic or filter, or what was banned.
	About  string `json:"about,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Count is how many there were like this one: refusals from one address with one Reason Code,
	// denials of one client. First is when the first one was.
	Count uint64    `json:"count"`
	First time.Time `json:"first"`
}

// Events keeps the last 500 security events of each kind of a broker, so that a Handler can show
// them: a flood of one kind pushes no other one out. Refusals from the same address with the same
// Reason Code are one event with a count, and so are denials of the same client. The Observer of
// Events belongs into the Config of the broker, and Events itself into the Options of the Handler.
type Events struct {
	refused, denied, revoked, banned, panics, store *ring[securityEvent]
}

// NewEvents returns Events without any.
func NewEvents() *Events {
	one := func() *ring[securityEvent] { return &ring[securityEvent]{most: keptEvents} }
	return &Events{one(), one(), one(), one(), one(), one()}
}

// Observer returns the functions that learn of events. None of them is called for a message.
func (e *Events) Observer() *hooks.Observer {
	return &hooks.Observer{
		Refused: func(x hooks.Refused) {
			v := asSecurity("refused", x.Client, x.Code.String(), x.Err)
			e.refused.add(hostOf(v.Remote)+" "+v.About, v)
		},
		Denied: func(x hooks.Denied) {
			v := asSecurity("denied", x.Client, x.Action.String()+" "+x.Topic, x.Err)
			e.denied.add(v.User+" "+v.Client, v)
		},
		Revoked: func(x hooks.Revoked) {
			v := asSecurity("revoked", x.Client, x.Filter, x.Err)
			e.revoked.add(v.User+" "+v.Client, v)
		},
		Banned: func(x hooks.Banned) {
			e.banned.add("", securityEvent{What: "banned",
				About: cut(x.Kind.String() + " " + hooks.ShownUser(x.Value)), Reason: cut(x.Reason)})
		},
		Panicked: func(x hooks.Panicked) { e.panics.add("", asSecurity("panic", x.Client, "", nil)) },
		StoreFailed: func(x hooks.StoreFailed) {
			e.store.add("", asSecurity("store failed", nil, "", x.Err))
		},
		StoreRecovered: func(hooks.StoreRecovered) {
			e.store.add("", asSecurity("store works", nil, "", nil))
		},
	}
}

// hostOf is an address without its port.
func hostOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	return host
}

func asSecurity(what string, client *hooks.Client, about string, err error) securityEvent {
	x := securityEvent{What: what, About: cut(about)}
	if client != nil {
		x.Client = cut(client.ID)
		name, _ := client.User()
		x.User = cut(hooks.ShownUser(name))
		if client.RemoteAddr != nil {
			x.Remote = client.RemoteAddr.String()
		}
	}
	if err != nil {
		x.Reason = cut(err.Error())
	}
	return x
}

// security lists the last security events, the newest first.
func (c *call) security() error {
	n, err := c.limit()
	if err != nil {
		return err
	}
	page := page[securityEvent]{Items: []securityEvent{}}
	if e := c.desk.events; e != nil {
		for _, x := range newestOf(n, e.refused, e.denied, e.revoked, e.banned, e.panics, e.store) {
			x.value.At, x.value.First, x.value.Count = x.at, x.first, x.count
			page.Items = append(page.Items, x.value)
		}
	}
	return c.answer(page)
}

// A banView is one in force.
type banView struct {
	Kind   string    `json:"kind"` // "address", "client", "user" or "session"
	Value  string    `json:"value"`
	Until  time.Time `json:"until,omitzero"`
	Reason string    `json:"reason,omitempty"`
}

// bans lists the bans in force, by kind and value.
func (c *call) bans() error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	after, err := decodeCursor(c.text("after"))
	if err != nil {
		return err
	}
	last, kind, value := 0, "", ""
	if after != "" {
		kind, value, _ = strings.Cut(after, " ")
		k, err := banKind(kind)
		if err != nil {
			return err
		}
		last = int(k)
	}
	page, room := page[banView]{Items: []banView{}}, newPager(limit)
	for _, x := range shownBans(c.desk.b) {
		if after != "" && cmp.Or(cmp.Compare(int(x.Kind), last), cmp.Compare(x.Value, value)) <= 0 {
			continue
		}
		if !room.takes(len(x.Value) + len(x.Reason)) {
			end := page.Items[len(page.Items)-1]
			page.Next = encodeCursor(end.Kind + " " + end.Value)
			break
		}
		page.Items = append(page.Items, banView{x.Kind.String(), x.Value, x.Until, x.Reason})
	}
	return c.answer(page)
}

// shownBans returns the bans in force with the values that may be shown, by kind and value.
func shownBans(b *dunlin.Broker) []dunlin.Ban {
	all := b.Bans()
	for i := range all {
		all[i].Value = hooks.ShownUser(all[i].Value)
	}
	slices.SortStableFunc(all, func(a, b dunlin.Ban) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Value, b.Value))
	})
	return all
}

// A hub gives events to all streams that are open. A stream that does not keep up misses some.
type hub struct {
	mu      sync.Mutex
	streams map[chan []byte]bool // guarded by mu
}

// waiting is how many events wait for a stream.
const waiting = 8

// join returns a channel of events, and what ends it.
func (x *hub) join() (events chan []byte, leave func()) {
	events = make(chan []byte, waiting)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.streams == nil {
		x.streams = map[chan []byte]bool{}
	}
	x.streams[events] = true
	return events, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.streams, events)
	}
}

// send gives an event, which the streams share, to all of them. It does not wait.
func (x *hub) send(e []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for events := range x.streams {
		select {
		case events <- e:
		default:
		}
	}
}

// event is one of a stream, in the form that browsers read (server-sent events).
func event(name string, data []byte) []byte {
	var b bytes.Buffer
	b.WriteString("event: " + name + "\n")
	for line := range bytes.Lines(data) {
		b.WriteString("data: ")
		b.Write(bytes.TrimRight(line, "\r\n"))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	return b.Bytes()
}

const (
	// patience is how long one write to a stream may take.
	patience = 10 * time.Second
	// heartbeat is how often a stream says that it is alive, and asks whether its reader may read on.
	heartbeat = 20 * time.Second
)

// An outlet is a stream as it is written.
type outlet struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

// open begins a stream, if there is a place for one more. Its end gives the place back.
func (c *call) open() (*outlet, func(), error) {
	select {
	case c.h.streams <- struct{}{}:
	default:
		return nil, nil, &problem{status: http.StatusServiceUnavailable, code: "streams",
			retryAfter: heartbeat, message: fmt.Sprintf("%d streams are open, which is the most",
				cap(c.h.streams))}
	}
	c.w.Header().Set("Content-Type", "text/event-stream")
	c.w.Header().Set("X-Accel-Buffering", "no") // of proxies
	o := &outlet{c.w, c.control()}
	// that of the server is for a request; it would end the stream. Not every writer has one
	_ = o.control.SetReadDeadline(time.Time{})
	return o, func() { <-c.h.streams }, nil
}

// control returns what sets deadlines for this answer, which must not be those of other answers:
// its connection has no other one.
func (c *call) control() *http.ResponseController {
	if c.r.ProtoMajor == 1 {
		c.w.Header().Set("Connection", "close")
	}
	return http.NewResponseController(c.w)
}

// write sends bytes at once, or fails.
func (o *outlet) write(b []byte) error {
	_ = o.control.SetWriteDeadline(time.Now().Add(patience)) // not every writer has one
	if _, err := o.w.Write(b); err != nil {
		return err
	}
	return o.control.Flush()
}

// mayStill says whether who sent the request may still have what it asks for, which has taken a
// while.
func (c *call) mayStill() bool {
	who, err := c.h.opts.Authorize(c.r)
	return err == nil && who.User == c.who.User && who.Role >= c.route.role && who.Role <= RoleAct
}

// stream sends the samples of a broker as they are taken, beginning with the last one.
func (c *call) stream() error {
	o, end, err := c.open()
	if err != nil {
		return err
	}
	defer end()
	events, leave := c.desk.hub.join()
	defer leave()
	if text, err := json.Marshal(c.desk.history.latest()); err == nil {
		if o.write(event("stats", text)) != nil {
			return nil
		}
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		var next []byte
		select {
		case next = <-events:
		case <-beat.C:
			if !c.mayStill() {
				return nil
			}
			next = []byte(": alive\n\n")
		case <-c.r.Context().Done():
			return nil
		case <-c.h.ctx.Done():
			return nil
		}
		if o.write(next) != nil {
			return nil // whoever reads is gone, or does not read
		}
	}
}
