package dunlin

import (
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/given"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the cache of routes that a connection has. A route is only kept as long as it is
// small, there is memory, and the client publishes.

// receivers is how a Broker finds out who gets a message.
type receivers struct {
	tree        *subs.Tree
	caches      routeCaches
	numbers     lock.RWMutex[numbersLock]
	byNumber    []*session  // by session.num; guarded by numbers
	mounts      atomic.Bool // a mount point was granted
	renames     atomic.Bool // a Client Identifier was granted
	given       *given.Table[*session, *journal.Batch]
	findMembers sync.Once // runs followPrincipals
}

const (
	routeSlots    = 256
	maxRouteTopic = 1 << 10          // bytes of a topic whose route is kept
	maxRoutes     = 256 << 10        // bytes of the routes of one connection
	routeIdle     = 30 * time.Second // routes that nobody used for so long, or up to twice that, go
	routeShare    = 8                // all routes have one part in so many of MaxMemory
	routeRest     = 1024             // so many topics get no route after one that had no room
)

// What a route takes besides its topic.
const (
	routeCost  = 256 // itself
	targetCost = 64  // a receiver
)

// routes is the cache of a connection: the last topic, and a small table for those that publish to
// many. Its state says who owns it.
type routes struct {
	state atomic.Int32 // a routesState
	idle  atomic.Bool  // they have not been used since sweepRoutes came by
	at    int32        // where they are in routeCaches. Guarded by its mu
	size  int32        // bytes, as they are counted
	rest  int32        // so many topics get no new place
	last  *route
	table *routeTable // nil until a second topic
}

type routesState = int32

// Whoever has routeCaches.mu makes evicted of parked; all else the reader of the connection does.
const (
	parked  routesState = iota // the reader waits: others may take them away
	inUse                      // they are the reader's
	evicted                    // they are no longer kept
)

// A routeTable has the route of a topic once the topic has come twice while no other one took its
// slot: a client that publishes to more topics than there are slots does not turn over routes that
// nobody finds again.
type routeTable struct {
	seen   [routeSlots]uint32 // a part of the hash of the topic that came last
	routes [routeSlots]*route
}

const tableCost = routeSlots * 12

// A routeCaches is all routes that are kept.
type routeCaches struct {
	n       atomic.Int64           // len(all), for those who do not hold mu
	pressed atomic.Bool            // sweepRoutes comes soon
	mu      lock.Mutex[routesLock] // guards what follows
	all     []*routes
	sweep   timers.Timer
}

// cachedRoutes returns the routes of c for its reader, until parkRoutes.
func (c *conn) cachedRoutes() *routes {
	if c.routing {
		return c.routes
	}
	return c.unparkRoutes()
}

func (c *conn) unparkRoutes() *routes {
	rs := c.routes
	if rs == nil || !rs.state.CompareAndSwap(parked, inUse) {
		rs = c.b.keepRoutes(rs)
		c.routes = rs
	}
	c.routing = true
	if rs.idle.Load() {
		rs.idle.Store(false)
	}
	return rs
}

// lastTopic returns the Topic Name that c published to last, nil if that is not known, or if the
// client has a mount point. Only the reader may call it. It is good until another route is looked
// for.
func (c *conn) lastTopic() []byte {
	if !c.routing || c.routes.last == nil || c.readExtra().mount != "" {
		return nil
	}
	return c.routes.last.topic
}

// parkRoutes ends what cachedRoutes began, before the reader waits.
func (c *conn) parkRoutes() {
	if c.routing {
		c.routing = false
		c.routes.state.Store(parked)
	}
}

// dropRoutes forgets all routes. The reader calls it.
func (c *conn) dropRoutes() {
	c.parkRoutes()
	rs, rc := c.routes, &c.b.caches
	if c.routes = nil; rs == nil {
		return
	}
	rc.mu.Lock()
	defer rc.mu.Unlock()
	if rs.state.CompareAndSwap(parked, evicted) {
		c.b.forgetRoutesLocked(rs)
	}
}

// keepRoutes returns routes for a reader that had rs, or nothing, and could not take it.
func (b *Broker) keepRoutes(rs *routes) *routes {
	rc := &b.caches
	rc.mu.Lock()
	defer rc.mu.Unlock()
	if rs != nil && rs.state.CompareAndSwap(parked, inUse) { // evictRoutes had it for a moment
		return rs
	}
	if len(rc.all) == 0 {
		b.due.Set(&rc.sweep, time.Now().Add(routeIdle), b.sweepRoutes)
	}
	rs = &routes{at: int32(len(rc.all))}
	rs.state.Store(inUse)
	rc.all = append(rc.all, rs)
	rc.n.Add(1)
	return rs
}

// forgetRoutesLocked is the end of what keepRoutes began. routeCaches.mu is held, and rs is
// evicted.
func (b *Broker) forgetRoutesLocked(rs *routes) {
	rc := &b.caches
	last := len(rc.all) - 1
	rc.all[rs.at] = rc.all[last]
	rc.all[rs.at].at = rs.at
	rc.all[last] = nil
	if rc.all = rc.all[:last]; last < cap(rc.all)/4 {
		rc.all = slices.Clone(rc.all)
	}
	rc.n.Add(-1)
	b.memory.Recount(budget.Routes, &rs.size, 0)
	rs.last, rs.table = nil, nil
}

// sweepRoutes drops the routes of connections that have not used them since it was last called, and
// of those that have more than their share while all together have more than theirs.
func (b *Broker) sweepRoutes(now time.Time) {
	b.caches.pressed.Store(false)
	b.evictRoutes(func(rs *routes) bool {
		return rs.idle.Swap(true) || b.routesOver(sharedAbove) && int64(rs.size) > b.routesOfOne()
	})
	rc := &b.caches
	rc.mu.Lock()
	defer rc.mu.Unlock()
	if len(rc.all) > 0 {
		b.due.Set(&rc.sweep, now.Add(routeIdle), b.sweepRoutes)
	}
}

// evictPage is how many routes evictRoutes looks at before it lets others have the lock.
const evictPage = 256

// evictRoutes drops the routes that are not in use and for which goes says so.
func (b *Broker) evictRoutes(goes func(rs *routes) bool) {
	rc := &b.caches
	page := func(end int) int {
		rc.mu.Lock()
		defer rc.mu.Unlock()
		end = min(end, len(rc.all))
		i := end - 1
		// what takes the place of one that goes was looked at
		for ; i >= max(end-evictPage, 0); i-- {
			switch rs := rc.all[i]; {
			case !rs.state.CompareAndSwap(parked, evicted):
			case goes(rs):
				b.forgetRoutesLocked(rs)
			default:
				rs.state.Store(parked)
			}
		}
		return i + 1
	}
	for end := math.MaxInt; end > 0; {
		end = page(end)
	}
}

// pressRoutes has sweepRoutes come soon, and no more often than that.
func (b *Broker) pressRoutes() {
	rc := &b.caches
	if rc.pressed.CompareAndSwap(false, true) {
		rc.mu.Lock()
		defer rc.mu.Unlock()
		b.due.Set(&rc.sweep, time.Now().Add(time.Second), b.sweepRoutes)
	}
}

// sharedAbove is from how many percent of what all may have together each connection has to do with
// its share.
const sharedAbove = 75

// routesOver says whether all routes together have more than so many percent of what they may have.
func (b *Broker) routesOver(percent int64) bool {
	return b.memory.Of(budget.Routes) > b.memory.Limit()/routeShare/100*percent
}

// routesOfOne is how many bytes of routes a connection may have.
func (b *Broker) routesOfOne() int64 {
	return min(maxRoutes, b.memory.Limit()/routeShare/max(b.caches.n.Load(), 1))
}

// hasRoomForRoutes says whether somebody may have so many bytes of routes.
func (b *Broker) hasRoomForRoutes(size int32) bool {
	return int64(size) <= b.routesOfOne() && !b.routesOver(100) && !b.memory.Over(leaveQoS0)
}

// of returns the place for the route of topic, which may hold that of another one, or nil: topic
// has none.
func (rs *routes) of(b *Broker, topic []byte) *route {
	r := rs.last
	if r != nil && string(r.topic) == string(topic) {
		return r
	}
	switch {
	case len(topic) > maxRouteTopic:
		return nil
	case r == nil && rs.table == nil:
		r = rs.place(b)
	default:
		r = rs.slot(b, topic)
	}
	if r != nil {
		if rs.last != nil && !rs.last.inTable {
			rs.count(b, -rs.last.size)
		}
		rs.last = r
	}
	return r
}

// room says whether there is room for n bytes more.
func (rs *routes) room(b *Broker, n int32) bool {
	if rs.rest > 0 {
		rs.rest--
		return false
	}
	return rs.fits(b, n)
}

// fits says whether there is room for n bytes more, and if not, lets it be for a while.
func (rs *routes) fits(b *Broker, n int32) bool {
	if b.hasRoomForRoutes(rs.size + n) {
		return true
	}
	if rs.rest = routeRest; b.routesOver(sharedAbove) {
		b.pressRoutes()
	}
	return false
}

// place returns a new route, nil if there is no room for it.
func (rs *routes) place(b *Broker) *route {
	if !rs.room(b, routeCost) {
		return nil
	}
	rs.count(b, routeCost)
	return &route{in: rs, size: routeCost}
}

// slot returns the place of topic in the table, nil if it has none yet.
func (rs *routes) slot(b *Broker, topic []byte) *route {
	if rs.table == nil {
		if !rs.room(b, tableCost) {
			return nil
		}
		rs.table = new(routeTable)
		rs.count(b, tableCost)
	}
	h := maphash.Bytes(b.seed, topic)
	i, seen := h%routeSlots, uint32(h>>32)
	if rs.table.seen[i] != seen {
		rs.table.seen[i] = seen
		return nil
	}
	if rs.table.routes[i] == nil {
		if r := rs.place(b); r != nil {
			r.inTable = true
			rs.table.routes[i] = r
		}
	}
	return rs.table.routes[i]
}

// filled counts what r takes now, if it has a place in the cache of a connection. It loses that if
// there is no room for it, and is then good for this message alone.
func (r *route) filled(b *Broker) {
	rs := r.in
	if rs == nil {
		return
	}
	n := r.bytes()
	rs.count(b, n-r.size)
	r.size = n
	if rs.fits(b, 0) {
		return
	}
	if r.inTable {
		rs.table.routes[maphash.Bytes(b.seed, r.topic)%routeSlots] = nil
	}
	rs.count(b, -n)
	rs.last, r.in = nil, nil
}

func (rs *routes) count(b *Broker, n int32) {
	b.memory.Recount(budget.Routes, &rs.size, int(rs.size+n))
}

// bytes is what r takes, the extras of its targets included.
func (r *route) bytes() int32 {
	n := routeCost + cap(r.topic) + len(r.text) + cap(r.targets)*targetCost
	n += cap(r.ids)*2*idBytes + min(cap(r.targets), cap(r.ids))*extraCost
	for i := range r.shared {
		n += targetCost + cap(r.shared[i].members)*(targetCost+extraCost+2*idBytes)
	}
	return int32(min(n, math.MaxInt32/2))
}

// keepScratch is how much a turn may hold while it waits.
const keepScratch = 64 << 10

// trim is called before t waits. It gives up memory that t has needed for many receivers, and
// references to the packet that it has handled.
func (t *turn) trim() {
	t.pub, t.out.raw, t.out.lent = packets.Publish{}, nil, packets.Message{}
	if t.route.bytes() > keepScratch {
		t.route = route{}
	}
	if t.matches.Bytes() > keepScratch {
		t.matches = subs.Matches{}
	}
	t.out.msg, t.out.topic = nil, ""
	for i := range t.out.frames {
		if f := &t.out.frames[i]; cap(f.own) > keepScratch {
			*f = frame{}
		}
	}
}
