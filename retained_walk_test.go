package dunlin

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// retainHard makes n retained messages among which hardFilter finds none, and has to look at many:
// each name that it has is everywhere, and never two of them in one topic.
func retainHard(tb testing.TB, b *Broker, n int) {
	for i := range n {
		topic := fmt.Sprintf("%d/b/q%d/y", i, rand.IntN(600))
		if i%2 == 0 {
			topic = fmt.Sprintf("%d/c/q%d/x", i, rand.IntN(600))
		}
		m := &Message{Topic: topic, Payload: []byte("x"), Retain: true}
		require.NoError(tb, b.Publish(context.Background(), m))
	}
}

func hardFilter(i int) string { return fmt.Sprintf("+/b/q%d/x", i) }

// subscribeHard is a SUBSCRIBE of n such filters.
func subscribeHard(n int, qos packets.QoS) *packets.Subscribe {
	p := &packets.Subscribe{PacketID: 9}
	for i := range n {
		p.Subscriptions = append(p.Subscriptions,
			packets.Subscription{Filter: hardFilter(i), QoS: qos})
	}
	return p
}

// toSend is for how many subscriptions retained messages are still to be sent to a client.
func (b *Broker) toSend(client string) int {
	s := b.ofClient(client)[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cursors.Len()
}

// A client that subscribes to much that is retained, or could be, holds up nobody.
func TestALargeSubscribeHoldsUpNobody(t *testing.T) {
	b := newTestBroker(t, nil)
	l, done := serveMemory(t, b)
	retainHard(t, b, 30_000)
	heavy, _ := newTestClient(t, dial(t, l), connect("heavy"))
	heavy.send(&packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: "live", RetainHandling: 2}}})
	heavy.recv()
	heavy.send(subscribeHard(3000, 0))
	heavy.recv()
	go io.Copy(io.Discard, heavy.nc) // ends with the connection
	other, _ := newTestClient(t, dial(t, l), connect("other"))
	for range 20 {
		require.Equal(t, packets.Success, other.publish("live", "x", false))
	}
	require.Equal(t, packets.QoS(0), packets.QoS(other.subscribe("+/c/+/x", 0)))
	for range 1000 {
		require.IsType(t, &packets.Publish{}, other.recv())
	}
	require.NotZero(t, b.toSend("heavy"),
		"the publishes of another client do not wait for its filters, nor do other subscriptions")
	heavy.nc.Close()
	other.nc.Close()
	done()
}

// slowly is a CONNECT of a client that takes one message at a time.
func slowly(id string) *packets.Connect {
	p := as(id, "u")
	p.Properties = p.Properties.AppendUint(packets.ReceiveMaximum, 1)
	return p
}

// The retained messages are sent anew [MQTT-3.8.4-3], which does not add to what is still to be
// sent.
func TestARepeatedFilterBeginsAnew(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		p, c := r.connect(as("p", "u")), r.connect(slowly("c"))
		p.publish("t/1", "x", true)
		p.publish("t/2", "x", true)
		subscribe := func() {
			c.send(&packets.Subscribe{PacketID: 9,
				Subscriptions: []packets.Subscription{{Filter: "t/#", QoS: 1}}})
		}
		subscribe()
		require.IsType(t, &packets.Suback{}, c.recv())
		first := c.recv().(*packets.Publish)
		synctest.Wait()
		before := r.b.Stats().Memory
		for range 100 {
			subscribe()
			require.IsType(t, &packets.Suback{}, c.recv(), "the window is full")
		}
		synctest.Wait()
		require.Equal(t, 1, r.b.toSend("c"))
		require.LessOrEqual(t, r.b.Stats().Memory, before)
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: first.PacketID})
		c.message("t/1")
		c.message("t/2")
		c.nothing("both have come once more, and that was all")
		require.Zero(t, r.b.toSend("c"))
		c.close()
		p.close()
	})
}

