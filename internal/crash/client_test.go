package crash

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A client keeps its half of a Session over all connections and brokers. It is run by one
// goroutine.
type client struct {
	id      string
	version packets.Version
	addr    *atomic.Value // string: where the broker is now
	rnd     *rand.Rand
	stop    <-chan struct{} // closed: publish nothing new
	quit    <-chan struct{} // closed: end
	errs    *problems

	// A publisher.
	filter string // empty: it publishes
	next   int
	lastID uint16
	flight []*sending
	log    []byte              // published, in order: indexes of kinds
	last   map[string]*sending // retained and acknowledged last, by topic
	acked  atomic.Int64
	idle   atomic.Bool // nothing is in flight, and stop is closed
	cut    bool        // the connection takes nothing any more
	size   int         // payloads are shorter than about this
	slow   atomic.Bool // a message every few milliseconds is enough

	// What is allowed where the store may have no room.
	mayRefuse bool         // a publish or a CONNECT may be refused for that reason
	refused   atomic.Int64 // publishes
	turned    atomic.Int64 // connections that were refused
	opened    atomic.Int64 // connections that were accepted

	// A subscriber.
	stay   func() time.Duration // how long it stays connected; nil: as long as it can
	away   func() time.Duration // how long it then stays away
	ids    map[uint16]bool      // QoS 2, not released
	ledger ledger
	known  bool // the subscription is made
}

// slowly is how long a client that is slow waits before each message.
const slowly = 10 * time.Millisecond

// kinds are the last levels of a publisher's topics: QoS 1, QoS 2, and retained with QoS 2.
var kinds = []string{"q1", "q2", "r"}

// refusedKind marks the kind of a message that the broker has refused.
const refusedKind = 0x80

type sending struct {
	id       uint16
	qos      packets.QoS
	order    int
	topic    string
	payload  string
	retain   bool
	released bool
	dup      bool
}

// problems gathers what clients find wrong.
type problems struct {
	mu   sync.Mutex
	list []string
}

func (p *problems) add(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.list) < 20 {
		p.list = append(p.list, fmt.Sprintf(format, args...))
	}
}

func (p *problems) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.list)
}

// run connects again and again until quit is closed.
func (c *client) run() {
	for {
		select {
		case <-c.quit:
			return
		default:
		}
		c.session()
		pause := 2 * time.Millisecond
		if c.away != nil {
			pause = c.away()
		}
		select {
		case <-c.quit:
			return
		case <-time.After(pause):
		}
	}
}

// session is one connection, to its end.
func (c *client) session() {
	nc, err := net.Dial("tcp", c.addr.Load().(string))
	if err != nil {
		return
	}
	c.cut = false
	over, closed := make(chan struct{}), make(chan struct{})
	defer func() { // the next connection is made when this one is closed
		close(over)
		<-closed
	}()
	var timer <-chan time.Time
	if c.stay != nil {
		timer = time.After(c.stay())
	}
	go func() { // session waits for it
		defer close(closed)
		defer nc.Close()
		select {
		case <-c.quit:
		case <-timer:
		case <-over:
		}
	}()
	p := &packets.Connect{Version: c.version, ClientID: c.id}
	if c.version == packets.V5 {
		p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 86400)
	}
	r := packets.NewReader(nc, packets.Limits{})
	r.SetVersion(c.version)
	if !c.send(nc, p) {
		return
	}
	for {
		q, err := r.ReadPacket()
		if err != nil || !c.handle(nc, q) {
			return
		}
	}
}

// send writes p. When the broker is gone it writes nothing, and what has come from it is still read:
// a refusal must not be missed, or the message would be sent again behind later ones.
func (c *client) send(nc net.Conn, p packets.Packet) bool {
	if c.cut {
		return true
	}
	b, err := p.Append(nil, c.version)
	if err != nil {
		c.errs.add("%s: %v", c.id, err)
		return false
	}
	_, err = nc.Write(b)
	c.cut = err != nil
	return true
}

// handle returns false to end the connection.
func (c *client) handle(nc net.Conn, q packets.Packet) bool {
	switch q := q.(type) {
	case *packets.Connack:
		return c.welcome(nc, q)
	case *packets.Suback:
		c.known = !q.Codes[0].Failed()
		return c.known
	case *packets.Publish:
		return c.receive(nc, q)
	case *packets.Ack:
		return c.ack(nc, q)
	case *packets.Disconnect:
		c.errs.add("%s: DISCONNECT with %v", c.id, q.Code)
	}
	return true
}

