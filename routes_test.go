package dunlin

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

// Topics as long as they may be, each published twice, so that its route would be kept.
func TestRoutesOfLongTopicsAreNotKept(t *testing.T) {
	b := newTestBroker(t, nil)
	t.Cleanup(func() { b.Close() })
	var pubs []*feed
	for i := range 4 {
		pubs = append(pubs, newFeed(t, b, connect(fmt.Sprint("p", i))))
	}
	before := heapInUse()
	for _, p := range pubs {
		for i := range 2 * routeSlots {
			topic := fmt.Appendf(nil, "%d/%s", i/2, strings.Repeat("x", 60_000))
			p.packet(&packets.Publish{Topic: topic}, packets.V5)
		}
	}
	require.Less(t, heapInUse()-before, int64(len(pubs))*1<<20, "bytes that the connections keep")
	require.Equal(t, b.holdingRoutes(), b.memory.Of(budget.Routes))
}

// Each of many topics goes to many receivers.
func TestTheRoutesOfAConnectionAreBoundedAndGoWhenItIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		t.Cleanup(func() { b.Close() })
		const receivers = 300
		var receiver *feed
		for i := range receivers {
			receiver = newFeed(t, b, connect(fmt.Sprint("s", i)))
			receiver.packet(subscribeTo("#", 0), packets.V5)
		}
		p, q := newFeed(t, b, connect("p")), newFeed(t, b, connect("q"))
		publish := func(p *feed, topics int) {
			for i := range topics {
				m := &packets.Publish{Topic: fmt.Append(nil, "t/", i)}
				p.packet(m, packets.V5)
				p.packet(m, packets.V5)
			}
		}
		publish(p, 100)
		synctest.Wait()
		require.Equal(t, b.holdingRoutes(), b.memory.Of(budget.Routes))
		require.Positive(t, b.memory.Of(budget.Routes))
		require.LessOrEqual(t, b.memory.Of(budget.Routes), int64(maxRoutes))
		time.Sleep(routeIdle / 2)
		publish(q, 1)
		time.Sleep(routeIdle * 3 / 4)
		publish(q, 1)
		synctest.Wait()
		require.Positive(t, b.memory.Of(budget.Routes))
		time.Sleep(routeIdle * 5 / 6)
		synctest.Wait()
		require.False(t, p.c.kept(func(*routes) {}), "it was idle")
		require.True(t, q.c.kept(func(*routes) {}), "it was not")
		require.Equal(t, b.holdingRoutes(), b.memory.Of(budget.Routes))
		time.Sleep(3 * routeIdle)
		synctest.Wait()
		require.Zero(t, b.memory.Of(budget.Routes))
		require.Zero(t, b.caches.n.Load())
		before := receiver.sink.n
		publish(p, 1)
		require.Greater(t, receiver.sink.n, before, "and goes on as before")
	})
}

// A topic with more receivers than a connection may keep is looked up for each message.
func TestALargeRouteIsNotKept(t *testing.T) {
	b := newTestBroker(t, nil)
	t.Cleanup(func() { b.Close() })
	s := newFeed(t, b, connect("s"))
	s.packet(subscribeTo("big", 0), packets.V5)
	s.packet(subscribeTo("small", 0), packets.V5)
	for i := range maxRoutes/targetCost + 1 { // sessions, but no connections
		other := &session{holder: &nobody, b: b, ended: true}
		other.num = b.number(other)
		_, _, err := b.tree.Add(other.num, "", "big", subs.Options{})
		require.NoError(t, err, i)
	}
	p := newFeed(t, b, connect("p"))
	publish := func(topic string) {
		t.Helper()
		before := s.sink.n
		p.packet(&packets.Publish{Topic: []byte(topic)}, packets.V5)
		require.Greater(t, s.sink.n, before)
		require.LessOrEqual(t, b.memory.Of(budget.Routes), int64(maxRoutes))
		require.Equal(t, b.holdingRoutes(), b.memory.Of(budget.Routes))
	}
	publish("small")
	for range 5 {
		publish("big")
		publish("small")
	}
	for range 2 * routeRest {
		publish("small")
	}
	require.True(t, p.c.kept(func(rs *routes) {
		require.Equal(t, "small", string(rs.last.topic), "others are kept")
	}))
}

