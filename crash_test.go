package dunlin

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// This file kills a Broker at random moments and checks that nothing acknowledged is lost, nothing of QoS 2 comes twice, and order is
// kept. Everything runs in virtual time, driven by one goroutine; what is random comes from a seed.

// A simClient is a client as the standard wants it: what it has sent and not got acknowledged it sends again, what it has received at
// QoS 2 it remembers until PUBREL. It outlives Brokers.
type simClient struct {
	w       *simWorld
	id      string
	version packets.Version
	clean   bool
	filter  string // subscribes to it; empty: publishes
	qos     packets.QoS

	mu     sync.Mutex
	nc     net.Conn // written with mu held
	in     []byte   // guarded by mu
	eof    bool     // guarded by mu
	ready  bool     // CONNACK came
	subbed bool     // SUBACK came, once

	// Publishing.
	next    int
	log     []string // all that it published
	flight  []*simOut
	lastID  uint16
	opened  int
	acked   map[string]*simOut // by topic, the last one retained and acknowledged
	refused int

	// Subscribing.
	got      []string        // payloads, in order of arrival
	received map[uint16]bool // QoS 2 identifiers
}

type simOut struct {
	id       uint16
	order    int // of all that the client opened
	qos      packets.QoS
	topic    string
	payload  string
	retain   bool
	released bool // PUBREC came
	dup      bool
}

type simWorld struct {
	t       *testing.T
	rnd     *rand.Rand
	store   *faultStore
	b       *Broker
	l       *listeners.Memory
	served  chan error
	clients []*simClient
	kills   int
	full    atomic.Bool // now and then the store has no room
	mixed   bool        // it had: what was refused was published once more, later
}

func (w *simWorld) start() {
	b, err := New(Config{Authenticator: hooks.AllowAll, Logger: quiet, MaxInflight: 8, Store: w.store})
	if err != nil {
		w.t.Fatal(err)
	}
	w.b, w.l, w.served = b, listeners.NewMemory(), make(chan error, 1)
	go func(b *Broker, l *listeners.Memory, served chan error) { served <- b.Serve(l) }(b, w.l, w.served)
}

// kill drops everything that is not committed, and what is on its way to clients.
func (w *simWorld) kill() {
	w.kills++
	for _, c := range w.clients {
		c.cut()
	}
	w.store = w.store.kill()
	w.setPace()
	w.b.Close()
	<-w.served
	w.start()
}

// setPace makes the store take its time.
func (w *simWorld) setPace() {
	slow := time.Duration(w.rnd.IntN(20)) * time.Millisecond
	rnd := rand.New(rand.NewPCG(w.rnd.Uint64(), 0)) // of the committer's goroutine
	room := 0
	w.store.before = func(ops []store.Op) error {
		time.Sleep(slow)
		if room--; room < 0 && w.full.Load() {
			room = rnd.IntN(40)
		}
		if w.full.Load() && room < 15 && (room < 5 || slices.ContainsFunc(ops, adds)) {
			return fmt.Errorf("test: %w", store.ErrFull)
		}
		return nil
	}
}

// adds says whether an operation needs more room.
func adds(op store.Op) bool {
	switch op.(type) {
	case *store.Publish, *store.Received, *store.PutSession, *store.PutSubscription:
		return true
	}
	return false
}

func (c *simClient) cut() {
	if c.nc == nil {
		return
	}
	c.nc.Close()
	c.mu.Lock()
	c.nc, c.in, c.eof = nil, nil, false
	c.mu.Unlock()
	c.ready = false
}

func (c *simClient) send(p packets.Packet) {
	b, err := p.Append(nil, c.version)
	if err != nil {
		c.w.t.Fatalf("%s: %v", c.id, err)
	}
	if c.nc != nil {
		c.nc.Write(b) // one that the broker has closed shows in what is read
	}
}

