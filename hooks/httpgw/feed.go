package httpgw

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what is kept for readers of events.

// feeds are those that somebody reads, or may come back to.
type feeds struct {
	b      *dunlin.Broker
	o      *Options
	users  *users
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup // goroutines of feeds, which close waits for

	mu sync.Mutex
	of map[string]*feed // guarded by mu; nil: closed
}

// A feed is what one user gets by one filter. It keeps the last events, so that no reader holds up
// another one, and each can go on where it was.
type feed struct {
	name    string // in its event IDs
	key     string // in feeds.of
	all     *feeds
	user    string
	sub     *dunlin.Subscription
	mount   string
	ended   chan struct{} // closed when nothing more comes
	readers int           // guarded by feeds.mu
	idle    *time.Timer   // guarded by feeds.mu; ends the feed

	mu   sync.Mutex
	ring []*kept       // guarded by mu, as are the next; numbers that are not there are lost
	next uint64        // the number of the next event
	news chan struct{} // closed when there is one
}

// A kept is an event as it is written.
type kept struct {
	number uint64
	topic  string
	data   []byte // JSON, without the ID

	readers int  // that are being sent it; guarded by feed.mu
	dropped bool // it is not in the ring any more; guarded by feed.mu
}

// eventBytes is what an event takes besides topic and JSON.
const eventBytes = 128

func (k *kept) size() int64 { return int64(len(k.topic)+len(k.data)) + eventBytes }

// enter makes the visitor a reader of a filter. leave must follow.
func (f *feeds) enter(v *visitor, filter string) (*feed, error) {
	mount := v.grant.MountPoint
	key := fmt.Sprintf("%q %q %q", v.user, mount, filter)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil {
		return nil, errClosed
	}
	x := f.of[key]
	if x == nil {
		var err error
		if x, err = f.beginLocked(v.user, mount, filter); err != nil {
			return nil, err
		}
		x.key, f.of[key] = key, x
		x.idle = time.AfterFunc(f.o.KeepFor, func() { f.expire(x) })
		f.tasks.Go(x.fill) // until the Subscription ends
	}
	x.idle.Stop()
	x.readers++
	return x, nil
}

// beginLocked makes a feed.
func (f *feeds) beginLocked(user, mount, filter string) (*feed, error) {
	if len(f.of) >= f.o.MaxRequests && !f.endIdleLocked() {
		return nil, packets.Errorf(packets.QuotaExceeded, "too many filters")
	}
	if err := f.users.filter(user, 1); err != nil {
		return nil, err
	}
	sub, err := f.b.Subscribe(f.ctx, mount+filter, &dunlin.SubscribeOptions{QoS: packets.QoS2,
		RetainHandling: dunlin.RetainHandlingSkip})
	if err != nil {
		f.users.filter(user, -1)
		return nil, err
	}
	return &feed{name: fmt.Sprintf("%016x", rand.Uint64()), all: f, user: user, sub: sub,
		mount: mount, news: make(chan struct{}), ended: make(chan struct{})}, nil
}

// leave is the end of enter.
func (f *feeds) leave(x *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x.readers--; x.readers == 0 && f.of[x.key] == x {
		x.idle.Reset(f.o.KeepFor)
	}
}

// expire ends a feed that nobody reads.
func (f *feeds) expire(x *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x.readers == 0 {
		f.endLocked(x)
	}
}

func (f *feeds) endLocked(x *feed) {
	if f.of[x.key] != x {
		return
	}
	delete(f.of, x.key)
	f.users.filter(x.user, -1)
	x.idle.Stop()
	x.sub.Close()
}

// endIdleLocked ends one feed that nobody reads, and says whether there was one.
func (f *feeds) endIdleLocked() bool {
	for _, x := range f.of {
		if x.readers == 0 {
			f.endLocked(x)
			return true
		}
	}
	return false
}

// close ends all feeds.
func (f *feeds) close() {
	f.cancel()
	f.mu.Lock()
	for _, x := range f.of {
		f.endLocked(x)
	}
	f.of = nil
	f.mu.Unlock()
	f.tasks.Wait()
}

// fill takes what comes, until the Subscription ends.
func (x *feed) fill() {
	missed := uint64(0)
	for m := range x.sub.Messages() {
		if n := x.sub.Dropped(); n > missed { // the broker had no room for them
			x.lose(n - missed)
			missed = n
		}
		if int64(len(m.Payload)) > x.all.o.MaxBody {
			x.lose(1)
			continue
		}
		e := newEvent(&m.Message, x.mount)
		x.add(&kept{topic: e.Topic, data: e.encode()})
	}
	x.all.mu.Lock()
	x.all.endLocked(x) // so that the next reader begins another one
	x.all.mu.Unlock()
	close(x.ended)
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(x.ring) > 0 {
		x.dropLocked()
	}
}

// add makes k the next event, and tells the readers. Older ones make room for it; if that is not
// enough, it is lost.
func (x *feed) add(k *kept) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k.number = x.next
	if len(x.ring) >= x.all.o.Keep {
		x.dropLocked()
	}
	fits := x.all.users.keep(x.user, k.size())
	for !fits && len(x.ring) > 0 {
		x.dropLocked()
		fits = x.all.users.keep(x.user, k.size())
	}
	if fits {
		x.ring = append(x.ring, k)
	}
	x.tellLocked(1)
}

// lose counts n events that there was no room for.
func (x *feed) lose(n uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.tellLocked(n)
}

// tellLocked tells the readers of n events more.
func (x *feed) tellLocked(n uint64) {
	x.next += n
	close(x.news)
	x.news = make(chan struct{})
}

// dropLocked drops the oldest event. It counts until no reader is being sent it.
func (x *feed) dropLocked() {
	k := x.ring[0]
	if k.dropped = true; k.readers == 0 {
		x.all.users.keep(x.user, -k.size())
	}
	x.ring[0] = nil
	x.ring = x.ring[1:]
}

// release is called when a reader has been sent events that from has returned, or will not be.
func (x *feed) release(events []*kept) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, k := range events {
		if k.readers--; k.readers == 0 && k.dropped {
			x.all.users.keep(x.user, -k.size())
		}
	}
}

// id is the ID of the event before number n.
func (x *feed) id(n uint64) string { return x.name + "-" + strconv.FormatUint(n, 10) }

// start returns the number of the event behind the one with that ID. Without an ID it is that of
// the next event. With an ID that is not of this feed it is that as well, and gap is true.
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

// A batch is some of the events that a reader has not got.
type batch struct {
	events []*kept
	lost   uint64          // how many are missing before the first
	next   uint64          // where to go on
	news   <-chan struct{} // closed when there are more
}

// batchBytes is how much a batch has, but for one event that is larger.
const batchBytes = 64 << 10

// from returns events from a number on. None is missing between two of them. Without events, and
// nothing lost, the reader has all. release must follow for the events.
func (x *feed) from(n uint64) (b batch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b.news = x.news
	at, _ := slices.BinarySearchFunc(x.ring, n, func(k *kept, n uint64) int {
		return cmp.Compare(k.number, n)
	})
	size := int64(0)
	for _, k := range x.ring[at:] {
		size += k.size()
		if len(b.events) > 0 && (k.number > n || size > batchBytes) {
			b.next = n
			return b
		}
		b.lost += k.number - n
		k.readers++
		b.events = append(b.events, k)
		n = k.number + 1
	}
	if len(b.events) == 0 {
		b.lost, n = x.next-n, x.next
	}
	b.next = n
	return b
}
