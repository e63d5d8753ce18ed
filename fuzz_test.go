package dunlin

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/script"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file drives the whole broker with what four clients might do: the input is a script of
// several connections (open, packets, bytes, close, time passing), and a model checks what comes
// back and what the broker says of itself.

const (
	fuzzLinks = 4
	// Client Identifiers: fewer than connections, so that they take one another over
	fuzzClients = 3
)

// A fuzzClient is what the model knows of one Client Identifier.
type fuzzClient struct {
	// Has been a member of a shared subscription, and may get a message twice
	shared  bool
	filters []string       // of its SUBSCRIBEs
	last    map[string]int // by publisher, QoS and topic: the last number that came
	// By number: the identifiers that a QoS 2 message came with
	twice      map[string]map[uint16]bool
	unreleased map[uint16]bool // identifiers of QoS 2 messages that it has published
}

func newFuzzClient(filters []string, shared bool) fuzzClient {
	return fuzzClient{filters: filters, shared: shared, last: map[string]int{},
		twice: map[string]map[uint16]bool{}, unreleased: map[uint16]bool{}}
}

// A fuzzLink is one connection with the streams of both directions.
type fuzzLink struct {
	script.Link
	client   int
	version  packets.Version
	sent     []byte // not yet decoded
	got      []byte
	accepted bool
	broken   bool // the client has sent what is no packet
	over     bool
	open     []*packets.Publish // deliveries to acknowledge
	aliases  map[uint32]string
}

type fuzzRun struct {
	t         *testing.T
	h         *coreHarness
	in        []byte
	links     [fuzzLinks]*fuzzLink
	clients   [fuzzClients]fuzzClient
	published map[string]bool // payloads
	repeated  map[string]bool // payloads under identifiers that were not released
	number    int
	log       []string
	seen      struct{ resumed, deliveries, dups, rels, closed int }
}

// FuzzBroker drives a broker with a script of several connections. Its tables hash with a new seed
// each time, so that coverage is never the same twice: fuzz with -fuzzminimizetime 1x.
func FuzzBroker(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		b := make([]byte, 300)
		for i := range b {
			b[i] = byte(rnd.IntN(256))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) { fuzzBroker(t, in) })
}

// TestRandomClients is FuzzBroker with random inputs, of which there are more in CI than a fuzzer
// would get to.
func TestRandomClients(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var deliveries, dups, resumed, rels int
	inputs := 300
	if raced() {
		inputs = 40
	}
	for range inputs {
		in := make([]byte, 50+rnd.IntN(1500))
		for i := range in {
			in[i] = byte(rnd.IntN(256))
		}
		r := fuzzBroker(t, in)
		if t.Failed() {
			t.Fatalf("input %q", in)
		}
		deliveries, dups, resumed, rels = deliveries+r.seen.deliveries, dups+r.seen.dups,
			resumed+r.seen.resumed, rels+r.seen.rels
	}
	t.Logf("%d deliveries, %d of them repeated, %d PUBRELs, %d sessions resumed", deliveries, dups,
		rels, resumed)
	if deliveries < 20*inputs || dups < inputs || resumed < inputs || rels < inputs {
		t.Error("too little happens")
	}
}

func fuzzBroker(t *testing.T, in []byte) (r *fuzzRun) {
	synctest.Test(t, func(t *testing.T) {
		r = &fuzzRun{t: t, in: in, published: map[string]bool{}, repeated: map[string]bool{}}
		cfg, err := configFor(nil)
		if err != nil {
			t.Fatal(err)
		}
		cfg.MaxInflight, cfg.ReceiveMaximum = 1+int(r.byte())%5, 1+int(r.byte())%20
		cfg.MaxQueuedMessages, cfg.Overflow = 1+int(r.byte())%50, Overflow(r.byte()%3)
		cfg.QueueQoS0, cfg.Shared = r.byte()%2 == 0, SharedStrategy(r.byte()%4)
		cfg.MaxRetained = 1 + int(r.byte())%4
		if r.h, err = newCoreHarness(cfg); err != nil {
			t.Fatal(err)
		}
		defer r.h.Close()
		for i := range r.clients {
			r.clients[i] = newFuzzClient(nil, false)
		}
		for steps := 0; len(r.in) > 0 && steps < 500 && !t.Failed(); steps++ {
			r.step()
			r.receive()
			r.check()
		}
		if t.Failed() {
			for _, l := range r.log {
				t.Log(l)
			}
		}
	})
	return r
}

