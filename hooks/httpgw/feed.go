package httpgw

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// An event is a message as readers get it.
type event struct {
	ID      string `json:"id,omitempty"`
	Topic   string `json:"topic"`
	Payload []byte `json:"payload"` // base64
	QoS     byte   `json:"qos"`
	Retain  bool   `json:"retain"`
}

func newEvent(m *dunlin.Message, mount string) event {
	return event{Topic: strings.TrimPrefix(m.Topic, mount), Payload: m.Payload, QoS: byte(m.QoS),
		Retain: m.Retain}
}

// feeds are those that somebody reads, or may come back to.
type feeds struct {
	b      *dunlin.Broker
	o      *Options
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup // goroutines of feeds, which Close waits for

	mu      sync.Mutex
	of      map[string]*feed // guarded by mu, as are the next two
	users   map[string]int   // how many of them each user has
	readers int

	bytes atomic.Int64 // of all events that are kept
}

// A feed is what one principal gets by one filter. It keeps the last events, so that no reader
// holds up another one, and each can go on where it was.
type feed struct {
	name    string // in its event IDs
	all     *feeds
	user    string // in feeds.users
	sub     *dunlin.Subscription
	mount   string
	readers int         // guarded by feeds.mu
	idle    *time.Timer // guarded by feeds.mu; ends the feed

	mu   sync.Mutex
	ring []event       // guarded by mu, as are the next; event number n is at n % len
	next uint64        // the number of the next event
	old  uint64        // the number of the oldest that is kept; next: none is
	news chan struct{} // closed when there is one
}

// enter makes the visitor a reader of a filter. leave must follow.
func (f *feeds) enter(v *visitor, filter string) (*feed, error) {
	id := &v.client.Identity
	key := fmt.Sprintf("%q %q %v %v %q", id.Principal, v.grant.MountPoint, id.Unverified,
		v.client.HasUsername, filter)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers >= f.o.MaxReaders {
		return nil, packets.Errorf(packets.QuotaExceeded, "too many readers")
	}
	x := f.of[key]
	if x == nil {
		user := "user " + id.Principal
		if id.Principal == "" {
			user = "address " + hostOf(v.client.RemoteAddr)
		}
		if f.users[user] >= f.o.MaxFilters || len(f.of) >= f.o.MaxReaders && !f.endIdleLocked() {
			return nil, packets.Errorf(packets.QuotaExceeded, "too many filters")
		}
		sub, err := f.b.Subscribe(f.ctx, v.grant.MountPoint+filter,
			&dunlin.SubscribeOptions{QoS: packets.QoS1,
				RetainHandling: dunlin.RetainHandlingSkip})
		if err != nil {
			return nil, err
		}
		x = &feed{name: fmt.Sprintf("%016x", rand.Uint64()), all: f, user: user, sub: sub,
			mount: v.grant.MountPoint, ring: make([]event, f.o.Keep), news: make(chan struct{})}
		f.of[key] = x
		f.users[user]++
		x.idle = time.AfterFunc(f.o.KeepFor, func() { f.end(key, x) })
		f.tasks.Go(x.fill) // until the Subscription ends
	}
	x.idle.Stop()
	x.readers++
	f.readers++
	return x, nil
}

// leave is the end of enter.
func (f *feeds) leave(x *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	if x.readers--; x.readers == 0 {
		x.idle.Reset(f.o.KeepFor)
	}
}

// end ends a feed that nobody reads.
func (f *feeds) end(key string, x *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x.readers == 0 && f.of[key] == x {
		f.endLocked(key, x)
	}
}

func (f *feeds) endLocked(key string, x *feed) {
	delete(f.of, key)
	if f.users[x.user]--; f.users[x.user] == 0 {
		delete(f.users, x.user)
	}
	x.sub.Close()
}

// endIdleLocked ends one feed that nobody reads, and says whether there was one.
func (f *feeds) endIdleLocked() bool {
	for key, x := range f.of {
		if x.readers == 0 {
			x.idle.Stop()
			f.endLocked(key, x)
			return true
		}
	}
	return false
}

// hostOf is an address without its port.
func hostOf(a net.Addr) string {
	if a == nil {
		return ""
	}
	host, _, _ := net.SplitHostPort(a.String())
	return host
}