// What is still to be sent counts in MaxMemory, and is bounded for each Session: a SUBSCRIBE beyond
// is told so.
func TestWhatIsToBeSentIsBoundedAndCounted(t *testing.T) {
	const most = 10_000
	withRules(t, everything, func(c *Config) { c.MaxQueuedBytes = most }, func(r *guardRig) {
		p, c := r.connect(as("p", "u")), r.connect(slowly("c"))
		for i := range 100 {
			p.publish(fmt.Sprintf("t/%d/x", i), "x", true)
		}
		synctest.Wait()
		used := func() int64 { return r.b.Stats().Memory - r.b.memory.Of(budget.Subscriptions) }
		before := used()
		c.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "t/0/x", QoS: 1}}})
		c.recv()
		first := c.recv().(*packets.Publish)
		granted := map[string]bool{}
		for i := range 100 {
			filter := fmt.Sprintf("t/%d/+", i)
			c.send(&packets.Subscribe{PacketID: 1,
				Subscriptions: []packets.Subscription{{Filter: filter, QoS: 1}}})
			switch code := c.recv().(*packets.Suback).Codes[0]; code {
			case packets.GrantedQoS1:
				granted[filter] = true
			default:
				require.Equal(t, packets.QuotaExceeded, code)
			}
		}
		require.InDelta(t, most/130, len(granted), 10)
		require.Len(t, r.b.ofClient("c")[0].subscriptionList(), len(granted)+1,
			"what is refused is not subscribed to")
		require.Equal(t, packets.GrantedQoS1, c.subscribe("t/0/+", 1),
			"a filter that it has waits already")
		require.Equal(t, packets.GrantedQoS1, c.subscribe("none", 1),
			"nothing is to be sent for it")
		require.Greater(t, used()-before, int64(most*9/10))
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: first.PacketID})
		for range granted {
			m, ok := c.recv().(*packets.Publish)
			require.True(t, ok)
			c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID})
		}
		synctest.Wait()
		require.Equal(t, before, used())
		require.Equal(t, packets.GrantedQoS1, c.subscribe("t/99/+", 1))
		c.message("t/99/x")
		c.close()
		p.close()
	})
}

// A retained message that is replaced or removed after it was found does not come behind its
// successor.
func TestWhatWasFoundIsSentAsItIsNow(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		p, c := r.connect(as("p", "u")), r.connect(as("c", "u"))
		for i := range 3 {
			p.publish(fmt.Sprintf("t/%d", i), "old", true)
		}
		s := r.b.ofClient("c")[0]
		s.mu.Lock()
		s.walking = true // in the place of a worker
		s.mu.Unlock()
		require.Equal(t, packets.GrantedQoS1, c.subscribe("t/+", 1))
		f := r.b.retained.Scan("t/+", "", 10, walkLook, nil)
		require.Len(t, f.Messages, 3)
		p.publish("t/1", "new", true)
		p.publish("t/2", "", true)
		require.Equal(t, "new", string(c.message("t/1").Payload))
		c.message("t/2")
		s.mu.Lock()
		s.sendFoundLocked(s.conn, s.cursors.First(), &f)
		s.walking = false
		conn := s.conn
		s.mu.Unlock()
		conn.flush(time.Now())
		require.Equal(t, "old", string(c.message("t/0").Payload))
		require.Equal(t, "new", string(c.message("t/1").Payload))
		c.nothing("t/2 is not retained any more")
		c.close()
		p.close()
	})
}

// What a client has not got yet it gets on its next connection.
func TestWhatIsToBeSentOutlivesTheConnection(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		p, c := r.connect(as("p", "u")), r.connect(slowly("c"))
		for i := range 3 {
			p.publish(fmt.Sprintf("t/%d", i), "x", true)
		}
		require.Equal(t, packets.GrantedQoS1, c.subscribe("t/+", 1))
		c.recv()
		c.close()
		c = r.connect(slowly("c"))
		for i := range 3 {
			require.Equal(t, i == 0, c.message(fmt.Sprintf("t/%d", i)).Dup)
		}
		c.close()
		p.close()
	})
}

// A slow decision about deliveries delays the client that it is about.
func TestASlowDecisionAboutRetainedMessagesDelaysItsClientAlone(t *testing.T) {
	var answer chan struct{}
	a := &readingAuthorizer{}
	a.deliver = func(r *hooks.AccessRequest) error {
		if r.Client.ID == "c" {
			<-answer
		}
		return nil
	}
	withRules(t, nil, func(c *Config) { c.Authorizer = a }, func(r *guardRig) {
		answer = make(chan struct{})
		p, c, d := r.connect(as("p", "u")), r.connect(as("c", "u")), r.connect(as("d", "u"))
		for i := range 100 {
			p.publish(fmt.Sprintf("t/%d", i), "x", true)
		}
		require.Equal(t, packets.GrantedQoS1, c.subscribe("t/+", 1))
		require.Equal(t, packets.GrantedQoS1, d.subscribe("t/+", 1))
		for range 100 {
			m := d.recv().(*packets.Publish)
			d.send(&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID})
		}
		c.nothing("nobody has decided")
		close(answer)
		for range 100 {
			m := c.recv().(*packets.Publish)
			c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID})
		}
		for _, x := range []*testClient{p, c, d} {
			x.close()
		}
	})
}

