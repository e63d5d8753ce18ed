package dunlin

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/room"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what may wait for the Store: MaxUncommittedBytes, for the whole Broker.

// narrow starts the Broker anew with so much room.
func (st *stage) narrow(room int) {
	st.stop()
	st.cfg.MaxUncommittedBytes = room
	st.start()
}

// uncommitted is what the operations weigh that are not decided.
func (st *stage) uncommitted() int {
	synctest.Wait()
	return int(st.b.journal.Room.Used())
}

func TestRoomIsTakenForTheWholeBroker(t *testing.T) {
	const publishers, size, room = 50, 20_000, 100_000
	onStage(t, func(st *stage) {
		st.narrow(room)
		var ps []*peerConn
		for i := range publishers {
			ps = append(ps, st.clean(fmt.Sprint("p", i)))
		}
		release := st.store.hold()
		for i, p := range ps {
			payload := string(bytes.Repeat([]byte{'x'}, size))
			p.send(toRetain(message2(fmt.Sprint("t/", i), payload, packets.QoS1, 1)))
		}
		require.LessOrEqual(t, st.uncommitted(), room, "bytes that wait for the store")
		require.Less(t, st.b.retained.Len(), publishers/2, "messages that were taken")
		release()
		for _, p := range ps {
			require.Equal(t, packets.NoMatchingSubscribers,
				p.want(packets.TypePuback)[0].(*packets.Ack).Code)
		}
		time.Sleep(time.Second)
		require.Zero(t, st.b.journal.Room.Used(), "all is given back")
	})
}

// A publisher waits for a bounded time, and then learns that its message was not taken.
func TestAPublisherThatFindsNoRoomIsRefusedInTheEnd(t *testing.T) {
	onStage(t, func(st *stage) {
		st.narrow(10_000)
		p, q, old := st.clean("p"), st.clean("q"), st.dial("old", packets.V311, true, 0)
		old.want(packets.TypeConnack)
		watcher := st.clean("w")
		watcher.subscribe("#", packets.QoS0)
		payload := string(make([]byte, 6_000))
		release := st.store.hold()
		p.send(toRetain(message2("t/p", payload, packets.QoS1, 1)))
		watcher.want(packets.TypePublish)
		q.send(toRetain(message2("t/q", payload, packets.QoS2, 1)))
		old.send(toRetain(message2("t/old", payload, packets.QoS1, 1)))
		time.Sleep(room.Patience - time.Second)
		q.wantNothing("while it waits")
		require.False(t, old.ended())
		time.Sleep(2 * time.Second)
		require.Equal(t, packets.QuotaExceeded, q.want(packets.TypePubrec)[0].(*packets.Ack).Code)
		require.True(t, old.ended(), "3.1.1 has no way to refuse")
		p.wantNothing("it is not decided")
		watcher.wantNothing("what was refused was routed")
		release()
		p.want(packets.TypePuback)
		q.send(toRetain(message2("t/q", payload, packets.QoS2, 2)))
		q.want(packets.TypePubrec)
		require.NotNil(t, st.b.retained.Get("t/q"))
	})
}

// The publisher waits, and so do a program that publishes and what else a client asks the store
// for.
func TestEverythingThatAddsWaitsForRoom(t *testing.T) {
	will := func(c *packets.Connect) {
		c.Will = &packets.Will{Topic: "will",
			Payload: make([]byte, 4_000)}
	}
	onStage(t, func(st *stage) {
		st.narrow(10_000)
		sub, err := st.b.Subscribe(context.Background(), "a", &SubscribeOptions{Name: "n"})
		require.NoError(t, err)
		p, s, u := st.clean("p"), st.durable("s", packets.V5), st.durable("u", packets.V5)
		u.subscribe("u", packets.QoS1)
		time.Sleep(time.Second)
		release := st.store.hold()
		p.send(toRetain(message2("t/p", string(make([]byte, 9_000)), packets.QoS1, 1)))
		before := st.uncommitted()
		long := string(bytes.Repeat([]byte{'x'}, 4_000))
		s.send(subscribeTo(long, packets.QoS1))
		u.send(&packets.Unsubscribe{PacketID: 2, Filters: []string{long, "u"}})
		c := st.dial("c", packets.V5, false, 3600, will)
		var wg sync.WaitGroup
		wg.Go(func() {
			m := &Message{Topic: "t/b", Payload: make([]byte, 4_000), Retain: true}
			require.NoError(t, st.b.Publish(context.Background(), m))
		})
		wg.Go(func() { require.NoError(t, sub.Add(long, nil)) })
		require.Equal(t, before, st.uncommitted(), "what was added while there was no room")
		release()
		wg.Wait()
		p.want(packets.TypePuback)
		s.want(packets.TypeSuback)
		u.want(packets.TypeUnsuback)
		c.want(packets.TypeConnack)
	})
}

