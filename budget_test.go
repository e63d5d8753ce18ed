package dunlin

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// holding counts anew, by looking at everything, what the budget should say of each kind when
// nothing is under way.
func (b *Broker) holding() (n [budget.Kinds]int64) {
	kinds, sizes := map[any]budget.Kind{}, map[any]int64{}
	hold := func(x any, size int64, k budget.Kind) {
		if old, seen := kinds[x]; !seen || k == budget.Retained || k == budget.Queued &&
			old == budget.InFlight {
			kinds[x] = k
		}
		sizes[x] = size
	}
	add := func(d *delivery, k budget.Kind, place int64) {
		if d.msg == nil {
			if d.extra != nil {
				hold(d.extra, d.extra.heldSize(), k)
			}
			return
		}
		n[k] += place
		hold(d.msg, heldSize(d.msg), k)
		if d.extra != nil {
			hold(d.extra, d.extra.heldSize(), k)
		}
	}
	sessions := slices.Collect(b.allSessions())
	b.mu.Lock()
	for sub := range b.locals {
		sessions = append(sessions, sub.s)
	}
	b.mu.Unlock()
	var places budget.Places
	for _, s := range sessions {
		s.mu.Lock()
		places.Queued += int64(s.out.queue.Len())
		places.QueuedBytes += int64(s.out.bytes)
		places.InFlight += int64(s.out.live)
		s.out.queue.All(func(d *delivery) bool { add(d, budget.Queued, deliveryCost); return true })
		for i := range s.out.flight {
			add(&s.out.flight[i], budget.InFlight, deliveryCost)
		}
		if s.conn != nil {
			n[budget.Output] += int64(s.conn.out.Size())
			if s.conn.out.writing {
				n[budget.Output] += int64(s.conn.copied())
			}
		}
		n[budget.Sessions] += int64(s.cursors.Bytes() + s.bytesLocked(s.client, s.will))
		n[budget.Sessions] += placesCost(cap(s.out.flight))
		s.mu.Unlock()
	}
	b.mu.Lock()
	for c := range b.early {
		n[budget.Partial] += int64(c.restCounted)
		n[budget.Connections] += int64(c.cost())
	}
	for c := range b.conns {
		n[budget.Partial] += int64(c.restCounted)
		n[budget.Connections] += int64(c.cost())
		n[budget.Sessions] += int64(c.readExtra().holdingAliases())
	}
	b.mu.Unlock()
	for m := range b.Retained("#") {
		add(&delivery{msg: b.retained.Get(m.Topic)}, budget.Retained, retainedCost)
	}
	if counted := b.memory.Places(); counted != places {
		panic(fmt.Sprintf("there are %+v, and %+v are counted", places, counted))
	}
	for x, k := range kinds {
		n[k] += sizes[x]
	}
	n[budget.Subscriptions] = b.tree.Bytes()
	n[budget.Routes] = b.memory.Of(budget.Routes) // see holdingRoutes
	return n
}

// holdingRoutes counts anew what routes and decisions take. No reader may be at work.
func (b *Broker) holdingRoutes() (n int64) {
	for s := range b.allSessions() {
		s.mu.Lock()
		if s.extra != nil && s.extra.reads != nil {
			for topic := range s.extra.reads.may {
				n += int64(len(topic) + readingCost)
			}
		}
		s.mu.Unlock()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.kept(func(rs *routes) { n += int64(rs.holding()) })
	}
	return n
}

// kept calls f with the routes of c, whose reader waits, and says whether it keeps any. f has them
// for itself.
func (c *conn) kept(f func(rs *routes)) bool {
	rs := c.routes
	if rs == nil || !rs.state.CompareAndSwap(parked, inUse) {
		return false
	}
	defer rs.state.Store(parked)
	f(rs)
	return true
}

// holding counts anew what the routes take.
func (rs *routes) holding() (n int) {
	all := map[*route]bool{rs.last: true}
	if rs.table != nil {
		n = tableCost
		for _, r := range rs.table.routes {
			all[r] = true
		}
	}
	for r := range all {
		if r != nil {
			n += int(r.bytes())
		}
	}
	return n
}