// fill takes what comes.
func (x *feed) fill() {
	for m := range x.sub.Messages() {
		e := newEvent(&m.Message, x.mount)
		x.mu.Lock()
		e.ID = x.id(x.next + 1)
		x.keepLocked(e)
		close(x.news)
		x.news = make(chan struct{})
		x.mu.Unlock()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for x.old < x.next {
		x.dropLocked()
	}
}

// eventBytes is what an event takes besides topic and payload.
const eventBytes = 128

func (e *event) size() int64 { return int64(len(e.Topic)+len(e.Payload)) + eventBytes }

// keepLocked makes e the next event. Older ones make room for it; if that is not enough, it is
// lost.
func (x *feed) keepLocked(e event) {
	n := e.size()
	for x.old < x.next && (x.next-x.old == uint64(len(x.ring)) || !x.fitsLocked(n)) {
		x.dropLocked()
	}
	x.next++
	if !x.fitsLocked(n) {
		x.old = x.next
		return
	}
	x.ring[(x.next-1)%uint64(len(x.ring))] = e
	x.all.bytes.Add(n)
}

func (x *feed) fitsLocked(n int64) bool { return x.all.bytes.Load()+n <= x.all.o.KeepBytes }

// dropLocked drops the oldest event.
func (x *feed) dropLocked() {
	e := &x.ring[x.old%uint64(len(x.ring))]
	x.all.bytes.Add(-e.size())
	*e = event{}
	x.old++
}

// id is the ID of the event before number n.
func (x *feed) id(n uint64) string { return fmt.Sprint(x.name, "-", n) }

// start returns the number of the event behind the one with that ID. Without an ID it is that of
// the next event. With the ID of a feed that has ended it is that as well, and gap is true.
func (x *feed) start(id string) (from uint64, gap bool) {
	name, number, _ := strings.Cut(id, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err == nil && name == x.name && n <= x.next {
		return n, false
	}
	return x.next, id != ""
}

// from returns the events from a number on, how many of them are not kept any more, and what is
// closed when there are more.
func (x *feed) from(n uint64) (all []event, lost uint64, next uint64, news <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n < x.old {
		n, lost = x.old, x.old-n
	}
	for ; n < x.next; n++ {
		all = append(all, x.ring[n%uint64(len(x.ring))])
	}
	return all, lost, n, x.news
}

// read is the beginning of both ways to read events. If it returns nil it has answered. may says
// whether the visitor may still read.
func (h *Handler) read(
	w http.ResponseWriter, r *http.Request,
) (x *feed, may func(topic string) bool) {
	v := h.enter(w, r)
	filter := r.URL.Query().Get("filter")
	if v == nil || !h.mayRead(w, r, v, filter) {
		return nil, nil
	}
	x, err := h.feeds.enter(v, filter)
	if err != nil {
		fail(w, err)
		return nil, nil
	}
	deliveries, _ := h.o.Authorizer.(hooks.DeliveryAuthorizer)
	return x, func(topic string) bool {
		q := &hooks.AccessRequest{Client: v.client, Action: hooks.ActionSubscribe, Topic: filter}
		if topic == "" {
			return h.o.Authorizer.Authorize(r.Context(), q) == nil
		}
		q.Action, q.Topic = hooks.ActionDeliver, topic
		return deliveries == nil || deliveries.AuthorizeDelivery(r.Context(), q) == nil
	}
}

// permitted leaves out what the reader may not get.
func permitted(all []event, may func(topic string) bool) []event {
	return slices.DeleteFunc(all, func(e event) bool { return !may(e.Topic) })
}

// streamWrite is how long a reader may take nothing.
const streamWrite = 30 * time.Second

// events is GET /events.
func (h *Handler) events(w http.ResponseWriter, r *http.Request) {
	x, may := h.read(w, r)
	if x == nil {
		return
	}
	defer h.feeds.leave(x)
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	n, gap := x.start(r.Header.Get("Last-Event-ID"))
	if gap {
		fmt.Fprint(w, "event: lost\ndata: 0\n\n")
	}
	alive := time.NewTicker(15 * time.Second)
	defer alive.Stop()
	for {
		all, lost, next, news := x.from(n)
		n = next
		out.SetWriteDeadline(time.Now().Add(streamWrite))
		if lost > 0 {
			fmt.Fprintf(w, "event: lost\ndata: %d\n\n", lost)
		}
		all = permitted(all, may)
		for i := range all {
			b, _ := json.Marshal(&all[i])
			fmt.Fprintf(w, "id: %s\ndata: %s\n\n", all[i].ID, b)
		}
		if out.Flush() != nil {
			return
		}
		select {
		case <-news:
		case <-alive.C:
			if !may("") {
				return // the rules have changed
			}
			fmt.Fprint(w, ": \n\n")
		case <-r.Context().Done():
			return
		case <-h.feeds.ctx.Done():
			return
		}
	}
}

// poll is GET /poll.
func (h *Handler) poll(w http.ResponseWriter, r *http.Request) {
	x, may := h.read(w, r)
	if x == nil {
		return
	}
	defer h.feeds.leave(x)
	var seconds uint
	fmt.Sscan(r.URL.Query().Get("wait"), &seconds)
	end := time.NewTimer(min(time.Duration(seconds), 60) * time.Second)
	defer end.Stop()
	n, gap := x.start(r.URL.Query().Get("after"))
	for {
		all, lost, next, news := x.from(n)
		if all = permitted(all, may); len(all) == 0 {
			select {
			case <-news:
				n = next
				continue
			case <-end.C:
			case <-r.Context().Done():
			case <-h.feeds.ctx.Done():
			}
		}
		answer(w, struct {
			Events []event `json:"events"`
			After  string  `json:"after"`
			Lost   uint64  `json:"lost"`
			Gap    bool    `json:"gap"`
		}{append([]event{}, all...), x.id(next), lost, gap})
		return
	}
}