// Where there is no memory routes go first, and none are kept.
func TestRoutesMakeRoomForMessages(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.MaxMemory, c.MaxQueuedBytesPerPrincipal = 1<<20, -1
	}, func(r *guardRig) {
		away := r.connect(as("away", "u"))
		away.subscribe("q", 1)
		away.close()
		p := r.connect(as("p", "u"))
		for i := range 50 {
			p.publish(fmt.Sprint("t/", i/2, "/", strings.Repeat("x", 1000)), "", false)
		}
		synctest.Wait()
		require.Positive(t, r.b.memory.Of(budget.Routes))
		require.LessOrEqual(t, r.b.memory.Of(budget.Routes), r.b.memory.Limit()/routeShare+2000)
		for i := 0; i < 100 && r.b.memory.Of(budget.Routes) > 0; i++ {
			m := &Message{Topic: "q", QoS: 1, Payload: make([]byte, 10_000)}
			require.NoError(r.t, r.b.Publish(r.t.Context(), m))
			synctest.Wait()
		}
		require.Zero(t, r.b.memory.Of(budget.Routes))
		info, _ := r.b.Session("away")
		require.Greater(t, info.Queued, 70)
		p.publish("t/0", "", false)
		synctest.Wait()
		p.close()
		synctest.Wait()
		require.Zero(t, r.b.caches.n.Load(), "they end with the connection")
		require.Empty(t, r.b.caches.all)
	})
}

// The topics of Topic Aliases are bounded together.
func TestTheTopicsOfAliasesAreBounded(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		alias := func(a uint32) packets.Properties {
			return packets.Properties(nil).AppendUint(packets.TopicAlias, a)
		}
		long := func(i int) []byte {
			return []byte(strings.Repeat("x", 30_000) + fmt.Sprint(i))
		}
		c := r.connect(as("c", "u"))
		for i := range 5 { // one alias may stand for one topic after the other
			c.send(&packets.Publish{Topic: long(i), Properties: alias(1)})
		}
		c.send(&packets.Publish{Topic: long(0), Properties: alias(2)})
		c.nothing("two of them fit")
		synctest.Wait()
		require.Equal(t, r.b.holding(), r.b.counted())
		require.Greater(t, r.b.memory.Of(budget.Sessions), int64(60_000))
		c.send(&packets.Publish{Topic: long(0), Properties: alias(3)})
		d, ok := c.recv().(*packets.Disconnect)
		require.True(t, ok)
		require.Equal(t, packets.QuotaExceeded, d.Code)
		c.close()
		require.Less(t, r.b.memory.Of(budget.Sessions), int64(10_000),
			"they end with the connection")

		connect := as("to", "u")
		connect.Properties = connect.Properties.AppendUint(packets.TopicAliasMaximum, 10)
		to := r.connect(connect)
		to.subscribe("#", 0)
		for range 2 {
			for i := range 4 {
				m := &Message{Topic: string(long(i))}
				require.NoError(t, r.b.Publish(r.t.Context(), m))
				got, ok := to.recv().(*packets.Publish)
				require.True(t, ok)
				require.True(t, len(got.Topic) == 0 || string(got.Topic) == m.Topic)
			}
		}
		synctest.Wait()
		require.Equal(t, r.b.holding(), r.b.counted())
		require.Less(t, r.b.memory.Of(budget.Sessions), int64(75_000))
		to.close()
		require.Less(t, r.b.memory.Of(budget.Sessions), int64(10_000),
			"they end with the connection")
	})
}

// Decisions about deliveries are kept for topics up to a bound in bytes.
func TestKeptDecisionsAboutDeliveriesAreBounded(t *testing.T) {
	readers := &readingAuthorizer{}
	readers.deliver = func(*hooks.AccessRequest) error { return nil }
	withRules(t, everything, func(c *Config) { c.Authorizer = readers }, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		c.subscribe("#", 0)
		for i := range 20 {
			topic := strings.Repeat("x", 20_000) + fmt.Sprint(i)
			require.NoError(t, r.b.Publish(r.t.Context(), &Message{Topic: topic}))
			require.Equal(t, topic, string(c.recv().(*packets.Publish).Topic))
		}
		synctest.Wait()
		require.Equal(t, r.b.holdingRoutes(), r.b.memory.Of(budget.Routes))
		require.LessOrEqual(t, r.b.memory.Of(budget.Routes), int64(maxReadingBytes))
		c.close()
		require.Zero(t, r.b.memory.Of(budget.Routes))
	})
}