// At the limit of memory what is still to be sent to absent clients is given up, with a word.
func TestWhatIsToBeSentToAbsentClientsIsShed(t *testing.T) {
	var lost atomic.Int64
	withRules(t, everything, func(c *Config) {
		oneForAll(c)
		c.MaxMemory = 1 << 20
		c.Observer = &hooks.Observer{Dropped: func(e hooks.Dropped) {
			if e.Client.ID == "c" && e.Message == nil && e.Reason == hooks.DropMemory {
				lost.Add(1)
			}
		}}
	}, func(r *guardRig) {
		p, c := r.connect(as("p", "u")), r.connect(slowly("c"))
		p.publish("t/1", "x", true)
		p.publish("t/2", "x", true)
		d := r.connect(slowly("d")) // is here, so that its queue is not shortened
		require.Equal(t, packets.GrantedQoS1, d.subscribe("d", 1))
		n := 0
		for ; c.subscribe1(fmt.Sprintf("t/+/%d/#", n)) != packets.QuotaExceeded; n++ {
			if n == 0 {
				require.Equal(t, packets.GrantedQoS1, c.subscribe1("t/+"))
				require.IsType(t, &packets.Publish{}, c.recv())
			}
		}
		require.Greater(t, n, 1000, "up to a share of MaxMemory")
		c.close()
		for r.b.Publish(t.Context(), &Message{Topic: "d", QoS: 1,
			Payload: make([]byte, 10_000)}) == nil && lost.Load() == 0 {
			synctest.Wait()
		}
		require.EqualValues(t, n, lost.Load(),
			"the first filter had come to its end, and one was added")
		d.close()
		p.close()
	})
}

// subscribe1 is subscribe of QoS 1, for a client that has been sent a message already.
func (c *testClient) subscribe1(filter string) packets.ReasonCode {
	c.t.Helper()
	c.send(&packets.Subscribe{PacketID: 9,
		Subscriptions: []packets.Subscription{{Filter: filter, QoS: 1}}})
	return c.recv().(*packets.Suback).Codes[0]
}

// A subscription that cannot be stored gives its place back to the one before it, with what is
// still to be sent.
func TestATakenBackSubscriptionLeavesWhatWasToBeSent(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		p, c := r.connect(as("p", "u")), r.connect(slowly("c"))
		for i := range 2 {
			p.publish(fmt.Sprintf("t/%d", i), "x", true)
		}
		require.Equal(t, packets.GrantedQoS1, c.subscribe("t/+", 1))
		first := c.recv().(*packets.Publish)
		s := r.b.ofClient("c")[0]
		g := grant{filter: "t/+"}
		require.NoError(t, s.subscribe(s.conn, &g, subs.Options{}))
		s.takeBackSubscription(&g)
		require.Equal(t, 1, r.b.toSend("c"))
		g = grant{filter: "t/#"}
		require.NoError(t, s.subscribe(s.conn, &g, subs.Options{}))
		s.takeBackSubscription(&g)
		require.Equal(t, 1, r.b.toSend("c"))
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: first.PacketID})
		require.EqualValues(t, 1, c.message("t/1").QoS)
		c.nothing("it was one subscription")
		c.close()
		p.close()
	})
}

// A program that reads from a Subscription can stop to wait although there is much to look at.
func TestNextEndsWithItsContext(t *testing.T) {
	b := newTestBroker(t, func(c *Config) { c.Store = new(memory.Store) })
	defer b.Close()
	retainHard(t, b, 5000)
	sub := mustSubscribe(t, b, hardFilter(0), nil)
	for i := range 2000 {
		require.NoError(t, sub.Add(hardFilter(i), nil))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := sub.Next(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	sub.s.mu.Lock()
	require.NotZero(t, sub.s.cursors.Len(), "it had not come to the end")
	sub.s.mu.Unlock()
	require.NoError(t, sub.Add("last", nil))
	mustPublish(t, b, "last", "x", 0)
	m, err := sub.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, "last", m.Topic, "what is published now is not behind that")
}