// byte takes one byte of the input; behind its end they are zero.
func (r *fuzzRun) byte() byte {
	if len(r.in) == 0 {
		return 0
	}
	b := r.in[0]
	r.in = r.in[1:]
	return b
}

func (r *fuzzRun) errorf(format string, args ...any) {
	r.t.Helper()
	r.t.Errorf(format, args...)
}

var (
	fuzzTopics  = []string{"a", "a/b", "a/c", "b", "w"}
	fuzzFilters = []string{"a", "a/b", "a/+", "#", "+", "a/#", "w", "b", "$share/g/a/#",
		"$share/h/+"}
)

func (r *fuzzRun) step() {
	op, n := r.byte(), int(r.byte())
	l := r.links[int(op>>4)%fuzzLinks]
	if l == nil || l.over {
		if op%16 == 15 {
			r.advance(n)
			return
		}
		r.connect(int(op>>4)%fuzzLinks, n)
		return
	}
	switch op % 16 {
	case 0, 1, 2, 3, 4:
		r.number++
		p := &packets.Publish{
			Topic: []byte(fuzzTopics[n%len(fuzzTopics)]), QoS: packets.QoS(n / 5 % 3),
			Retain: n/15%4 == 0, Dup: n/60%4 == 0,
			Payload: []byte(strconv.Itoa(l.client) + " " + strconv.Itoa(r.number)),
		}
		if p.QoS == packets.QoS0 {
			p.Dup = false
		} else {
			p.PacketID = uint16(r.byte()%16) + 1
		}
		if l.version == packets.V5 && n%7 == 0 {
			p.Properties = p.Properties.AppendUint(packets.MessageExpiryInterval, uint32(n))
		}
		if p.Retain && n%11 == 0 {
			p.Payload = nil
		}
		r.send(l, p)
	case 5, 6:
		filters := fuzzFilters[:8]
		if l.client == 0 { // the others stay out of shares
			filters = fuzzFilters
		}
		s := packets.Subscription{Filter: filters[n%len(filters)], QoS: packets.QoS(n / 10 % 3)}
		p := &packets.Subscribe{PacketID: 1}
		if o := r.byte(); l.version == packets.V5 {
			s.NoLocal, s.RetainAsPublished, s.RetainHandling = o&1 > 0 && s.Filter[0] != '$',
				o&2 > 0, o>>2%3
			if o > 128 {
				p.Properties = p.Properties.AppendUint(packets.SubscriptionIdentifier, uint32(o))
			}
		}
		p.Subscriptions = append(p.Subscriptions, s)
		r.send(l, p)
	case 7:
		r.send(l, &packets.Unsubscribe{PacketID: 2,
			Filters: []string{fuzzFilters[n%len(fuzzFilters)]}})
	case 8, 9, 10:
		r.acknowledge(l, n)
	case 11:
		r.send(l, &packets.Ack{Kind: packets.TypePubrel, PacketID: uint16(n%16) + 1})
	case 12:
		if n > 40 { // most would end the connection
			r.acknowledge(l, n)
			return
		}
		b := make([]byte, n%8)
		for i := range b {
			b[i] = r.byte()
		}
		r.sendBytes(l, b)
	case 13:
		r.send(l, &packets.Pingreq{})
	case 14:
		if n%2 == 0 {
			r.log = append(r.log, "close")
			l.over = true
			l.Close()
		} else if n < 100 {
			r.send(l, &packets.Disconnect{})
		}
	case 15:
		r.advance(n * n / 1000)
	}
}

func (r *fuzzRun) advance(n int) {
	r.log = append(r.log, fmt.Sprint("advance ", n))
	r.h.Advance(time.Duration(n) * time.Second)
}

func (r *fuzzRun) connect(i, n int) {
	link, err := r.h.Open("")
	if err != nil {
		r.errorf("open: %v", err)
		return
	}
	l := &fuzzLink{Link: link, client: i % fuzzClients, version: packets.Version(4 + n>>2&1),
		aliases: map[uint32]string{}}
	if n%8 == 0 {
		l.client = n / 8 % fuzzClients
	}
	r.links[i] = l
	p := &packets.Connect{Version: l.version, ClientID: "c" + strconv.Itoa(l.client),
		CleanStart: n&24 == 24, KeepAlive: uint16(n)}
	if l.version == packets.V5 {
		if n&96 > 0 {
			p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, uint32(10*n))
		}
		if n&32 > 0 {
			p.Properties = p.Properties.AppendUint(packets.ReceiveMaximum,
				2).AppendUint(packets.TopicAliasMaximum, 3).AppendUint(packets.MaximumPacketSize,
				40)
		}
	}
	if n&64 > 0 {
		p.Will = &packets.Will{Topic: "w", Payload: []byte("will"), QoS: packets.QoS(n % 3),
			Retain: n&128 > 0}
		if l.version == packets.V5 && n&16 > 0 {
			p.Will.Properties = p.Will.Properties.AppendUint(packets.WillDelayInterval, uint32(n/3))
		}
		r.published["will"] = true
	}
	r.send(l, p)
}