// A client that publishes to more topics than its routes may be of is slower, and nothing else.
func TestMoreRoutesThanFitCostNoMemory(t *testing.T) {
	b := newTestBroker(t, nil)
	t.Cleanup(func() { b.Close() })
	for i := range 50 {
		newFeed(t, b, connect(fmt.Sprint("s", i))).packet(subscribeTo("#", 0), packets.V5)
	}
	p := newFeed(t, b, connect("p"))
	var all []byte
	for i := range routeSlots {
		m := packets.Publish{Topic: fmt.Append(nil, "t/", i)}
		var err error
		all, err = m.Append(all, packets.V5)
		require.NoError(t, err)
	}
	for range 10 {
		p.bytes(all)
	}
	require.LessOrEqual(t, b.memory.Of(budget.Routes), int64(maxRoutes))
	require.Greater(t, b.memory.Of(budget.Routes), int64(maxRoutes)*9/10)
	require.Equal(t, b.holdingRoutes(), b.memory.Of(budget.Routes))
	perMessage := testing.AllocsPerRun(20, func() { p.bytes(all) }) / routeSlots
	if !lock.Checked { // whose locks allocate
		require.Less(t, perMessage, 0.5, "allocations")
	}
}

// One client that keeps many routes leaves room for those of others.
func TestEachConnectionHasItsShareOfTheRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, func(c *Config) { c.MaxMemory = routeShare * maxRoutes / 2 })
		t.Cleanup(func() { b.Close() })
		keep := func(p *feed, topics int) (size int32) {
			for i := range topics {
				m := &packets.Publish{Topic: fmt.Append(nil, i,
					strings.Repeat("x", maxRouteTopic-10))}
				p.packet(m, packets.V5)
				p.packet(m, packets.V5)
			}
			p.c.kept(func(rs *routes) { size = rs.size })
			return size
		}
		greedy := newFeed(t, b, connect("greedy"))
		require.Greater(t, keep(greedy, 200), int32(maxRoutes*4/10), "all that there is")
		p := newFeed(t, b, connect("p"))
		keep(p, 1)
		synctest.Wait()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.False(t, greedy.c.kept(func(*routes) {}), "more than its share")
		for range routeRest/2 + 1 {
			keep(p, 1)
		}
		require.Greater(t, keep(p, 10), int32(10*maxRouteTopic))
		require.LessOrEqual(t, keep(greedy, 2000), int32(maxRoutes/4))
		require.LessOrEqual(t, b.memory.Of(budget.Routes), int64(maxRoutes/2))
		require.Equal(t, b.holdingRoutes(), b.memory.Of(budget.Routes))
	})
}

// Numbers go from Sessions that leave to others, which subscribe to something else, while a
// publisher looks for its receivers.
func TestReceiversAreFoundWhileOthersSubscribeAndLeave(t *testing.T) {
	b := newTestBroker(t, nil)
	defer b.Close()
	stays := &session{b: b, holder: &nobody, id: "wants it"}
	b.tree.Restore(b.number(stays), "", "s/t", subs.Options{})
	ctx, stop := context.WithCancel(t.Context())
	var churning sync.WaitGroup
	for id, filter := range map[string]string{"wants it": "s/t", "others": "+/x"} {
		churning.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				num := b.number(&session{b: b, holder: &nobody, id: id})
				b.tree.Restore(num, "", filter, subs.Options{})
				b.freeNumber(num)
			}
		})
	}
	b.work(func(turn *turn) {
		for range 20_000 {
			turn.route.fill(turn, []byte("s/t"), origin{})
			require.NotEmpty(t, turn.route.targets)
			for _, to := range turn.route.targets {
				require.Equal(t, "wants it", to.s.id)
			}
		}
	})
	stop()
	churning.Wait()
}