func (c *simClient) connect() {
	nc, err := c.w.l.Dial()
	if err != nil {
		c.w.t.Fatal(err)
	}
	c.mu.Lock()
	c.nc = nc
	c.mu.Unlock()
	p := &packets.Connect{Version: c.version, CleanStart: c.clean, ClientID: c.id}
	if c.version == packets.V5 && !c.clean {
		p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 86400)
	}
	if c.version == packets.V5 && c.w.rnd.IntN(2) == 0 {
		p.Properties = p.Properties.AppendUint(packets.ReceiveMaximum, uint32(1+c.w.rnd.IntN(5)))
	}
	if c.clean {
		clear(c.received)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := nc.Read(buf)
			c.mu.Lock()
			if c.nc == nc {
				c.in = append(c.in, buf[:n]...)
				c.eof = err != nil
			}
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	c.send(p)
}

// pump handles up to n packets that have come.
func (c *simClient) pump(n int) (handled int) {
	for ; handled < n && c.nc != nil; handled++ {
		c.mu.Lock()
		in, eof := c.in, c.eof
		c.mu.Unlock()
		if len(in) == 0 {
			if eof {
				c.cut()
			}
			return handled
		}
		h, err := packets.ParseHeader(in, c.version)
		if err == packets.ErrShort {
			return handled
		} else if err != nil || len(in) < h.Len+h.Remaining {
			if err != nil {
				c.w.t.Fatalf("%s: %v", c.id, err)
			}
			return handled
		}
		p := packetOf(h.Type)
		if err := p.Decode(h, slices.Clone(in[h.Len:h.Len+h.Remaining]), c.version); err != nil {
			c.w.t.Fatalf("%s: %v: %v", c.id, h.Type, err)
		}
		c.mu.Lock()
		c.in = c.in[h.Len+h.Remaining:]
		c.mu.Unlock()
		c.handle(p)
	}
	return handled
}

func packetOf(t packets.Type) packets.Packet {
	switch t {
	case packets.TypeConnack:
		return new(packets.Connack)
	case packets.TypePublish:
		return new(packets.Publish)
	case packets.TypeSuback:
		return new(packets.Suback)
	case packets.TypeUnsuback:
		return new(packets.Unsuback)
	case packets.TypeDisconnect:
		return new(packets.Disconnect)
	case packets.TypePingresp:
		return new(packets.Pingresp)
	}
	return new(packets.Ack)
}

func (c *simClient) handle(p packets.Packet) {
	switch p := p.(type) {
	case *packets.Connack:
		if p.Code != packets.Success {
			c.cut()
			return
		}
		c.ready = true
		if !c.clean && c.subbed && !p.SessionPresent {
			c.w.t.Fatalf("%s: the session is gone", c.id)
		}
		if c.filter != "" && (!c.subbed || c.clean) {
			c.send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: c.filter, QoS: c.qos}}})
		}
		for _, o := range c.flight {
			c.resend(o)
		}
	case *packets.Suback:
		if c.subbed = !p.Codes[0].Failed(); !c.subbed {
			c.cut()
		}
	case *packets.Publish:
		c.publish(p)
	case *packets.Ack:
		c.ack(p)
	}
}

func (c *simClient) resend(o *simOut) {
	if o.released {
		c.send(&packets.Ack{Kind: packets.TypePubrel, PacketID: o.id})
		return
	}
	c.send(&packets.Publish{PacketID: o.id, QoS: o.qos, Topic: []byte(o.topic), Payload: []byte(o.payload), Retain: o.retain, Dup: o.dup})
	o.dup = true
}

func (c *simClient) publish(p *packets.Publish) {
	switch p.QoS {
	case packets.QoS1:
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
	case packets.QoS2:
		fresh := !c.received[p.PacketID]
		c.received[p.PacketID] = true
		c.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: p.PacketID})
		if !fresh {
			return
		}
	}
	if !p.Retain { // what a new subscription brings is no new message
		c.got = append(c.got, string(p.Payload))
	}
}

