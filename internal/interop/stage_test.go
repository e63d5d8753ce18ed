package interop

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// quiet is how long a client listens before a scenario believes that nothing more comes. It is used
// only after something that was sent later has arrived, so it need not be long.
const quiet = 200 * time.Millisecond

// A stage is what a scenario plays on: one program in one version of the protocol.
type stage struct {
	*testing.T
	program program
	version version
	broker  string // host:port
	topic   string // the root of the Topic Names that belong to this scenario alone
	run     string // a name for this run of the suite
}

// clientIDs numbers the clients of a run.
var clientIDs atomic.Int64

// A peer is a client on the stage.
type peer struct {
	*stage
	client
	role string
	id   string
	in   *inbox
	taps []*tap // the first one is that of the Session
}

// connect gives a client that lasts until the scenario ends. The changes, if any, are made to the
// default options: an empty Session that ends with the connection, no will.
func (s *stage) connect(role string, changes ...func(*options)) *peer {
	s.Helper()
	o := options{version: s.version, keepAlive: 60, patience: patience,
		clientID: fmt.Sprintf("%s-%d-%s", s.run, clientIDs.Add(1), role)}
	for _, change := range changes {
		change(&o)
	}
	p := &peer{stage: s, role: role, id: o.clientID, in: newInbox()}
	addTap := func(label string, many bool) *tap {
		p.taps = append(p.taps, newTap(s.T, label, s.broker, many))
		return p.taps[len(p.taps)-1]
	}
	o.tap = addTap(role, o.reconnect)
	o.extraTap = func() *tap { return addTap("the publisher of "+role, true) }
	o.port, o.log = o.tap.port(), func(a ...any) { s.Log(append([]any{role + ": "}, a...)...) }
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	c, err := s.program.dial(ctx, o, p.in)
	if err != nil {
		s.Fatalf("%s cannot connect: %v", role, err)
	}
	s.Cleanup(c.kill)
	p.client = c
	return p
}

// Changes to the options of connect.

func resuming(o *options)     { o.resume, o.expiry = true, 60 }
func reconnecting(o *options) { o.reconnect = true }

func as(clientID string) func(*options) { return func(o *options) { o.clientID = clientID } }

func willing(will message) func(*options) { return func(o *options) { o.will = &will } }

// subscribe subscribes to filters with one QoS.
func (p *peer) subscribe(qos byte, filters ...string) {
	p.Helper()
	var subs []subscription
	for _, f := range filters {
		subs = append(subs, subscription{filter: f, qos: qos})
	}
	p.subscribeWith(subs...)
}

// subscribeWith subscribes and demands that each QoS was granted as asked for.
func (p *peer) subscribeWith(subs ...subscription) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	codes, err := p.client.subscribe(ctx, subs...)
	if err != nil {
		p.Fatalf("%s cannot subscribe: %v", p.role, err)
	}
	var want []byte
	for _, s := range subs {
		want = append(want, s.qos)
	}
	if !slices.Equal(codes, want) {
		p.Fatalf("SUBACK for %s has Reason Codes % x, want % x: %+v", p.role, codes, want, subs)
	}
}

// publish sends messages and waits for their acknowledgement.
func (p *peer) publish(ms ...message) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	if err := p.client.publish(ctx, ms...); err != nil {
		p.Fatalf("%s cannot publish: %v", p.role, err)
	}
}

// disconnect leaves orderly, waits until the broker has noticed, and gives the DISCONNECT that the
// client sent.
func (p *peer) disconnect() packet {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	if err := p.client.disconnect(ctx); err != nil {
		p.Fatalf("%s cannot disconnect: %v", p.role, err)
	}
	d := p.sees("the client's DISCONNECT", func(k packet) bool {
		return !k.fromBroker && k.kind() == typeDisconnect
	})
	if !p.taps[0].waitLost(ctx.Done(), d.conn) {
		p.Fatalf("the broker does not close the connection of %s after DISCONNECT", p.role)
	}
	return d
}

// cut breaks the Network Connection.
func (p *peer) cut() { p.taps[0].cut() }

// sees demands that a packet passes.
func (p *peer) sees(what string, want func(packet) bool) packet {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	k, ok := p.taps[0].wait(ctx.Done(), want)
	if !ok {
		p.Fatalf("between %s and the broker there was no packet that is %s", p.role, what)
	}
	return k
}

// expectSession demands that the broker had a Session for the client, or had none.
func (p *peer) expectSession(present bool) {
	p.Helper()
	connack := p.sees("a CONNACK", func(k packet) bool {
		return k.fromBroker && k.kind() == typeConnack
	})
	if p.version == v31 {
		// 3.1 has no Session Present flag, and whether a broker sets the reserved bit tells nothing
		return
	}
	if got := connack.body[0]&1 == 1; got != present {
		p.Fatalf("CONNACK for %s has Session Present %v, want %v", p.role, got, present)
	}
	if told, known := p.session(); known && told != present {
		p.Fatalf("%s tells of Session Present %v, but the packet said %v", p.role, told, present)
	}
}

// expect demands that exactly these messages come next, in this order.
func (p *peer) expect(why string, want ...message) []message {
	p.Helper()
	got := p.in.take(len(want), patience)
	if diff := compare(got, want); diff != "" {
		p.Fatalf("%s: %s\n%s", p.role, why, diff)
	}
	return got
}

// expectSilence demands that nothing more comes.
func (p *peer) expectSilence(why string) {
	p.Helper()
	if got := p.in.take(1, quiet); len(got) > 0 {
		p.Fatalf("%s: %s, but got %v", p.role, why, got[0])
	}
}

// compare describes how the messages differ, if they do.
func compare(got, want []message) string {
	line := func(ms []message, i int) string {
		if i < len(ms) {
			return ms[i].String()
		}
		return "nothing"
	}
	var b strings.Builder
	for i := range max(len(got), len(want)) {
		if g, w := line(got, i), line(want, i); g != w {
			fmt.Fprintf(&b, "  message %d:\n     got %s\n    want %s\n", i+1, g, w)
		}
	}
	return b.String()
}

// numbered gives n messages whose payloads count.
func numbered(topic string, qos byte, n int) []message {
	var ms []message
	for i := range n {
		ms = append(ms, message{topic: topic, payload: fmt.Sprintf("%s #%d", topic, i+1), qos: qos})
	}
	return ms
}

// retained gives m as a new subscriber gets it from the retained messages.
func (m message) retained() message {
	m.retain = true
	return m
}

// live gives m as one gets it who was subscribed when it was published.
func (m message) live() message {
	m.retain = false
	return m
}

// at gives m with another QoS.
func (m message) at(qos byte) message {
	m.qos = qos
	return m
}
