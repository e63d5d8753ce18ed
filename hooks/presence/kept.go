package presence

import (
	"container/list"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// kept knows the retained messages of clients that have disconnected, so that there are not more
// than most, and these do not take more than mostBytes.
type kept struct {
	most, mostBytes int
	order           list.List // of *retained, those that were published first in front
	topics          map[string]*list.Element
	bytes           int
}

// retained is a retained message.
type retained struct {
	topic string
	bytes int
	at    time.Time // when it was published
}

// keptCost is about what a retained message takes here and in the broker, besides its content.
const keptCost = 512

// add notes a message that was published at a time.
func (k *kept) add(m *packets.Message, at time.Time) {
	k.put(&retained{m.Topic, keptBytes(m), at})
}

// keptBytes is about how much memory m takes.
func keptBytes(m *packets.Message) int { return keptCost + 2*len(m.Topic) + len(m.Payload) }

// put notes a message whose topic is not known yet.
func (k *kept) put(r *retained) {
	k.topics[r.topic] = k.order.PushBack(r)
	k.bytes += r.bytes
}

// forget notes that a message is there no more.
func (k *kept) forget(topic string) {
	if e := k.topics[topic]; e != nil {
		k.bytes -= k.order.Remove(e).(*retained).bytes
		delete(k.topics, topic)
	}
}

// surplus returns the topic of the message that there is no room for; empty if there is none. It
// forgets those that have expired.
func (k *kept) surplus(now time.Time, keep time.Duration) string {
	for e := k.order.Front(); e != nil; e = k.order.Front() {
		r := e.Value.(*retained)
		switch {
		case keep > 0 && now.Sub(r.at) > keep+time.Second:
			k.forget(r.topic)
		case len(k.topics) > k.most || k.bytes > k.mostBytes:
			return r.topic
		default:
			return ""
		}
	}
	return ""
}
