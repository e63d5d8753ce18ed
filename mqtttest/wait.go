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

// What is recorded of messages, at most. The oldest are forgotten first.
const (
	maxMessages     = 100_000
	maxMessageBytes = 64 << 20
)

type recorded struct {
	m     *dunlin.Message
	at    time.Time
	taken bool // by WaitFor
}

// A Matcher says whether a message is the one that is waited for. It must not modify it. Nil means any.
type Matcher func(m *dunlin.Message) bool

// Payload returns a Matcher for messages with this payload.
func Payload(s string) Matcher {
	return func(m *dunlin.Message) bool { return string(m.Payload) == s }
}

// A record is what is remembered of messages.
type record struct {
	of    []*recorded
	lost  int // that were recorded and are forgotten
	bytes int // of payloads in of
}

// record remembers a message that was published.
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

// records returns where the messages of a topic are, or of a filter, which matches topics of one kind alone [MQTT-4.7.2-1].
func (b *Broker) records(topic string) *record {
	if strings.HasPrefix(topic, "$") {
		return &b.system
	}
	return &b.messages
}

// Publish publishes a message with QoS 1 as the broker's own program would. It fails the test if the broker refuses it.
func (b *Broker) Publish(topic, payload string) {
	b.t.Helper()
	b.PublishMessage(&dunlin.Message{Topic: topic, Payload: []byte(payload), QoS: packets.QoS1})
}

// PublishMessage publishes any message. It fails the test if the broker refuses it. m must not be modified afterwards.
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

// Messages returns the messages that were published to topics that match filter, in the order in which the broker took them: by clients, as
// Wills, by Publish, and by the program that runs the broker (Publish, PublishWait, Request and Respond of the dunlin.Broker, Publish
// of a dunlin.Subscription); and the $SYS topics, if Config.SysInterval is set. Topics are with the mount point of the client. The messages must
// not be modified. The last 100,000 or 64 MiB are remembered, and as many of topics that begin with "$".
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

// WaitFor waits until a message has been published to a topic that matches filter and for which match is true, and returns it. One that
// was published before the call counts, but no message is returned twice: two calls wait for two messages. Which messages there are Messages
// says. It fails t if there is none within the Timeout.
func (b *Broker) WaitFor(t testing.TB, filter string, match Matcher) *dunlin.Message {
	t.Helper()
	if !packets.ValidTopicFilter(filter) {
		t.Fatalf("mqtttest: WaitFor: %q is no Topic Filter", filter)
	}
	var found *dunlin.Message
	ok := b.wait(func() bool {
		for _, r := range b.records(filter).of {
			if !r.taken && packets.MatchTopic(filter, r.m.Topic) && (match == nil || match(r.m)) {
				r.taken, found = true, r.m
				return true
			}
		}
		return false
	})
	if !ok {
		t.Fatalf("mqtttest: no message on %q that matches within %v\n%s%s", filter, b.o.timeout, b.others(filter), b.traces(func(k *link) bool {
			return k.mentions(filter)
		}))
	}
	return found
}

// others lists what was published where a message was missed.
func (b *Broker) others(filter string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var s strings.Builder
	for _, r := range b.records(filter).of {
		if !packets.MatchTopic(filter, r.m.Topic) {
			continue
		}
		why := "does not match"
		if r.taken {
			why = "was returned by an earlier WaitFor"
		}
		fmt.Fprintf(&s, "  %10.3fs  %s  # %s\n", r.at.Sub(b.started).Seconds(), packets.Trace(&packets.Publish{
			Topic: []byte(r.m.Topic), Payload: r.m.Payload, QoS: r.m.QoS, Retain: r.m.Retain, Properties: r.m.Properties,
		}), why)
	}
	if s.Len() == 0 {
		return fmt.Sprintf("nothing was published there; %d messages elsewhere\n",
			len(b.messages.of)+b.messages.lost+len(b.system.of)+b.system.lost)
	}
	return "published there:\n" + s.String()
}

