package dunlin

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// twoPublishers has two publishers publish at the same time to each of n topics: what message
// makes.
func twoPublishers(t *testing.T, b *Broker, n int,
	message func(topic string, publisher int) *Message) {
	for i := range n {
		var over sync.WaitGroup
		for p := range 2 {
			over.Go(func() {
				if err := b.Publish(context.Background(),
					message(fmt.Sprintf("t/%d", i), p)); err != nil {
					t.Error(err)
				}
			})
		}
		over.Wait()
	}
}

// Of two publishers of one topic, the one whose message stays retained is the one whose message
// came last.
func TestTheLastMessageOfATopicIsTheRetainedOne(t *testing.T) {
	const n = 3000
	for name, edit := range map[string]func(*Config){
		"without a Store": func(*Config) {},
		"with a Store":    func(c *Config) { c.Store = new(memory.Store) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestBroker(t, edit)
			defer b.Close()
			subs := make([]*Subscription, 20)
			for i := range subs { // it takes a moment to deliver to all of them
				subs[i] = mustSubscribe(t, b, "t/+", &SubscribeOptions{Buffer: 3 * n})
			}
			twoPublishers(t, b, n, func(topic string, publisher int) *Message {
				return &Message{Topic: topic, Payload: fmt.Append(nil, publisher), Retain: true}
			})
			for _, sub := range subs {
				last := map[string]string{}
				for range 2 * n {
					m, err := sub.Next(t.Context())
					require.NoError(t, err)
					last[m.Topic] = string(m.Payload)
				}
				for m := range b.Retained("#") {
					require.Equal(t, string(m.Payload), last[m.Topic], m.Topic)
				}
			}
		})
	}
}

// The retained message that replaced another one of the same moment expires in its own time.
func TestTheRetainedMessageExpiresInItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		defer b.Close()
		twoPublishers(t, b, 60_000, func(topic string, publisher int) *Message {
			m := &Message{Topic: topic, Payload: []byte("x"), Retain: true}
			m.Properties = m.Properties.AppendUint(packets.MessageExpiryInterval,
				uint32(1+publisher))
			return m
		})
		time.Sleep(3 * time.Second)
		synctest.Wait()
		require.Zero(t, b.Stats().Retained, "all have expired")
	})
}

// Who subscribes between the moment that a publisher knows who gets its message and the one in
// which that becomes the retained one finds the retained message before it, and has to get this
// one.
func TestASubscribeDoesNotMissWhatBecomesRetained(t *testing.T) {
	for _, stored := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newTestBroker(t, func(c *Config) {
				if stored {
					c.Store = new(memory.Store)
				}
			})
			l, done := serveMemory(t, b)
			c, _ := newTestClient(t, dial(t, l), connect("c"))
			publisher := b.getTurn()
			publisher.now = time.Now()
			publisher.route.fill(publisher, []byte("t"), origin{})
			c.subscribe("t", packets.QoS0)
			publisher.own = packets.Publish{Retain: true, Topic: []byte("t"),
				Payload: []byte("new")}
			publisher.out.reset(&publisher.own, "", publisher.now, 0)
			matched, err := publisher.publish(&publisher.out, &publisher.route)
			require.NoError(t, err)
			require.Equal(t, 1, matched)
			publisher.clear()
			publisher.end()
			require.Equal(t, "new", string(c.message("t").Payload))
			b.putTurn(publisher)
			c.nc.Close()
			done()
		})
	}
}