// acknowledge answers one of the deliveries, or something that was none.
func (r *fuzzRun) acknowledge(l *fuzzLink, n int) {
	if len(l.open) == 0 {
		r.send(l, &packets.Ack{Kind: packets.TypePuback + packets.Type(n%2),
			PacketID: uint16(n)%16 + 1})
		return
	}
	p := l.open[n%len(l.open)]
	a := &packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID}
	if p.QoS == packets.QoS2 {
		a.Kind = packets.TypePubrec
		if n&64 > 0 {
			a.Kind = packets.TypePubcomp
		}
	}
	if n&128 > 0 && l.version == packets.V5 && a.Kind != packets.TypePubcomp {
		a.Code = packets.QuotaExceeded
	}
	if a.Kind != packets.TypePubrec {
		l.open = append(l.open[:n%len(l.open):n%len(l.open)], l.open[n%len(l.open)+1:]...)
	}
	r.send(l, a)
}

func (r *fuzzRun) send(l *fuzzLink, p packets.Packet) {
	b, err := p.Append(nil, l.version)
	if err != nil {
		return // not every combination can be written
	}
	r.sendBytes(l, b)
}

// sendBytes sends b and learns from what the connection has sent as a whole.
func (r *fuzzRun) sendBytes(l *fuzzLink, b []byte) {
	for l.sent = append(l.sent, b...); !l.broken; {
		p, n, err := packets.Decode(l.sent, l.version, packets.Limits{})
		if err != nil || n == 0 {
			l.broken = err != nil && err != packets.ErrShort
			break
		}
		r.log = append(r.log, fmt.Sprintf("c%d> %s", l.client, packets.Trace(p)))
		switch p := p.(type) {
		case *packets.Publish:
			r.published[string(p.Payload)] = true
			if p.QoS == packets.QoS2 && r.clients[l.client].unreleased[p.PacketID] {
				r.repeated[string(p.Payload)] = true
			}
		case *packets.Ack:
			if p.Kind == packets.TypePubrel {
				delete(r.clients[l.client].unreleased, p.PacketID)
			}
		case *packets.Subscribe:
			for _, s := range p.Subscriptions {
				group, f, _ := packets.SplitShared(s.Filter)
				r.clients[l.client].shared = r.clients[l.client].shared || group != ""
				r.clients[l.client].filters = append(r.clients[l.client].filters, f)
			}
		}
		l.sent = l.sent[n:]
	}
	if l.broken {
		r.published[string(b)] = true // for nobody
	}
	l.Send(b)
}

// receive decodes what has come on each connection and compares it with the model.
func (r *fuzzRun) receive() {
	for _, l := range r.links {
		if l == nil {
			continue
		}
		b, closed := l.Recv()
		l.got = append(l.got, b...)
		for len(l.got) > 0 {
			p, n, err := packets.Decode(l.got, l.version, packets.Limits{})
			if err != nil {
				if !closed || err != packets.ErrShort {
					r.errorf("the broker sent % x: %v", l.got, err)
				}
				break
			}
			r.log = append(r.log, fmt.Sprintf("c%d< %s", l.client, packets.Trace(p)))
			r.packet(l, p)
			l.got = l.got[n:]
		}
		l.over = l.over || closed
	}
}

func (r *fuzzRun) packet(l *fuzzLink, p packets.Packet) {
	c := &r.clients[l.client]
	switch p := p.(type) {
	case *packets.Connack:
		l.accepted = !p.Code.Failed()
		if p.SessionPresent {
			r.seen.resumed++
		}
		if !p.SessionPresent {
			*c = newFuzzClient(c.filters, c.shared)
		}
	case *packets.Publish:
		r.seen.deliveries++
		if p.Dup {
			r.seen.dups++
		}
		r.publish(l, c, p)
	case *packets.Ack:
		if p.Kind == packets.TypePubrel && !p.Code.Failed() {
			r.seen.rels++
		}
		if p.Kind == packets.TypePubrec && !p.Code.Failed() {
			c.unreleased[p.PacketID] = true
		}
	}
	if !l.accepted && p.Type() != packets.TypeConnack {
		r.errorf("c%d< %v before a CONNACK", l.client, p.Type())
	}
}