// WaitSubscribed waits until a client, or the program that runs the broker, is subscribed to filter, written exactly so: with "$share/", and
// with the mount point of the client, if it has one, as in Subscriptions of dunlin.SessionInfo. It fails the test if nobody is in time, and
// says which subscriptions there are.
func (b *Broker) WaitSubscribed(filter string) {
	b.t.Helper()
	if b.wait(func() bool {
		return slices.ContainsFunc(b.subscriptions(), func(s subscribed) bool { return s.filter == filter })
	}) {
		return
	}
	there := "there are no subscriptions\n"
	b.mu.Lock()
	if all := b.subscriptions(); len(all) > 0 {
		there = "there are, mount points included:\n"
		for _, s := range all {
			there += fmt.Sprintf("  %q of %q\n", s.filter, s.id)
		}
	}
	b.mu.Unlock()
	b.t.Fatalf("mqtttest: nobody has subscribed to %q within %v\n%s%s", filter, b.o.timeout, there, b.traces(nil))
}

// subscribed is a subscription of a client or of the program.
type subscribed struct{ id, filter string }

// subscriptions returns them all, those of clients first. It is called with mu held, and lets go of it meanwhile.
func (b *Broker) subscriptions() (all []subscribed) {
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
			if s := (subscribed{id, f}); !slices.Contains(all[:clients], s) { // one with a Name is among the Sessions
				all = append(all, s)
			}
		}
	}
	slices.SortFunc(all[clients:], func(x, y subscribed) int { return cmp.Or(cmp.Compare(x.id, y.id), cmp.Compare(x.filter, y.filter)) })
	return all
}

// WaitConnected waits until a client with this identifier is connected.
func (b *Broker) WaitConnected(id string) {
	b.t.Helper()
	if !b.wait(func() bool { p := b.clients[id]; return p != nil && p.connections > 0 }) {
		b.t.Fatalf("mqtttest: client %q is not connected within %v\n%s", id, b.o.timeout, b.traces(func(k *link) bool { return k.client() == id }))
	}
}

// WaitDisconnected waits until a client with this identifier has been connected and is no more. It fails the test if that does not come
// in time.
func (b *Broker) WaitDisconnected(id string) {
	b.t.Helper()
	ok := b.wait(func() bool { p := b.clients[id]; return p != nil && p.connects > 0 && p.connections == 0 })
	if ok {
		return
	}
	b.mu.Lock()
	p := b.clients[id]
	b.mu.Unlock()
	state := "is still connected"
	if p == nil {
		state = "was never connected"
	}
	b.t.Fatalf("mqtttest: client %q %s after %v\n%s", id, state, b.o.timeout, b.traces(func(k *link) bool { return k.client() == id }))
}

// wait waits until ok, which is called with mu held, says true. It returns false
// if that takes longer than the timeout.
func (b *Broker) wait(ok func() bool) bool { return b.waitFor(b.o.timeout, ok) }

func (b *Broker) waitFor(timeout time.Duration, ok func() bool) bool {
	expired := time.NewTimer(timeout)
	defer expired.Stop()
	for {
		b.mu.Lock()
		changed := b.changed
		is := ok()
		b.mu.Unlock()
		if is {
			return true
		}
		select {
		case <-changed:
		case <-expired.C:
			return false
		}
	}
}

// mentions says whether a packet of the connection has to do with topics that match filter: it is in its trace.
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
				if i := strings.LastIndexByte(value, ':'); i >= 0 && (value[:i] == filter || packets.MatchTopic(value[:i], filter)) {
					return true
				}
			}
		}
	}
	return false
}

// Trace returns the packets of all connections, those of a connection together, as the failure messages show them.
func (b *Broker) Trace() string { return b.traces(nil) }

// traces returns the packets of the connections concerned, or of all if there is none.
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
