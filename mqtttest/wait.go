package mqtttest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Bounds of the record of messages. The oldest messages are removed first.
const (
	maxMessages     = 100_000
	maxMessageBytes = 64 << 20
)

type recorded struct {
	m     *dunlin.Message
	at    time.Time
	taken bool // by WaitFor
}

// A Matcher says whether a message is the expected one. It must not modify the message. A nil
// Matcher accepts every message.
type Matcher func(m *dunlin.Message) bool

// Payload returns a Matcher for messages with this payload.
func Payload(s string) Matcher {
	return func(m *dunlin.Message) bool { return string(m.Payload) == s }
}

// A record keeps published messages.
type record struct {
	of    []*recorded
	lost  int // that were recorded and are forgotten
	bytes int // of payloads in of
}

// record adds a published message to the record.
func (b *Broker) record(m *dunlin.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.records(m.Topic)
	r.of = append(r.of, &recorded{m: m, at: time.Now()})
	r.bytes += len(m.Payload)
	for len(r.of) > maxMessages || r.bytes > maxMessageBytes {
		r.bytes -= len(r.of[0].m.Payload)
		r.of[0] = nil
		r.of = r.of[1:]
		r.lost++
	}
	b.notify()
}

// records returns the records that hold the messages of a topic or a filter. A filter matches
// either topics that begin with "$" or topics that do not [MQTT-4.7.2-1].
func (b *Broker) records(topic string) *record {
	if strings.HasPrefix(topic, "$") {
		return &b.system
	}
	return &b.messages
}

// Publish publishes a message at QoS 1, as a program does that embeds the broker. It fails the test
// if the broker refuses the message.
func (b *Broker) Publish(topic, payload string) {
	b.t.Helper()
	b.PublishMessage(&dunlin.Message{Topic: topic, Payload: []byte(payload), QoS: packets.QoS1})
}

// PublishMessage publishes any message. It fails the test if the broker refuses it. m must not be
// modified afterwards.
func (b *Broker) PublishMessage(m *dunlin.Message) {
	b.t.Helper()
	core := b.Broker()
	if core == nil {
		b.t.Fatalf("mqtttest: Publish to %q while the broker is stopped", m.Topic)
	}
	if err := core.Publish(context.Background(), m); err != nil {
		b.t.Fatalf("mqtttest: Publish to %q: %v", m.Topic, err)
	}
}

// Messages returns the messages on topics that match filter, in the order in which the broker
// accepted them. They come from clients, from Wills, from Publish, and from the program that embeds
// the broker (Publish, PublishWait, Request and Respond of the dunlin.Broker, Publish of a
// dunlin.Subscription). $SYS topics are recorded if Config.SysInterval is set. Topics include the
// mount point of the client. The messages must not be modified. The Broker keeps the last 100,000
// messages, at most 64 MiB, and as many again on topics that begin with "$".
func (b *Broker) Messages(filter string) []*dunlin.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []*dunlin.Message
	for _, r := range b.records(filter).of {
		if packets.MatchTopic(filter, r.m.Topic) {
			found = append(found, r.m)
		}
	}
	return found
}

// WaitFor waits until there is a message on a topic that matches filter, for which match is true,
// and returns it. A message that was published before the call counts. No message is returned
// twice, so two calls wait for two messages. Messages describes which messages are recorded.
// WaitFor fails t if there is no such message within the Timeout.
func (b *Broker) WaitFor(t testing.TB, filter string, match Matcher) *dunlin.Message {
	t.Helper()
	if !packets.ValidTopicFilter(filter) {
		t.Fatalf("mqtttest: WaitFor: %q is no Topic Filter", filter)
	}
	var found *dunlin.Message
	var others string
	ok := b.wait(func(last bool) bool {
		for _, r := range b.records(filter).of {
			if !r.taken && packets.MatchTopic(filter, r.m.Topic) && (match == nil || match(r.m)) {
				r.taken, found = true, r.m
				return true
			}
		}
		if last {
			others = b.othersLocked(filter)
		}
		return false
	})
	if !ok {
		t.Fatalf("mqtttest: no message on %q that matches within %v\n%s%s",
			filter, b.o.timeout, others, b.traces(func(k *link) bool { return k.mentions(filter) }))
	}
	return found
}

// othersLocked lists the messages on matching topics, for the failure of WaitFor. Broker.mu is
// held.
func (b *Broker) othersLocked(filter string) string {
	var s strings.Builder
	for _, r := range b.records(filter).of {
		if !packets.MatchTopic(filter, r.m.Topic) {
			continue
		}
		why := "does not match"
		if r.taken {
			why = "was returned by an earlier WaitFor"
		}
		fmt.Fprintf(&s, "  %10.3fs  %s  # %s\n", r.at.Sub(b.started).Seconds(),
			packets.Trace(&packets.Publish{
				Topic: []byte(r.m.Topic), Payload: r.m.Payload, QoS: r.m.QoS, Retain: r.m.Retain,
				Properties: r.m.Properties,
			}), why)
	}
	if s.Len() == 0 {
		return fmt.Sprintf("nothing was published there; %d messages elsewhere\n",
			len(b.messages.of)+b.messages.lost+len(b.system.of)+b.system.lost)
	}
	return "published there:\n" + s.String()
}