func TestAMessageLargerThanTheRoomGoesAlone(t *testing.T) {
	onStage(t, func(st *stage) {
		st.narrow(1_000)
		p := st.clean("p")
		p.send(toRetain(message2("t", string(make([]byte, 100_000)), packets.QoS1, 1)))
		p.want(packets.TypePuback)
	})
}

// Clients that try to begin a Session while the store is full leave nothing behind to be carried.
func TestASessionThatIsRefusedLeavesNothingToBeCarried(t *testing.T) {
	onStage(t, func(st *stage) {
		st.durable("s", packets.V5).subscribe("t", packets.QoS1)
		time.Sleep(time.Second)
		var most atomic.Int64
		st.store.mu.Lock()
		st.store.before = func(ops []store.Op) error {
			most.Store(max(most.Load(), int64(len(ops))))
			return store.ErrFull
		}
		st.store.mu.Unlock()
		for i := range 100 {
			n := st.dial(fmt.Sprint("new", i), packets.V5, true, 3600)
			require.Equal(t, packets.QuotaExceeded,
				n.want(packets.TypeConnack)[0].(*packets.Connack).Code)
			_, err := st.b.Subscribe(context.Background(), "t",
				&SubscribeOptions{Name: fmt.Sprint(i)})
			require.ErrorIs(t, err, store.ErrFull)
			time.Sleep(journal.RetryDelay)
		}
		require.Less(t, most.Load(), int64(10), "operations at once")

		// One that would end for the new one stays.
		c := st.dial("s", packets.V5, true, 3600)
		require.Equal(t, packets.QuotaExceeded,
			c.want(packets.TypeConnack)[0].(*packets.Connack).Code)
		info, there := st.b.Session("s")
		require.True(t, there)
		require.Len(t, info.Subscriptions, 1)
	})
}

// The retained messages for a new subscription come at the pace of the store as well.
func TestRetainedMessagesForASubscriberWaitForRoom(t *testing.T) {
	const messages, size = 100, 2_000
	onStage(t, func(st *stage) {
		st.cfg.MaxInflight = 4
		st.narrow(10 * size)
		for i := range messages {
			m := &Message{Topic: fmt.Sprint("t/", i), Payload: make([]byte, size), QoS: 1,
				Retain: true}
			require.NoError(t, st.b.Publish(context.Background(), m))
		}
		s := st.durable("s", packets.V5)
		s.send(subscribeTo("t/#", packets.QoS1))
		time.Sleep(time.Second)
		release := st.store.hold()
		come := 0
		read := func() {
			for range messages {
				for _, p := range s.got() {
					if p, ok := p.(*packets.Publish); ok {
						come++
						s.send(ack(packets.TypePuback, p.PacketID))
					}
				}
			}
		}
		read()
		require.Less(t, st.uncommitted(), 15*size, "bytes that wait for the store")
		require.Less(t, come, 20)
		p := st.clean("p")
		p.send(toRetain(message2("u", string(make([]byte, size)), packets.QoS1, 1)))
		p.wantNothing("there is no room for a publisher either")
		release()
		read()
		require.Equal(t, messages, come)
		p.want(packets.TypePuback)
	})
}
