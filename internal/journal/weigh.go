package journal

import (
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what operations weigh. A batch counts as memory from its first operation until it is
// decided, and once more while the store encodes it.

// About what is held beside names and messages.
const (
	OpWeight       = 48 // of an operation
	DeliveryWeight = 64 // of a place in a queue, in an operation
	idWeight       = 4  // of a Subscription Identifier
	countStep      = 4 << 10
)

// Weigh returns about how many bytes op takes in memory, which is also about what it takes when a
// store has encoded it.
func Weigh(op store.Op) int {
	n := OpWeight
	switch op := op.(type) {
	case *store.PutSession:
		n += len(op.ClientID) + len(op.Principal) + len(op.Username) + len(op.Mount)
		if op.Will != nil {
			n += textSize(&op.Will.Message)
		}
	case *store.PutSubscription:
		n += len(op.Filter)
	case *store.DeleteSubscription:
		n += len(op.Filter)
	case *store.Publish:
		n += WeighMessage(op.Message) + weighDeliveries(op.To)
	case *store.PutRetained:
		n += WeighMessage(op.Message)
	case *store.DeleteRetained:
		n += len(op.Topic)
	}
	return n
}

func weighAll(ops []store.Op) (n int) {
	for _, op := range ops {
		n += Weigh(op)
	}
	return n
}

// WeighMessage returns about how many bytes m takes in an operation.
func WeighMessage(m *store.Message) int { return textSize(&m.Message) + len(m.From) }

func textSize(m *packets.Message) int { return len(m.Topic) + len(m.Payload) + len(m.Properties) }

func weighDeliveries(to []store.Delivery) (n int) {
	for i := range to {
		n += DeliveryWeight + idWeight*len(to[i].IDs) + len(to[i].Group)
	}
	return n
}

// growLocked adds n, which may be negative, to the weight of x. The count of memory follows in
// steps.
func (j *Journal) growLocked(x *Batch, n int) {
	x.bytes += n
	j.Room.Add(int64(n))
	if d := x.bytes - x.counted; d > countStep || d < -countStep {
		x.count(j.o.Memory, x.bytes)
	}
}

// withdrawLocked takes the operation of a message that no queue needs out of x again. What may
// remain of a QoS 2 message is that it was received.
func (j *Journal) withdrawLocked(x *Batch, slot int, op *store.Publish) {
	j.growLocked(x, -Weigh(op))
	x.ops[slot] = nil
	if op.FromSession != 0 {
		received := &store.Received{Session: op.FromSession, ID: op.FromID}
		x.ops[slot] = received
		j.growLocked(x, Weigh(received))
	}
}

// count makes the count of memory know of n bytes of x.
func (x *Batch) count(mem *budget.Budget, n int) {
	mem.Add(budget.Uncommitted, int64(n-x.counted))
	x.counted = n
}