// holdingAliases counts anew what Topic Aliases take.
func (r *connExtra) holdingAliases() (n int) {
	for _, topic := range r.aliases.topics {
		n += len(topic) + aliasCost
	}
	if r.outAliases != nil {
		for topic := range r.outAliases.of {
			n += len(topic) + outAliasCost
		}
	}
	return n
}

// counted is what the budget says of each kind.
func (b *Broker) counted() (n [budget.Kinds]int64) {
	for k := range budget.Kinds {
		n[k] = b.memory.Of(k)
	}
	return n
}

// Whatever happens, what is counted is what is held.
func TestTheBudgetIsByteAccurate(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	withRules(t, everything, func(c *Config) {
		c.MaxQueuedMessages, c.MaxInflight, c.QueueQoS0, c.MaxMessageExpiry = 8, 3, true, time.Hour
	}, func(r *guardRig) {
		// reads, and acknowledges nothing
		drain := func(nc interface{ Read([]byte) (int, error) }) {
			for b := make([]byte, 4096); ; {
				if _, err := nc.Read(b); err != nil {
					return
				}
			}
		}
		open := map[int]*testClient{}
		sub, err := r.b.Subscribe(context.Background(), "t/+", &SubscribeOptions{QoS: 1, Buffer: 4})
		require.NoError(t, err)
		for step := range 1500 {
			i := rng.IntN(6)
			c := open[i]
			topic := fmt.Sprint("t/", rng.IntN(4))
			m := &Message{Topic: topic, QoS: packets.QoS(rng.IntN(3)),
				Payload: make([]byte, rng.IntN(2000)), Retain: rng.IntN(3) == 0}
			switch k := rng.IntN(16); {
			case k < 3 && c == nil:
				c = r.connect(as(fmt.Sprint("c", i), []string{"u", "v", "-"}[i%3]))
				go drain(c.nc)
				open[i] = c
			case k < 5 && c != nil:
				c.close()
				delete(open, i)
			case k < 7 && c != nil:
				filter := []string{"t/#", topic, "$share/g/t/#", "$share/g/+/1"}[rng.IntN(4)]
				p := &packets.Subscribe{PacketID: 9,
					Subscriptions: []packets.Subscription{{Filter: filter,
						QoS: packets.QoS(rng.IntN(3))}}}
				if id := rng.Uint32N(4); id > 0 {
					p.Properties = p.Properties.AppendUint(packets.SubscriptionIdentifier, id)
				}
				c.send(p)
			case k < 9 && c != nil: // acknowledge something that may be in flight
				for id := range uint16(8) {
					kind := []packets.Type{packets.TypePuback, packets.TypePubrec,
						packets.TypePubcomp}[rng.IntN(3)]
					if s := r.flight(fmt.Sprint("c", i), id); s != nil &&
						(kind == packets.TypePuback) == (s.qos == 1) &&
						(kind != packets.TypePubcomp || s.state == pubrelSent) {
						c.send(&packets.Ack{Kind: kind, PacketID: id})
						synctest.Wait()
					}
				}
			case k == 9:
				r.b.DeleteSession(context.Background(), fmt.Sprint("c", i))
				if c != nil {
					c.close()
					delete(open, i)
				}
			case k == 10:
				r.reload([]string{"allow all #",
					"deny user=u subscribe t/1\nallow all #"}[rng.IntN(2)])
			case k == 11 && c != nil: // the beginning of a packet
				c.nc.Write([]byte{0x30, 0xff, 0x1f, 0, 1, 'a'})
				synctest.Wait()
				require.Equal(t, r.b.holding(), r.b.counted(), "after step %d", step)
				c.close()
				delete(open, i)
			case k == 12 && c != nil:
				c.send(&packets.Publish{Topic: []byte(topic), Payload: m.Payload, Retain: true})
			default:
				require.NoError(t, r.b.Publish(context.Background(), m))
			}
			synctest.Wait()
			require.Equal(t, r.b.holding(), r.b.counted(), "after step %d", step)
			require.Equal(t, r.b.owned(), r.owned(), "after step %d", step)
		}
		for _, c := range open {
			c.close()
		}
		sub.Close()
		for i := range 6 {
			r.b.DeleteSession(context.Background(), fmt.Sprint("c", i))
		}
		for _, m := range slices.Collect(r.b.Retained("#")) {
			require.NoError(t, r.b.Publish(context.Background(),
				&Message{Topic: m.Topic, Retain: true}))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Zero(t, r.b.Stats().Memory, "nothing is left")
		require.Zero(t, r.b.owners.Len(), "of nobody")
	})
}

// flight is a copy of what is in flight to a client with that Packet Identifier.
func (r *guardRig) flight(id string, packet uint16) *delivery {
	s := r.b.sessionAt(id)
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.out.find(packet); d != nil {
		c := *d
		return &c
	}
	return nil
}

func TestOfAbsentClientsTheOldestMessagesGoFirst(t *testing.T) {
	const most = 1 << 20
	withRules(t, everything, func(c *Config) { oneForAll(c); c.MaxMemory = most },
		func(r *guardRig) {
			c := r.connect(as("c", "u"))
			c.subscribe("#", 1)
			c.close()
			small := r.connect(as("small", "u"))
			small.subscribe("small", 1)
			small.close()
			payload := make([]byte, 10_000)
			require.NoError(t, r.b.Publish(context.Background(), &Message{Topic: "small", QoS: 1}))
			highest, n := int64(0), 0
			for ; n < 500; n++ {
				require.NoError(t, r.b.Publish(context.Background(),
					&Message{Topic: fmt.Sprint("t/", n), QoS: 1, Payload: payload}),
					"it gives way before it refuses")
				synctest.Wait()
				highest = max(highest, r.b.Stats().Memory)
			}
			require.LessOrEqual(t, highest, int64(most)*90/100+20_000)
			require.Greater(t, highest, int64(most)*85/100)
			r.told("dropped c t/0: out of memory")
			info, _ := r.b.Session("small")
			require.Equal(t, 1, info.Queued, "the fullest queue is shortened first")
			info, _ = r.b.Session("c")
			c = r.connect(as("c", "u"))
			for i := range info.Queued {
				c.message(fmt.Sprint("t/", n-info.Queued+i)) // the youngest, in their order
			}
			c.nothing("nothing else")
			c.close()
		})
}

// A client has a large window, acknowledges nothing, and leaves. What it was sent goes as well.
func TestOfAbsentClientsWhatIsInFlightGoes(t *testing.T) {
	for _, q := range []packets.QoS{packets.QoS1, packets.QoS2} {
		withRules(t, everything, func(c *Config) {
			oneForAll(c)
			c.MaxMemory = 1 << 20
		}, func(r *guardRig) {
			c := r.connect(as("c", "u"))
			c.subscribe("#", q)
			send := func(n int) error {
				return r.b.Publish(context.Background(), &Message{Topic: fmt.Sprint("t/", n),
					QoS: q, Payload: make([]byte, 10_000)})
			}
			n := 0
			for ; n < 90; n++ {
				require.NoError(t, send(n))
				require.IsType(t, &packets.Publish{}, c.recv())
			}
			c.close()
			for ; n < 500; n++ {
				require.NoError(t, send(n), "it gives way before it refuses")
				synctest.Wait()
			}
			r.told("dropped c t/0: out of memory")
			info, _ := r.b.Session("c")
			c = r.connect(as("c", "u"))
			for i := range info.Queued {
				p := c.recv()
				for p.Type() == packets.TypePubrel { // for what is gone
					p = c.recv()
				}
				// the youngest, in their order
				require.Equal(t, fmt.Sprint("t/", n-info.Queued+i), string(p.(*packets.Publish).Topic))
			}
			c.close()
		})
	}
}

func TestAtTheLimitPublishesAreRefused(t *testing.T) {
	const most = 1 << 20
	withRules(t, everything, func(c *Config) {
		oneForAll(c)
		c.MaxMemory, c.MaxQueuedBytes,
			c.MaxPacketSize = most, -1, -1
	}, func(r *guardRig) {
		slow := as("slow", "u")
		slow.Properties = slow.Properties.AppendUint(packets.ReceiveMaximum, 1)
		c := r.connect(slow) // is here, and acknowledges nothing: its queue is not shortened
		c.subscribe("q", 1)
		p := r.connect(as("p", "u"))
		n := 0
		for ; r.b.Publish(context.Background(),
			&Message{Topic: "q", QoS: 1, Payload: make([]byte, 100_000)}) == nil; n++ {
			require.Less(t, n, 20)
		}
		require.InDelta(t, 10, n, 1, "as many as fit, and the one that went beyond")
		require.Equal(t, packets.QuotaExceeded, p.publish("q", "x", false))
		require.Equal(t, packets.QuotaExceeded, p.publish("retained", "x", true))
		p.send(&packets.Publish{QoS: 2, PacketID: 3, Topic: []byte("q")})
		require.Equal(t, packets.QuotaExceeded, p.recv().(*packets.Ack).Code)
		require.Equal(t, packets.QuotaExceeded,
			packets.CodeOf(r.b.Publish(context.Background(), &Message{Topic: "q"})))
		p.send(&packets.Publish{Topic: []byte("q")})
		p.nothing("QoS 0 is dropped in silence")
		old := as("old", "u")
		old.Version, old.Properties = packets.V311, nil
		v3 := r.connect(old)
		v3.send(&packets.Publish{QoS: 1, PacketID: 3, Topic: []byte("q")})
		_, err := v3.r.ReadPacket()
		require.Error(t, err, "an acknowledgement would be a lie")
		v3.close()

		c.message("q") // the next one comes, and there is room
		c.message("q")
		synctest.Wait()
		require.False(t, p.publish("other", "x", false).Failed())
		c.close()
		p.close()
	})
}

func TestCloseToTheLimitQoS0IsNotKeptForSlowClients(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		oneForAll(c)
		c.MaxMemory,
			c.MaxOutboundBytes = 1<<20, 4<<20
	}, func(r *guardRig) {
		r.l.Buffer = 1 << 10
		c := r.connect(as("c", "u"))
		c.subscribe("#", 0)
		for range 200 { // c reads nothing: MaxOutboundBytes would allow it all
			require.NoError(t, r.b.Publish(context.Background(),
				&Message{Topic: "t", Payload: make([]byte, 10_000)}))
		}
		require.LessOrEqual(t, r.b.Stats().Memory, int64(1<<20)*80/100+20_000)
		r.told("dropped c t: out of memory")
		c.close()
	})
}

