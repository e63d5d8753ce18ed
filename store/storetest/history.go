package storetest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A History generates random batches that a broker could commit. They follow the rules of package
// store. They use few Sessions, topics and Packet Identifiers, so that these meet often.
type History struct {
	// State is the state after all batches so far.
	State *State
	// Large is the size of the occasional large payloads. 0: 20,000.
	Large int

	rng *rand.Rand
	seq map[uint64]uint64 // the last one given, by Session
	now int64
}

// NewHistory returns a History that depends only on the seed.
func NewHistory(seed uint64) *History {
	return &History{
		State: NewState(), rng: rand.New(rand.NewPCG(seed, 1)), seq: make(map[uint64]uint64),
		now: 1_770_000_000_000_000_000,
	}
}

// names are names that a store might confuse.
var names = []string{
	"a", "b", "a/b", "a:b", "A", "", "/", "//", "#", "+/#", "$share/g/a", "$share/g:a", "1", "1:a",
	"a ", "é", "e\u0301",
	"a%00b", "a\\b", "%", "a'b\"c", "_", strings.Repeat("x", 300), strings.Repeat("x", 301),
}

func (h *History) name() string { return names[h.rng.IntN(len(names))] }

// few returns a number: often 0, mostly a small one, seldom any.
func (h *History) few() uint64 {
	switch h.rng.IntN(4) {
	case 0:
		return 0
	case 1:
		return h.rng.Uint64() >> h.rng.IntN(64)
	}
	return uint64(h.rng.IntN(8))
}

func (h *History) session() uint64 {
	if h.rng.IntN(50) == 0 {
		return 1<<64 - 1
	}
	return 1 + uint64(h.rng.IntN(6))
}

func (h *History) instant() int64 {
	switch h.rng.IntN(3) {
	case 0:
		return 0
	case 1:
		return int64(h.rng.Uint64() >> 1)
	}
	return h.now
}

func (h *History) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(h.rng.Uint32())
	}
	return b
}

func (h *History) body() packets.Message {
	m := packets.Message{
		Topic: h.name(), QoS: packets.QoS(h.rng.IntN(3)), Retain: h.rng.IntN(2) == 0,
		Payload: h.bytes(h.rng.IntN(60)),
	}
	if h.rng.IntN(40) == 0 {
		large := h.Large
		if large == 0 {
			large = 20_000
		}
		m.Payload = h.bytes(large)
	}
	if h.rng.IntN(3) == 0 {
		m.Properties = m.Properties.AppendUser("key", h.name()).AppendText(packets.ContentType,
			"text")
	}
	return m
}

func (h *History) message() *store.Message {
	return &store.Message{Message: h.body(), Expires: h.instant(), From: h.name()}
}

// Batch returns the operations of the next commit, seldom none, and applies them to State.
func (h *History) Batch() []store.Op {
	h.now += int64(h.rng.IntN(1e9))
	if h.rng.IntN(20) == 0 {
		h.restart()
	}
	ops := make([]store.Op, h.rng.IntN(1+h.rng.IntN(12)))
	for i := range ops {
		ops[i] = h.op()
		h.State.Apply(ops[i])
	}
	return ops
}

// restart removes the numbers that a broker no longer knows after a restart: those that are not in
// use.
func (h *History) restart() {
	clear(h.seq)
	for id, c := range h.State.Sessions {
		if n := len(c.Queue); n > 0 {
			h.seq[id] = c.Queue[n-1].Seq
		}
	}
}

func (h *History) op() store.Op {
	s := h.session()
	switch n := h.rng.IntN(100); {
	case n < 10:
		return h.putSession(s)
	case n < 12:
		return &store.DeleteSession{Session: s}
	case n < 20:
		return &store.PutSubscription{Session: s, ID: uint32(h.few()),
			Subscription: packets.Subscription{
				Filter: h.name(), QoS: packets.QoS(h.rng.IntN(3)), NoLocal: h.rng.IntN(2) == 0,
				RetainAsPublished: h.rng.IntN(2) == 0, RetainHandling: byte(h.rng.IntN(3)),
			}}
	case n < 24:
		return &store.DeleteSubscription{Session: s, Filter: h.name()}
	case n < 54:
		return h.publish()
	case n < 62:
		return &store.Sent{Session: s, Seq: h.queued(s), ID: uint16(1 + h.rng.IntN(65535))}
	case n < 68:
		return &store.Released{Session: s, Seq: h.queued(s)}
	case n < 88:
		return &store.Done{Session: s, Seq: h.queued(s)}
	case n < 91:
		return &store.Received{Session: s, ID: uint16(1 + h.rng.IntN(8))}
	case n < 95:
		return &store.Forget{Session: s, ID: uint16(1 + h.rng.IntN(8))}
	case n < 98:
		return &store.PutRetained{Message: h.message()}
	}
	return &store.DeleteRetained{Topic: h.name()}
}

func (h *History) putSession(s uint64) *store.PutSession {
	op := &store.PutSession{
		Session: s, ClientID: h.name(), Principal: h.name(), Username: h.name(),
		Expiry: uint32(h.few()), ExpiresAt: h.instant(),
		Named: h.rng.IntN(2) == 0, Mount: h.name(),
	}
	if h.rng.IntN(3) == 0 {
		op.Will = &store.Will{Message: h.body(), Delay: uint32(h.few()), At: h.instant()}
	}
	return op
}

