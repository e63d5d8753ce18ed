package dunlin

import (
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what the operations for the Store weigh. A batch counts against MaxMemory from its
// first operation until it is decided, and once more while the store encodes it.

const (
	opWeight       = 48 // about what an operation takes beside the names and the message in it
	deliveryWeight = 64 // about what one place in a queue takes in an operation
	lateWeight     = 96 // about what a receiver of a late message takes
	countStep      = 4 << 10
)

// weigh returns about how many bytes op takes in memory, which is also about what it takes when a
// store has encoded it.
func weigh(op store.Op) int {
	n := opWeight
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
		n += messageWeight(op.Message) + weighDeliveries(op.To)
	case *store.PutRetained:
		n += messageWeight(op.Message)
	case *store.DeleteRetained:
		n += len(op.Topic)
	}
	return n
}

func weighAll(ops []store.Op) (n int) {
	for _, op := range ops {
		n += weigh(op)
	}
	return n
}

func messageWeight(m *message) int { return textSize(&m.Message) + len(m.From) }

func textSize(m *packets.Message) int { return len(m.Topic) + len(m.Payload) + len(m.Properties) }

func weighDeliveries(to []store.Delivery) (n int) {
	for i := range to {
		n += deliveryWeight + idBytes*len(to[i].IDs) + len(to[i].Group)
	}
	return n
}

// grow adds n, which may be negative, to the weight of x. The count of memory follows in steps.
// mu is held.
func (j *journal) grow(x *batch, n int) {
	x.bytes += n
	j.room.add(int64(n))
	if d := x.bytes - x.counted; d > countStep || d < -countStep {
		x.count(j.b.memory, x.bytes)
	}
}

// withdraw takes the operation of a message that no queue needs out of x again. What may remain of
// a QoS 2 message is that it was received. mu is held.
func (j *journal) withdraw(x *batch, slot int, op *store.Publish) {
	j.grow(x, -weigh(op))
	x.ops[slot] = nil
	if op.FromSession != 0 {
		received := &store.Received{Session: op.FromSession, ID: op.FromID}
		x.ops[slot] = received
		j.grow(x, weigh(received))
	}
}

// count makes the count of memory know of n bytes of x.
func (x *batch) count(mem *budget.Budget, n int) {
	mem.Add(budget.Uncommitted, int64(n-x.counted))
	x.counted = n
}