func TestTheDefaultBudget(t *testing.T) {
	for _, tt := range []struct {
		set  int
		want int64
	}{{0, min(defaultMemory(), math.MaxInt)}, {-1, math.MaxInt}, {5, 5}} {
		b := newTestBroker(t, func(c *Config) { c.MaxMemory = tt.set })
		require.Equal(t, tt.want, b.memory.Limit())
		b.Close()
	}
}

// A message that never has room in a queue does not empty it.
func TestAMessageLargerThanAQueue(t *testing.T) {
	inProcess(t, func(c *Config) { c.MaxQueuedBytes = 1000 }, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "t", nil)
		mustPublish(t, b, "t", "1", 1)
		mustPublish(t, b, "t", "2", 1)
		mustPublish(t, b, "t", string(make([]byte, 1000)), 1)
		require.Equal(t, []string{"1", "2"}, unread(sub))
		require.EqualValues(t, 1, sub.Dropped())
	})
}

// A named Subscription that somebody reads is not away.
func TestANamedReaderIsNotAway(t *testing.T) {
	inProcess(t, func(c *Config) { c.MaxMemory = 100_000 }, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "t", &SubscribeOptions{Name: "n", QoS: 1})
		for range 103 {
			mustPublish(t, b, "t", string(make([]byte, 700)), 1)
		}
		require.True(t, b.memory.Over(dropQueued))
		time.Sleep(time.Second)
		require.Zero(t, sub.Dropped())
		sub.Close()
		mustPublish(t, b, "t", "x", 1)
		time.Sleep(time.Second)
		require.False(t, b.memory.Over(dropEnough))
	})
}