// queued returns the Seq of a queue entry: mostly that of the head, seldom one that does not exist.
func (h *History) queued(s uint64) uint64 {
	c := h.State.Sessions[s]
	if c == nil || len(c.Queue) == 0 || h.rng.IntN(20) == 0 {
		return h.few()
	}
	i := 0
	if h.rng.IntN(3) == 0 {
		i = h.rng.IntN(len(c.Queue))
	}
	return c.Queue[i].Seq
}

func (h *History) publish() *store.Publish {
	p := &store.Publish{Message: h.message(), Retain: h.rng.IntN(5) == 0}
	if h.rng.IntN(3) == 0 {
		p.FromSession, p.FromID = h.session(), uint16(1+h.rng.IntN(8))
	}
	for range h.rng.IntN(8) {
		if d := h.delivery(); d.Session != 0 &&
			!slices.ContainsFunc(p.To, func(o store.Delivery) bool {
				return o.Session == d.Session && o.Seq == d.Seq
			}) {
			p.To = append(p.To, d)
		}
	}
	return p
}

// delivery returns the next entry of some queue. Seldom it returns one that was skipped, or that
// belongs to no Session.
func (h *History) delivery() store.Delivery {
	d := store.Delivery{Session: h.session(), QoS: packets.QoS(h.rng.IntN(3)),
		Retain: h.rng.IntN(4) == 0}
	c := h.State.Sessions[d.Session]
	last := h.seq[d.Session]
	switch h.rng.IntN(12) {
	case 0:
		d.Seq = last + 2 + h.few()>>10
	case 1:
		d.Seq = max(last, 1) - 1
	default:
		d.Seq = last + 1
	}
	if c != nil {
		if _, taken := c.find(d.Seq); taken {
			return store.Delivery{}
		}
	}
	h.seq[d.Session] = max(last, d.Seq)
	for range h.rng.IntN(2) * h.rng.IntN(4) {
		d.IDs = append(d.IDs, uint32(h.few()))
	}
	if h.rng.IntN(5) == 0 {
		d.Group = h.name()
	}
	return d
}

// clone returns operations that share no memory with ops, except strings.
func clone(ops []store.Op) []store.Op {
	c := make([]store.Op, len(ops))
	for i, op := range ops {
		switch op := op.(type) {
		case *store.PutSession:
			n := *op
			if op.Will != nil {
				w := *op.Will
				w.Message = cloneBody(w.Message)
				n.Will = &w
			}
			c[i] = &n
		case *store.Publish:
			n := *op
			n.Message = cloneMessage(op.Message)
			n.To = slices.Clone(op.To)
			for i := range n.To {
				n.To[i].IDs = slices.Clone(n.To[i].IDs)
			}
			c[i] = &n
		case *store.PutRetained:
			c[i] = &store.PutRetained{Message: cloneMessage(op.Message)}
		default:
			c[i] = cloneSmall(op)
		}
	}
	return c
}

// cloneSmall copies an operation that has no slices.
func cloneSmall(op store.Op) store.Op {
	switch op := op.(type) {
	case *store.DeleteSession:
		return copyOf(op)
	case *store.PutSubscription:
		return copyOf(op)
	case *store.DeleteSubscription:
		return copyOf(op)
	case *store.Sent:
		return copyOf(op)
	case *store.Released:
		return copyOf(op)
	case *store.Done:
		return copyOf(op)
	case *store.Received:
		return copyOf(op)
	case *store.Forget:
		return copyOf(op)
	case *store.DeleteRetained:
		return copyOf(op)
	}
	panic(fmt.Sprintf("BUG: %T is no operation", op))
}

func copyOf[T any](p *T) *T {
	c := *p
	return &c
}

func cloneMessage(m *store.Message) *store.Message {
	return &store.Message{Message: cloneBody(m.Message), Expires: m.Expires, From: m.From}
}

func cloneBody(m packets.Message) packets.Message {
	m.Payload, m.Properties = slices.Clone(m.Payload), slices.Clone(m.Properties)
	return m
}

// scribble overwrites all memory that ops point to.
func scribble(ops []store.Op) {
	spoil := func(m *packets.Message) {
		for i := range m.Payload {
			m.Payload[i] ^= 0x55
		}
		for i := range m.Properties {
			m.Properties[i] ^= 0x55
		}
		m.Topic = "scribbled"
	}
	for i, op := range ops {
		switch op := op.(type) {
		case *store.PutSession:
			if op.Will != nil {
				spoil(&op.Will.Message)
			}
			*op = store.PutSession{Session: 99, ClientID: "scribbled"}
		case *store.PutSubscription:
			op.Filter, op.QoS = "scribbled", 3
		case *store.Publish:
			spoil(&op.Message.Message)
			for i := range op.To {
				for j := range op.To[i].IDs {
					op.To[i].IDs[j] = 99
				}
				op.To[i] = store.Delivery{Session: 99}
			}
		case *store.PutRetained:
			spoil(&op.Message.Message)
		}
		ops[i] = nil
	}
}

// ids returns the numbers of the Sessions, in order.
func (s *State) ids() []uint64 { return slices.Sorted(maps.Keys(s.Sessions)) }