func (c *simClient) ack(a *packets.Ack) {
	i := slices.IndexFunc(c.flight, func(o *simOut) bool { return o.id == a.PacketID })
	switch a.Kind {
	case packets.TypePubrel:
		delete(c.received, a.PacketID)
		c.send(&packets.Ack{Kind: packets.TypePubcomp, PacketID: a.PacketID})
		return
	case packets.TypePubrec:
		if i < 0 {
			return
		}
		if a.Code.Failed() {
			c.again(i)
			return
		}
		c.flight[i].released = true
		c.done(c.flight[i])
		c.send(&packets.Ack{Kind: packets.TypePubrel, PacketID: a.PacketID})
		return
	}
	if i < 0 {
		return
	}
	if a.Kind == packets.TypePuback && a.Code.Failed() {
		c.again(i)
		return
	}
	if a.Kind == packets.TypePuback {
		c.done(c.flight[i])
	}
	c.flight = slices.Delete(c.flight, i, i+1)
}

// again publishes what was refused once more, as a new message, behind all others.
func (c *simClient) again(i int) {
	o := c.flight[i]
	c.flight = slices.Delete(c.flight, i, i+1)
	c.refused++
	c.open(o.qos, o.topic, o.payload, o.retain)
}

// done notes that the broker has taken the message over.
func (c *simClient) done(o *simOut) {
	if last := c.acked[o.topic]; o.retain && (last == nil || o.order > last.order) {
		c.acked[o.topic] = o
	}
}

func (c *simClient) open(qos packets.QoS, topic, payload string, retain bool) {
	for {
		c.lastID++
		if c.lastID == 0 {
			c.lastID = 1
		}
		if !slices.ContainsFunc(c.flight, func(o *simOut) bool { return o.id == c.lastID }) {
			break
		}
	}
	c.opened++
	o := &simOut{id: c.lastID, order: c.opened, qos: qos, topic: topic, payload: payload, retain: retain}
	c.flight = append(c.flight, o)
	if c.ready {
		c.resend(o)
	}
}

// more publishes something new.
func (c *simClient) more() {
	if len(c.flight) >= 8 {
		return
	}
	qos := packets.QoS(1 + c.w.rnd.IntN(2))
	c.next++
	retain := c.w.rnd.IntN(4) == 0
	topic := fmt.Sprintf("t/%s/q%d", c.id, qos)
	if retain { // one QoS only, so that there is one order
		topic, qos = "t/"+c.id+"/r", packets.QoS2
	}
	payload := fmt.Sprintf("%s %s %d", topic, c.id, c.next)
	c.log = append(c.log, payload)
	c.open(qos, topic, payload, retain)
}

// step does one random thing.
func (w *simWorld) step() {
	c := w.clients[w.rnd.IntN(len(w.clients))]
	switch n := w.rnd.IntN(100); {
	case n < 2:
		if w.rnd.IntN(3) == 0 {
			w.kill()
		}
	case n < 10 && c.nc != nil:
		c.cut()
	case n < 40 && c.nc == nil:
		c.connect()
	case n < 60 && c.filter == "":
		c.more()
	case n < 75:
		time.Sleep(time.Duration(w.rnd.IntN(30)) * time.Millisecond)
	default:
		c.pump(1 + w.rnd.IntN(6))
	}
}

// calm lets everything come to its end.
func (w *simWorld) calm() {
	for quiet := 0; quiet < 20; {
		quiet++
		for _, c := range w.clients {
			if c.nc == nil {
				c.connect()
				quiet = 0
			}
			time.Sleep(5 * time.Millisecond)
			synctest.Wait()
			if c.pump(1000) > 0 || len(c.flight) > 0 {
				quiet = 0
			}
		}
	}
}

func (w *simWorld) close() {
	for _, c := range w.clients {
		c.cut()
	}
	w.b.Close()
	<-w.served
}