// WaitSubscribed waits until a client, or the program that embeds the broker, is subscribed to
// filter. Write filter exactly as in Subscriptions of dunlin.SessionInfo: with "$share/" and the
// group, and with the mount point of the client if it has one. WaitSubscribed fails t if nobody is
// subscribed within the Timeout, and lists the subscriptions that exist.
func (b *Broker) WaitSubscribed(t testing.TB, filter string) {
	t.Helper()
	var all []subscribed
	if b.wait(func(bool) bool {
		all = b.subscriptionsLocked()
		return slices.ContainsFunc(all, func(s subscribed) bool { return s.filter == filter })
	}) {
		return
	}
	there := "there are no subscriptions\n"
	if len(all) > 0 {
		there = "there are, mount points included:\n"
		for _, s := range all {
			there += fmt.Sprintf("  %q of %q\n", s.filter, s.id)
		}
	}
	t.Fatalf("mqtttest: nobody has subscribed to %q within %v\n%s%s", filter, b.o.timeout, there,
		b.traces(nil))
}

// subscribed is one subscription of a client or of the program.
type subscribed struct{ id, filter string }

// subscriptionsLocked returns all subscriptions, first those of clients. Broker.mu is held when it
// is called and when it returns. It unlocks Broker.mu in between.
func (b *Broker) subscriptionsLocked() (all []subscribed) {
	core := b.core
	b.mu.Unlock()
	if core != nil {
		for s := range core.Sessions() {
			for _, sub := range s.Subscriptions {
				all = append(all, subscribed{s.ClientID, sub.Filter})
			}
		}
	}
	b.mu.Lock()
	clients := len(all)
	for id, filters := range b.programs {
		for f := range filters {
			if s := (subscribed{id, f}); !slices.Contains(all[:clients],
				s) { // one with a Name is among the Sessions
				all = append(all, s)
			}
		}
	}
	slices.SortFunc(all[clients:], func(x, y subscribed) int {
		return cmp.Or(cmp.Compare(x.id, y.id), cmp.Compare(x.filter, y.filter))
	})
	return all
}

// WaitConnected waits until a client with this identifier is connected. It fails t if that takes
// longer than the Timeout.
func (b *Broker) WaitConnected(t testing.TB, id string) {
	t.Helper()
	if !b.wait(func(bool) bool { p := b.clients[id]; return p != nil && p.connections > 0 }) {
		t.Fatalf("mqtttest: client %q is not connected within %v\n%s",
			id, b.o.timeout, b.traces(func(k *link) bool { return k.client() == id }))
	}
}

// WaitDisconnected waits until a client with this identifier has been connected and has
// disconnected. It fails t if that takes longer than the Timeout.
func (b *Broker) WaitDisconnected(t testing.TB, id string) {
	t.Helper()
	state := "was never connected"
	if b.wait(func(bool) bool {
		p := b.clients[id]
		if p != nil && p.connections > 0 {
			state = "is still connected"
		}
		return p != nil && p.connects > 0 && p.connections == 0
	}) {
		return
	}
	t.Fatalf("mqtttest: client %q %s after %v\n%s",
		id, state, b.o.timeout, b.traces(func(k *link) bool { return k.client() == id }))
}

// wait waits until look returns true. It returns false if that takes longer than the Timeout. It
// calls look with Broker.mu held. The argument of look is true for the last call, after the
// Timeout. This call decides, so a failure describes what this call has seen.
func (b *Broker) wait(look func(last bool) bool) bool { return b.waitWithin(b.o.timeout, look) }

func (b *Broker) waitWithin(timeout time.Duration, look func(last bool) bool) bool {
	expired := time.NewTimer(timeout)
	defer expired.Stop()
	for last := false; ; {
		b.mu.Lock()
		changed := b.changed
		seen := look(last)
		b.mu.Unlock()
		if seen || last {
			return seen
		}
		select {
		case <-changed:
		case <-expired.C:
			last = true
		}
	}
}

// mentions says whether the trace of the connection has a packet with a topic that matches filter.
func (k *link) mentions(filter string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, line := range k.trace {
		for word := range strings.FieldsSeq(line) {
			key, value, _ := strings.Cut(word, "=")
			switch key {
			case "topic", "will-topic":
				if packets.MatchTopic(filter, value) {
					return true
				}
			case "filter":
				if i := strings.LastIndexByte(value, ':'); i >= 0 &&
					(value[:i] == filter || packets.MatchTopic(value[:i], filter)) {
					return true
				}
			}
		}
	}
	return false
}

// Trace returns the packets of all connections, grouped by connection, in the form of the failure
// messages.
func (b *Broker) Trace() string { return b.traces(nil) }

// traces returns the packets of the connections concerned, or of all connections if none is
// concerned.
func (b *Broker) traces(concerned func(*link) bool) string {
	b.mu.Lock()
	links := append([]*link(nil), b.links...)
	b.mu.Unlock()
	var some, all strings.Builder
	for _, k := range links {
		text := k.String()
		all.WriteString(text)
		if concerned != nil && concerned(k) {
			some.WriteString(text)
		}
	}
	switch {
	case len(links) == 0:
		return "there were no connections\n"
	case some.Len() > 0:
		return some.String()
	}
	return all.String()
}
