package dunlin

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what the operations for the Store weigh.

// removal is a PUBLISH that removes the retained message of a topic.
func removal(topic string, q packets.QoS, id uint16) *packets.Publish {
	return toRetain(message2(topic, "", q, id))
}

func TestRemovingARetainedMessageThatIsNotThereIsNoOperation(t *testing.T) {
	onStage(t, func(st *stage) {
		p := st.clean("p")
		time.Sleep(time.Second)
		before := len(st.store.seen)
		for _, q := range []packets.QoS{0, 1, 2} {
			p.send(removal("never/there", q, uint16(q)))
		}
		p.want(packets.TypePuback, packets.TypePubrec)
		m := &Message{Topic: "never/there", Retain: true}
		require.NoError(t, st.b.Publish(context.Background(), m))
		time.Sleep(time.Second)
		require.Len(t, st.store.seen, before)
	})
}

// A second removal of what was there adds nothing, and must not be acknowledged before the first
// one is durable.
func TestARepeatedRemovalWaitsForTheFirst(t *testing.T) {
	kept := func(st *stage) (p, q *peerConn) {
		p, q = st.clean("p"), st.clean("q")
		p.send(toRetain(message2("t", "kept", packets.QoS1, 1)))
		p.want(packets.TypePuback)
		return p, q
	}
	onStage(t, func(st *stage) {
		p, q := kept(st)
		release := st.store.hold()
		p.send(removal("t", packets.QoS1, 2))
		q.send(removal("t", packets.QoS1, 2))
		q.wantNothing("while the removal is committed")
		release()
		p.want(packets.TypePuback)
		q.want(packets.TypePuback)
	})
	onStage(t, func(st *stage) {
		p, q := kept(st)
		st.store.fail(store.ErrFull)
		p.send(removal("t", packets.QoS0, 0))
		time.Sleep(time.Second)
		q.send(removal("t", packets.QoS1, 2))
		a := q.want(packets.TypePuback)[0].(*packets.Ack)
		require.Equal(t, packets.QuotaExceeded, a.Code, "the removal is not durable")
		st.crash()
		require.NotNil(t, st.b.retained.Get("t"))
	})
}

func TestARepeatedPUBRECIsNoOperation(t *testing.T) {
	onStage(t, func(st *stage) {
		s := st.durable("s", packets.V5)
		s.subscribe("t", packets.QoS2)
		st.clean("p").send(message2("t", "x", packets.QoS2, 1))
		s.want(packets.TypePublish)
		release := st.store.hold()
		s.send(ack(packets.TypePubrec, 1), ack(packets.TypePubrec, 1))
		s.wantNothing("while the first is committed")
		release()
		s.want(packets.TypePubrel, packets.TypePubrel)
		time.Sleep(time.Second)
		before := st.store.count()
		s.send(ack(packets.TypePubrec, 1))
		s.want(packets.TypePubrel)
		time.Sleep(time.Second)
		require.Equal(t, before, st.store.count())
	})
}

// Retained messages that one client sets and removes at QoS 0, with long topics, to a slow disk.
func TestWhatOneClientHasUncommittedIsBoundedInBytes(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		st.cfg.MaxUncommittedBytes = 1 << 20
		st.start()
		empty := st.b.Stats().Memory
		p := st.clean("p")
		time.Sleep(time.Second)
		release := st.store.hold()
		var b []byte
		for i := range 300 {
			topic := strings.Repeat("x", 60_000) + string(rune('a'+i%20))
			for _, payload := range []string{"x", ""} {
				var err error
				b, err = toRetain(message2(topic, payload, packets.QoS0, 0)).Append(b, p.v)
				require.NoError(t, err)
			}
		}
		go p.nc.Write(b)
		synctest.Wait()
		held := st.uncommitted()
		require.Less(t, held, 2<<20, "bytes that wait for the store")
		require.Greater(t, st.b.Stats().Memory, empty+int64(held), "they are counted")
		release()
		time.Sleep(time.Second)
		p.nc.Close()
		time.Sleep(time.Second)
		require.Equal(t, empty, st.b.Stats().Memory, "and no longer once they are durable")
	})
}
