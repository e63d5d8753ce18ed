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

// uncommitted is what the operations of all batches weigh that the committer has not taken.
func (st *stage) uncommitted() (n int) {
	synctest.Wait()
	j := st.b.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, x := range append([]*batch{j.pending}, j.sealed...) {
		n += weighAll(x.ops)
	}
	return n
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
			require.Equal(t, packets.NoMatchingSubscribers, p.want(packets.TypePuback)[0].(*packets.Ack).Code)
		}
		time.Sleep(time.Second)
		require.Zero(t, st.b.journal.room.used.Load(), "all is given back")
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
		time.Sleep(roomPatience - time.Second)
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

// The publisher waits, and so do a program that publishes and what else a client asks the store for.
func TestEverythingThatAddsWaitsForRoom(t *testing.T) {
	will := func(c *packets.Connect) { c.Will = &packets.Will{Topic: "will", Payload: make([]byte, 4_000)} }
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

// A large message does not wait for ever behind small ones that come later.
func TestRoomIsGivenInTurn(t *testing.T) {
	r := &room{most: 100}
	require.True(t, r.take(60))
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		note := func(name string) { mu.Lock(); order = append(order, name); mu.Unlock() }
		want := func(name string, n int64) {
			wg.Go(func() {
				require.NoError(t, r.await(context.Background(), n, nil))
				note(name)
			})
			synctest.Wait()
		}
		want("large", 80)
		require.False(t, r.take(10), "it would overtake")
		want("small", 10)
		require.False(t, r.open(10, func() { note("retry") }))
		want("last", 1)
		require.Empty(t, order)
		r.give(60)
		synctest.Wait()
		require.ElementsMatch(t, []string{"large", "small", "retry", "last"}, order)
		wg.Wait()
		require.EqualValues(t, 91, r.used.Load())

		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() { require.ErrorIs(t, r.await(ctx, 50, nil), context.Canceled) })
		synctest.Wait()
		want("behind", 5)
		require.Len(t, order, 4)
		cancel()
		wg.Wait()
		require.Len(t, order, 5, "those behind one that gives up go on")
		require.Zero(t, r.waiting.Load())
	})
}

// Whatever waits, a batch stays far below what a store can take.
func TestTheCommitterSplits(t *testing.T) {
	onStage(t, func(st *stage) {
		st.narrow(-1)
		p := st.clean("p")
		var most atomic.Int64
		release := st.store.hold()
		st.store.mu.Lock()
		st.store.before = func(ops []store.Op) error {
			most.Store(max(most.Load(), int64(weighAll(ops))))
			return nil
		}
		st.store.mu.Unlock()
		const messages, size = 60, 1_000_000
		for i := range messages {
			payload := string(bytes.Repeat([]byte{'x'}, size))
			p.send(toRetain(message2(fmt.Sprint("t/", i), payload, packets.QoS1, uint16(i+1))))
		}
		require.Greater(t, st.uncommitted(), 50<<20)
		release()
		require.Len(t, p.got(), messages)
		require.Less(t, most.Load(), int64(20<<20), "bytes in one Commit")
	})
}

// What follows and finds no room is tried now and then, a piece at a time, however much it is.
func TestWhatIsCarriedIsNotCommittedAnewWithEachTry(t *testing.T) {
	const messages = 3000
	onStage(t, func(st *stage) {
		st.stop()
		st.cfg.MaxInflight = messages
		st.start()
		s := st.durable("s", packets.V5)
		s.subscribe("t", packets.QoS1)
		ctx := context.Background()
		var wg sync.WaitGroup
		for range messages {
			wg.Go(func() { require.NoError(t, st.b.Publish(ctx, &Message{Topic: "t", QoS: 1})) })
		}
		wg.Wait()
		got := s.got()
		require.Len(t, got, messages)
		time.Sleep(time.Second)
		var tried atomic.Int64
		st.store.mu.Lock()
		st.store.before = func(ops []store.Op) error {
			tried.Add(int64(len(ops)))
			return store.ErrFull
		}
		st.store.mu.Unlock()
		for _, p := range got { // each in a batch of its own
			s.send(ack(packets.TypePuback, p.(*packets.Publish).PacketID))
			time.Sleep(2 * lazyDelay)
		}
		time.Sleep(10 * time.Second)
		carryOps := carryBytes / opWeight
		tries := int((messages*2*lazyDelay+10*time.Second)/retryDelay) + 1
		require.Less(t, int(tried.Load()), tries*(messages/2), "operations that were given to the store")
		require.Greater(t, carryOps, messages, "they are one piece")
		require.Positive(t, st.b.journal.room.used.Load())
		st.store.fail(nil)
		time.Sleep(time.Second)
		require.NoError(t, st.b.Healthy())
		require.Zero(t, st.b.journal.room.used.Load())
		require.EqualValues(t, 4096, st.b.Stats().Memory, "the read buffer of s")
		st.crash()
		info, _ := st.b.Session("s")
		require.Zero(t, info.Queued+info.Inflight, "messages that were acknowledged")
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
			require.Equal(t, packets.QuotaExceeded, n.want(packets.TypeConnack)[0].(*packets.Connack).Code)
			_, err := st.b.Subscribe(context.Background(), "t", &SubscribeOptions{Name: fmt.Sprint(i)})
			require.ErrorIs(t, err, store.ErrFull)
			time.Sleep(retryDelay)
		}
		require.Less(t, most.Load(), int64(10), "operations at once")

		// One that would end for the new one stays.
		c := st.dial("s", packets.V5, true, 3600)
		require.Equal(t, packets.QuotaExceeded, c.want(packets.TypeConnack)[0].(*packets.Connack).Code)
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
			m := &Message{Topic: fmt.Sprint("t/", i), Payload: make([]byte, size), QoS: 1, Retain: true}
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
