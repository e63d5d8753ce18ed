package mqtttest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A Fault is something that goes wrong. Make one with Refuse, Drop, Delay, Duplicate, Cut,
// StallReads, StallWrites or ForgetSession, and apply it with Broker.Inject.
//
// Packets are counted from the injection on, over all connections that the fault applies to. An n
// of 1 means the first packet, and 0 means each packet.
type Fault struct {
	kind  kind
	dir   Direction
	typ   packets.Type
	n     int
	delay time.Duration
	code  packets.ReasonCode
}

type kind byte

const (
	refuse kind = iota + 1
	drop
	delay
	duplicate
	cut
	stall
	forget
)

// Refuse answers each CONNECT with a Reason Code. Clients before 5.0 get the corresponding Return
// Code.
func Refuse(code packets.ReasonCode) Fault {
	return Fault{kind: refuse, typ: packets.TypeConnect, code: code}
}

// Drop loses the n-th packet of a type.
func Drop(d Direction, t packets.Type, n int) Fault {
	return Fault{kind: drop, dir: d, typ: t, n: n}
}

// Delay delays the n-th packet of a type, and all packets after it in the same direction.
func Delay(d Direction, t packets.Type, n int, by time.Duration) Fault {
	return Fault{kind: delay, dir: d, typ: t, n: n, delay: by}
}

// Duplicate passes the n-th packet of a type twice.
func Duplicate(d Direction, t packets.Type, n int) Fault {
	return Fault{kind: duplicate, dir: d, typ: t, n: n}
}

// Cut closes one connection: the first on which n bytes have passed in the direction since the
// injection. At 0 or less, the next packet closes its connection, and no byte of the packet passes.
func Cut(d Direction, n int) Fault {
	return Fault{kind: cut, dir: d, n: max(n, 0)}
}

// StallReads stops the broker from reading until the fault is lifted. Clients can still write until
// the buffers in between are full.
func StallReads() Fault { return Fault{kind: stall, dir: FromClient} }

// StallWrites holds back all bytes for clients until the fault is lifted. To the broker the clients
// read nothing, so it ends their connections after its WriteTimeout.
func StallWrites() Fault { return Fault{kind: stall, dir: ToClient} }

// ForgetSession deletes the session of a client just before its next CONNECT, so the client finds
// no session.
func ForgetSession() Fault { return Fault{kind: forget, typ: packets.TypeConnect, n: 1} }

// A Where selects the connections that a fault applies to. ForClient and OnListener make one. The
// zero Where selects all connections.
type Where struct{ match func(k *link) bool }

// ForClient selects the connections of a Client Identifier, from their CONNECT on.
func ForClient(id string) Where {
	return Where{func(k *link) bool { return k.client() == id }}
}

// OnListener selects the connections of one listener: that of Broker.Listener, or one that was
// given to Broker.Serve.
func OnListener(l net.Listener) Where {
	return Where{func(k *link) bool { return k.via == l }}
}

// An Injection is a fault that is in effect.
type Injection struct {
	b     *Broker
	f     Fault
	where []Where

	// Guarded by Broker.mu.
	seen   int
	hits   int
	passed map[*link]int // bytes, for cut
	over   chan struct{} // closed by Lift
	lifted bool
}

// Inject applies f to the connections that all of where select, until f is lifted or the test ends.
// Several faults may be in effect at once. If several apply to one packet, each is applied.
func (b *Broker) Inject(f Fault, where ...Where) *Injection {
	in := &Injection{b: b, f: f, where: where, passed: make(map[*link]int),
		over: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, in)
	return in
}

// Lift ends the fault. Packets that it held back continue. Lift may be called again.
func (in *Injection) Lift() {
	in.b.mu.Lock()
	defer in.b.mu.Unlock()
	in.lift()
	for i, x := range in.b.faults {
		if x == in {
			in.b.faults = append(in.b.faults[:i:i], in.b.faults[i+1:]...)
			return
		}
	}
}

func (in *Injection) lift() {
	if !in.lifted {
		in.lifted = true
		close(in.over)
	}
}

// Hits returns how many packets or connections the fault has hit.
func (in *Injection) Hits() int {
	in.b.mu.Lock()
	defer in.b.mu.Unlock()
	return in.hits
}

// hit counts one hit. Broker.mu is held.
func (in *Injection) hit(k *link) {
	in.hits++
	k.mu.Lock()
	k.faulted = true
	k.mu.Unlock()
	in.b.notify()
}

func (in *Injection) concerns(k *link) bool {
	for _, w := range in.where {
		if w.match != nil && !w.match(k) {
			return false
		}
	}
	return true
}

// what is to be done with a packet.
type what struct {
	drop, duplicate, forget bool
	delay                   time.Duration
	refuse                  packets.ReasonCode
}

// String describes the fault in the trace.
func (w what) String() string {
	var s strings.Builder
	for _, x := range []struct {
		is   bool
		text string
	}{
		{w.forget, "session forgotten"}, {w.refuse != 0,
			fmt.Sprintf("refused with 0x%02X", byte(w.refuse))}, {w.drop, "dropped"},
		{w.duplicate, "duplicated"}, {w.delay > 0, "delayed by " + w.delay.String()},
	} {
		if x.is {
			s.WriteString("  # " + x.text + " by a fault")
		}
	}
	return s.String()
}

// faultsFor returns what the faults in effect do to a packet.
func (b *Broker) faultsFor(k *link, d Direction, t packets.Type) (w what) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, in := range b.faults {
		f := &in.f
		if f.kind == cut || f.kind == stall || f.dir != d || f.typ != t || !in.concerns(k) {
			continue
		}
		if in.seen++; f.n != 0 && in.seen != f.n {
			continue
		}
		in.hit(k)
		switch f.kind {
		case drop:
			w.drop = true
		case duplicate:
			w.duplicate = true
		case delay:
			w.delay += f.delay
		case forget:
			w.forget = true
		case refuse:
			w.refuse = f.code
			k.mu.Lock()
			k.refuse = f.code
			k.mu.Unlock()
		}
	}
	return w
}

// forget deletes a session.
func (b *Broker) forget(id string) {
	if core := b.Broker(); core != nil {
		core.DeleteSession(context.Background(), id)
	}
}

// allowance returns how many of n bytes may pass, and whether the connection is closed after them.
func (b *Broker) allowance(k *link, d Direction, n int) (most int, cutNow bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	most = n
	for _, in := range b.faults {
		if in.f.kind != cut || in.f.dir != d || in.hits > 0 || !in.concerns(k) {
			continue
		}
		if in.passed[k]+n < in.f.n {
			in.passed[k] += n
			continue
		}
		most, cutNow = min(most, in.f.n-in.passed[k]), true
		in.hit(k)
	}
	return most, cutNow
}

// stalled returns a channel that closes when the direction may continue. It returns nil if the
// direction is not stalled.
func (b *Broker) stalled(k *link, d Direction) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, in := range b.faults {
		if in.f.kind == stall && in.f.dir == d && in.concerns(k) {
			if in.passed[k] == 0 {
				in.passed[k] = 1 // so that a connection counts once
				in.hit(k)
			}
			return in.over
		}
	}
	return nil
}