// publish checks a delivery: somebody published it, the client asked for it, QoS 2 comes once, and
// order is kept.
func (r *fuzzRun) publish(l *fuzzLink, c *fuzzClient, p *packets.Publish) {
	topic := string(p.Topic)
	if a, ok := p.Properties.Uint(packets.TopicAlias); ok && topic == "" {
		topic = l.aliases[a]
	} else if ok {
		l.aliases[a] = topic
	}
	asked := false
	for _, f := range c.filters {
		asked = asked || packets.MatchTopic(f, topic)
	}
	if !asked {
		r.errorf("c%d got a message of %q, subscribed to %q only", l.client, topic, c.filters)
	}
	if !r.published[string(p.Payload)] {
		r.errorf("c%d got the payload %q, which nobody has published", l.client, p.Payload)
	}
	if len(p.Payload) > 0 && r.repeated[string(p.Payload)] {
		r.errorf("c%d got %q, which repeated an identifier that was not released", l.client,
			p.Payload)
	}
	if p.QoS > packets.QoS0 {
		if !p.Dup {
			for _, o := range l.open {
				if o.PacketID == p.PacketID {
					r.errorf("c%d: the identifier %d is in use", l.client, p.PacketID)
				}
			}
		}
		q := *p
		l.open = append(l.open, &q)
	}
	from, text, ok := bytes.Cut(p.Payload, []byte(" "))
	number, err := strconv.Atoi(string(text))
	if !ok || err != nil || p.Retain || c.shared {
		return
	}
	if seen := c.twice[string(text)]; p.QoS == packets.QoS2 {
		if len(seen) > 0 && !(p.Dup && seen[p.PacketID]) {
			r.errorf("c%d got the QoS 2 message %s a second time", l.client, text)
		}
		c.twice[string(text)] = map[uint16]bool{p.PacketID: true}
	}
	key := fmt.Sprint(string(from), p.QoS, topic)
	if !p.Dup && number <= c.last[key] {
		r.errorf("c%d got message %d of c%s to %s at QoS %d after %d", l.client, number, from,
			topic, p.QoS, c.last[key])
	}
	if !p.Dup {
		c.last[key] = number
	}
}

// check compares what the broker says of itself with a walk over what it has.
func (r *fuzzRun) check() {
	synctest.Wait() // for timers that are due
	st := r.h.b.Stats()
	var subs, queued, inflight, retained, connected int
	for s := range r.h.b.Sessions() {
		subs += len(s.Subscriptions)
		queued += s.Queued
		inflight += s.Inflight
		if s.Client != nil {
			connected++
		}
	}
	for range r.h.b.Retained("#") {
		retained++
	}
	if subs != st.Subscriptions || queued != st.Queued || inflight != st.Inflight ||
		connected > st.Connections || retained > st.Retained || st.Panics > 0 {
		r.errorf("a walk finds %d subscriptions, %d queued, %d in flight, %d connected, %d "+
			"retained; the counters are %+v", subs, queued, inflight, connected, retained, st)
	}
	for s := range r.h.b.allSessions() {
		s.mu.Lock()
		if s.out.queue.Len() > s.quota.messages {
			r.errorf("%d messages wait for %s, over the bound", s.out.queue.Len(), s.id)
		}
		size := 0
		s.out.queue.All(func(d *delivery) bool { size += d.size(); return true })
		if size != s.out.bytes {
			r.errorf("%s: %d bytes wait, counted as %d", s.id, size, s.out.bytes)
		}
		if c := s.conn; c != nil && (int(s.out.used) > int(s.out.quota) || c.out.Size() > 0) {
			r.errorf("%s: %d of %d places taken, %d bytes not flushed", s.id, s.out.used,
				s.out.quota, c.out.Size())
		}
		s.mu.Unlock()
	}
	live := 0
	r.h.b.numbers.RLock()
	for _, s := range r.h.b.byNumber[1:] {
		if s != nil {
			live++
		}
	}
	r.h.b.numbers.RUnlock()
	if n := r.h.b.tree.Subscribers(); n != live {
		r.errorf("numbers are lost: %d live, %d given out", live, n)
	}
}