// MaxMessageExpiry holds for a message with a longer Message Expiry Interval as well.
func TestMaxMessageExpiryHoldsForTheProgram(t *testing.T) {
	inProcess(t, func(c *Config) { c.MaxMessageExpiry = 10 * time.Second },
		func(t *testing.T, b *Broker) {
			sub := mustSubscribe(t, b, "t", nil)
			require.NoError(t, b.Publish(t.Context(), &Message{Topic: "t",
				Properties: packets.Properties(nil).AppendUint(packets.MessageExpiryInterval, 60)}))
			time.Sleep(11 * time.Second)
			require.Empty(t, unread(sub))
		})
}

// The Subscription Identifiers that come with a message are part of what a queue holds. Deliveries
// that have the same share them.
func TestSubscriptionIdentifiersOfQueuedMessagesCount(t *testing.T) {
	const filters, most = 64, 10_000
	withRules(t, everything, func(c *Config) { c.MaxQueuedBytes = most }, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		for i := range uint32(filters) {
			filter := []byte("a/a/a/a/a/a")
			for k := range 6 {
				if i>>k&1 != 0 {
					filter[2*k] = '+'
				}
			}
			require.Equal(t, packets.ReasonCode(1), c.subscribeWithID(string(filter), 1, i+1))
		}
		c.close()
		p := r.connect(as("p", "u"))
		synctest.Wait() // until both readers have done what they do
		before := r.b.Stats().Memory
		for range 100 {
			require.False(t, p.publish("a/a/a/a/a/a", "x", false).Failed())
		}
		info, _ := r.b.Session("c")
		require.LessOrEqual(t, info.Queued, most/(filters*idBytes),
			"the identifiers count against MaxQueuedBytes")
		require.Greater(t, info.Queued, 10)
		synctest.Wait() // the flush of the last PUBACK is over
		require.Equal(t, r.b.holding(), r.b.counted())
		each := int64(len("a/a/a/a/a/axp")) + messageCost + deliveryCost
		grown := r.b.Stats().Memory - before - r.b.memory.Of(budget.Routes)
		require.Equal(t, int64(info.Queued)*each+extraCost+filters*idBytes, grown,
			"one list for all of them")
		c = r.connect(as("c", "u"))
		for range info.Queued {
			m := c.recv().(*packets.Publish)
			require.Len(t, slices.Collect(m.Properties.SubscriptionIDs()), filters)
		}
		c.close()
		p.close()
	})
}