func (c *client) welcome(nc net.Conn, a *packets.Connack) bool {
	switch {
	case !a.Code.Failed():
		c.opened.Add(1)
	case c.mayRefuse && (a.Code == packets.QuotaExceeded || c.version < packets.V5 &&
		a.Code == packets.ServerUnavailable):
		c.turned.Add(1)
		return false
	default:
		text, _ := a.Properties.Text(packets.ReasonString)
		c.errs.add("%s: refused with %v %q", c.id, a.Code, text)
		return false
	}
	if c.filter != "" {
		if c.known && !a.SessionPresent {
			c.errs.add("%s: the Session is gone", c.id)
		}
		return c.known || c.send(nc, &packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: c.filter, QoS: packets.QoS2}}})
	}
	for _, s := range c.flight {
		if !c.resend(nc, s) {
			return false
		}
	}
	return c.fill(nc)
}

func (c *client) receive(nc net.Conn, q *packets.Publish) bool {
	fresh := true
	kind := packets.TypePuback
	if q.QoS == packets.QoS2 {
		fresh, kind = !c.ids[q.PacketID], packets.TypePubrec
		c.ids[q.PacketID] = true
	}
	if fresh {
		if err := c.ledger.record(string(q.Topic), string(q.Payload)); err != nil {
			c.errs.add("%s: %v", c.id, err)
		}
	}
	return q.QoS == packets.QoS0 || c.send(nc, &packets.Ack{Kind: kind, PacketID: q.PacketID})
}

func (c *client) ack(nc net.Conn, a *packets.Ack) bool {
	if a.Kind == packets.TypePubrel {
		delete(c.ids, a.PacketID)
		return c.send(nc, &packets.Ack{Kind: packets.TypePubcomp, PacketID: a.PacketID})
	}
	i := slices.IndexFunc(c.flight, func(s *sending) bool { return s.id == a.PacketID })
	if i < 0 {
		return true
	}
	s := c.flight[i]
	if a.Code.Failed() && a.Kind != packets.TypePubcomp {
		if c.mayRefuse && a.Code == packets.QuotaExceeded && !s.released {
			return c.giveUp(nc, i)
		}
		c.errs.add("%s: %v with %v", c.id, a.Kind, a.Code)
		return false
	}
	if a.Kind != packets.TypePubcomp && !s.released {
		c.acked.Add(1)
		if old := c.last[s.topic]; s.retain && (old == nil || old.order < s.order) {
			c.last[s.topic] = s
		}
	}
	if a.Kind == packets.TypePubrec {
		s.released = true
		return c.send(nc, &packets.Ack{Kind: packets.TypePubrel, PacketID: s.id})
	}
	c.flight = slices.Delete(c.flight, i, i+1)
	return c.fill(nc)
}

// giveUp takes back what was refused for want of room, and goes on a little slower.
func (c *client) giveUp(nc net.Conn, i int) bool {
	c.log[c.flight[i].order-1] |= refusedKind
	c.flight = slices.Delete(c.flight, i, i+1)
	c.refused.Add(1)
	time.Sleep(time.Millisecond)
	return c.fill(nc)
}

func (c *client) resend(nc net.Conn, s *sending) bool {
	if s.released {
		return c.send(nc, &packets.Ack{Kind: packets.TypePubrel, PacketID: s.id})
	}
	p := &packets.Publish{PacketID: s.id, QoS: s.qos, Retain: s.retain, Dup: s.dup,
		Topic: []byte(s.topic), Payload: []byte(s.payload)}
	s.dup = true
	return c.send(nc, p)
}

// fill publishes until the window is full.
func (c *client) fill(nc net.Conn) bool {
	for len(c.flight) < 16 && !c.cut {
		select {
		case <-c.stop:
			c.idle.Store(len(c.flight) == 0)
			return true
		default:
		}
		if c.slow.Load() {
			time.Sleep(slowly)
		} else if c.rnd.IntN(16) == 0 {
			time.Sleep(time.Duration(c.rnd.IntN(4)) * time.Millisecond)
		}
		if !c.resend(nc, c.more()) {
			return false
		}
	}
	return true
}

// more makes a new message.
func (c *client) more() *sending {
	for {
		if c.lastID++; c.lastID != 0 && !slices.ContainsFunc(c.flight, func(s *sending) bool {
			return s.id == c.lastID
		}) {
			break
		}
	}
	c.next++
	kind := c.rnd.IntN(2)
	if c.rnd.IntN(8) == 0 {
		kind = 2
	}
	s := &sending{id: c.lastID, order: c.next, qos: packets.QoS(min(1+kind, 2)), retain: kind == 2,
		topic: "t/" + c.id + "/" + kinds[kind]}
	s.payload = fmt.Sprintf("%s %d|", s.topic, c.next) + strings.Repeat("x", c.rnd.IntN(c.size))
	c.log = append(c.log, byte(kind))
	c.flight = append(c.flight, s)
	return s
}
