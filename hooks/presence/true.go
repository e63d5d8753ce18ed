package presence

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file corrects retained messages after a crash, and after events were lost.

const errUnknown = "the broker does not know when and why: it ended, or lost the event"

// repair corrects the retained messages if one of them may be wrong: at once, and again after
// growing pauses while events are lost. next is the time of the next correction; zero: none is
// needed.
func (p *Presence) repair(b Broker, now time.Time) (repaired bool, next time.Time) {
	p.mu.Lock()
	doubtful := p.doubtful
	p.mu.Unlock()
	switch {
	case !doubtful:
		return false, time.Time{}
	case p.again.After(now):
		return false, p.again
	case now.Sub(p.again) > lastPause: // all was well for a while
		p.pause = firstPause
	default:
		p.pause = min(2*p.pause, lastPause)
	}
	p.again = now.Add(p.pause)
	p.makeTrue(b)
	return true, time.Time{}
}

// makeTrue compares the retained messages with the clients that are connected, and queues an event
// for each that differs. Run calls it.
func (p *Presence) makeTrue(b Broker) {
	there := make(map[string]Event) // those that are said to be connected, by topic
	var gone []retained             // that were retained before a restart
	filter := p.options.Prefix + "/+"
	if p.options.PerPrincipal {
		filter += "/+"
	}
	for m := range b.Retained(filter) {
		var e Event
		if json.Unmarshal(m.Payload, &e) != nil || p.topic(&e) != m.Topic {
			continue // somebody else has published it
		}
		switch e.State {
		case "connected":
			there[m.Topic] = e
		case "disconnected":
			if p.kept.topics[m.Topic] == nil && e.DisconnectedAt != nil {
				gone = append(gone, retained{m.Topic, keptBytes(m), *e.DisconnectedAt})
			}
		}
	}
	slices.SortFunc(gone, func(a, b retained) int { return a.at.Compare(b.at) })
	for i := range gone {
		p.kept.put(&gone[i])
	}
	now, code := time.Now(), byte(packets.UnspecifiedError)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doubtful = false
	for _, c := range p.clients {
		topic := p.topic(&c.current.Event)
		if e, said := there[topic]; !said || !e.ConnectedAt.Equal(c.current.ConnectedAt) {
			p.sayUnsaidLocked(topic, &c.current.Event)
		}
		delete(there, topic)
	}
	for topic, e := range there {
		e.State, e.DisconnectedAt, e.ReasonCode = "disconnected", &now, &code
		e.Reason, e.Error = packets.UnspecifiedError.String(), errUnknown
		p.sayUnsaidLocked(topic, &e)
	}
}

// sayUnsaidLocked has e published, unless another event for the topic waits already. p.mu is held.
func (p *Presence) sayUnsaidLocked(topic string, e *Event) {
	if p.latest[topic] == nil {
		p.sayLocked(e)
	}
}