// Users who stay and acknowledge nothing do not keep the memory from everybody.
func TestClientsThatAcknowledgeNothingMakeRoomInTheEnd(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.MaxMemory, c.MaxPacketSize, c.MaxQueuedBytes = 1<<20, -1, -1
	}, func(r *guardRig) {
		var idle []*testClient
		for _, name := range []string{"a", "b", "c"} {
			c := r.connect(as(name, name))
			require.Equal(r.t, packets.GrantedQoS1, c.subscribe("q/"+name, 1))
			idle = append(idle, c)
			go io.Copy(io.Discard, c.nc)
		}
		p := r.connect(as("p", "p"))
		for _, size := range []int{2000, 1} {
			for range 300 {
				for _, name := range []string{"a", "b", "c"} {
					p.publish("q/"+name, strings.Repeat("x", size), false)
					synctest.Wait()
				}
			}
		}
		require.True(r.t, p.publish("other", "x", false).Failed(), "the memory is used up")
		time.Sleep(stuckTime)
		p.publish("other", "x", false)
		synctest.Wait()
		p.publish("other", "x", false) // those who are gone by now
		synctest.Wait()
		require.False(r.t, p.publish("other", "x", false).Failed(), "there is room again")
		time.Sleep(time.Minute) // whoever is ended has time to read why
		gone := 0
		for _, e := range slices.Concat(r.b.Ended("a"), r.b.Ended("b"), r.b.Ended("c")) {
			require.Contains(r.t, e.Err, "acknowledged nothing")
			gone++
		}
		require.Equal(r.t, 1, gone, "one is enough")
		for _, c := range idle {
			c.nc.Close()
		}
		p.close()
	})
}
