package journal

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

func TestAnOperationWeighsWhatItHolds(t *testing.T) {
	long := strings.Repeat("x", 60_000)
	text := packets.Message{Topic: long}
	for _, op := range []store.Op{
		&store.PutSession{ClientID: long},
		&store.PutSession{Principal: long},
		&store.PutSession{Username: long},
		&store.PutSession{Mount: long},
		&store.PutSession{Will: &store.Will{Message: text}},
		&store.PutSubscription{Subscription: packets.Subscription{Filter: long}},
		&store.DeleteSubscription{Filter: long},
		&store.Publish{Message: &store.Message{Message: text}},
		&store.Publish{Message: message(long)},
		&store.Publish{Message: &store.Message{Message: packets.Message{Properties: []byte(long)}}},
		&store.Publish{Message: &store.Message{From: long}},
		&store.Publish{Message: message(""), To: []store.Delivery{{IDs: make([]uint32, 15_000)}}},
		&store.Publish{Message: message(""), To: []store.Delivery{{Group: long}}},
		&store.Publish{Message: message(""), To: make([]store.Delivery, 1_000)},
		&store.PutRetained{Message: &store.Message{Message: text}},
		&store.DeleteRetained{Topic: long},
	} {
		require.GreaterOrEqual(t, Weigh(op), 60_000, "%T", op)
	}
	require.Positive(t, Weigh(&store.Done{}))
}

func TestABatchWeighsWhatItsOperationsDo(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		release := r.hold()
		go r.added("x")
		synctest.Wait()
		for i := range 300 {
			w := NewWrite(r.Journal)
			op := w.Publish(message(strings.Repeat("x", 1_000)), 0)
			for range i % 3 {
				op.To = append(op.To, store.Delivery{IDs: []uint32{1}})
			}
			op.FromSession = uint64(i % 2)
			w.Conclude()
			w.Clear()
		}
		synctest.Wait()
		n := 0
		for _, op := range r.pending.ops {
			if op != nil { // withdrawn
				n += Weigh(op)
			}
		}
		require.Equal(t, n, r.pending.bytes)
		require.InDelta(t, r.Room.Used(), r.memory.Of(budget.Uncommitted), 2*countStep)
		release()
	})
}