// check compares what subscribers got with what was published.
func (w *simWorld) check() {
	var publishers, members []*simClient
	for _, c := range w.clients {
		switch {
		case c.filter == "":
			publishers = append(publishers, c)
		case strings.HasPrefix(c.filter, "$share"):
			members = append(members, c)
		default:
			w.checkOne(c.id, c.got, !c.clean, c.qos, true)
		}
	}
	var all []string
	for _, c := range members {
		all = append(all, c.got...)
	}
	w.checkOne("the group", all, true, packets.QoS2, false)
	for _, p := range publishers {
		for topic, o := range p.acked {
			// What was refused without the client hearing of it is sent again, behind what was accepted since.
			if m := w.b.retained.Get(topic); m == nil || string(m.Payload) != o.payload && !w.mixed {
				w.t.Errorf("retained on %s is %v, the last acknowledged was %q", topic, m, o.payload)
			}
		}
	}
}

// checkOne checks what one receiver got of everything that was published: that nothing is missing if it must not, nothing of QoS 2
// twice, and each topic in order.
func (w *simWorld) checkOne(who string, got []string, complete bool, qos packets.QoS, ordered bool) {
	times := map[string]int{}
	last := map[string]int{}
	for _, m := range got {
		f := strings.Fields(m) // topic, publisher, number
		n, _ := strconv.Atoi(f[2])
		if times[m]++; times[m] > 1 {
			if qos == packets.QoS2 && !strings.HasSuffix(f[0], "/q1") {
				w.t.Errorf("%s got %q %d times", who, m, times[m])
			}
			continue
		}
		// Who was away may see the repetition of a QoS 1 message before the message.
		if ordered && n < last[f[0]] && !w.mixed && (complete || !strings.HasSuffix(f[0], "/q1")) {
			w.t.Errorf("%s got %q after number %d", who, m, last[f[0]])
		}
		last[f[0]] = n
	}
	if !complete {
		return
	}
	for _, p := range w.clients {
		for _, m := range p.log {
			if times[m] == 0 {
				w.t.Errorf("%s never got %q", who, m)
			}
		}
	}
}

func newWorld(t *testing.T, rnd *rand.Rand) *simWorld {
	w := &simWorld{t: t, rnd: rnd, store: &faultStore{Store: new(memory.Store)}}
	add := func(id string, v packets.Version, filter string, qos packets.QoS, clean bool) *simClient {
		c := &simClient{w: w, id: id, version: v, filter: filter, qos: qos, clean: clean, received: map[uint16]bool{}, acked: map[string]*simOut{}}
		w.clients = append(w.clients, c)
		return c
	}
	add("s2", packets.V5, "t/#", packets.QoS2, false)
	add("s2old", packets.V311, "t/+/#", packets.QoS2, false)
	add("s1", packets.V5, "t/#", packets.QoS1, false)
	add("clean", packets.V5, "t/#", packets.QoS2, true)
	add("m1", packets.V5, "$share/g/t/#", packets.QoS2, false)
	add("m2", packets.V311, "$share/g/t/#", packets.QoS2, false)
	add("p5", packets.V5, "", 0, false)
	add("p3", packets.V311, "", 0, false)
	w.setPace()
	w.start()
	return w
}

// TestCrashes is the model of the kill test in package internal/crash, at thousands of kills a minute.
func TestCrashes(t *testing.T) {
	seed, rounds := rand.Uint64(), 60
	if testing.Short() {
		rounds = 10
	}
	if s := os.Getenv("DUNLIN_CRASH_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed, rounds = n, 1
	}
	kills, messages, refused := 0, 0, 0
	for i := range rounds {
		s := seed + uint64(i)
		ok := t.Run(strconv.FormatUint(s, 10), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, rand.New(rand.NewPCG(s, 0)))
				defer w.close()
				w.calm() // everybody is there once, before the first message
				w.full.Store(s%4 == 3)
				w.mixed = s%4 == 3
				for range 1500 {
					w.step()
				}
				w.full.Store(false)
				w.calm()
				w.check()
				kills += w.kills
				for _, c := range w.clients {
					messages += c.next
					refused += c.refused
				}
			})
		})
		if !ok {
			t.Fatalf("run it again with DUNLIN_CRASH_SEED=%d", s)
		}
	}
	t.Logf("%d kills, %d messages, %d refusals; seed %d", kills, messages, refused, seed)
}
