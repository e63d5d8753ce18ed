package main

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A balancer hands TCP connections to several addresses in turn. It passes over those that do not
// answer.
type balancer struct {
	net.Listener
	to []string
}

func balance(t *testing.T, to ...string) *balancer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{l, to}
	var all sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	all.Go(func() {
		for i := 0; ; i++ {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { b.carry(nc, i) })
		}
	})
	return b
}

func (b *balancer) carry(nc net.Conn, turn int) {
	defer nc.Close()
	for i := range b.to {
		up, err := net.Dial("tcp", b.to[(turn+i)%len(b.to)])
		if err != nil {
			continue
		}
		go func() { // ends with the connections
			io.Copy(up, nc)
			up.Close()
		}()
		io.Copy(nc, up)
		return
	}
}

// Two instances share the database and are joined by a bridge. It does not matter at which one a
// client is, and at which one somebody pushes, joins, leaves or revokes.
func TestTwoInstances(t *testing.T) {
	one := start(t)
	db := filepath.Join(one.dir(), "push.db")
	two := start(t, "-name", "two", "-db", db, "-peer", one.devices)
	lb := balance(t, one.devices, two.devices)
	ann, bob := one.account("users/ann"), two.account("users/bob")
	dial := func(id, token string) *try.Client {
		c, ack := try.Dial(t, lb.Addr().String(), connect(id, "", token))
		if ack.Code.Failed() {
			t.Fatalf("%s was refused: %v", id, ack.Code)
		}
		return c
	}
	a, b := dial("a", ann), dial("b", bob) // at one, at two
	one.must("PUT", "/v1/groups/birds/members/bob", nil)
	settled(t, two, b)
	two.push("users/ann", "mark") // comes behind all that settled has pushed
	a.Want("users/ann", "mark")
	one.must("PUT", "/v1/groups/birds/members/ann", nil)

	for _, at := range []*bench{one, two} {
		for qos := range 3 {
			body := at.url + string(rune('0'+qos))
			at.must("POST", "/v1/push", object{"to": "groups/birds", "body": body, "qos": qos})
			a.Want("groups/birds", body)
			b.Want("groups/birds", body)
		}
	}
	for sender, receiver := range map[*try.Client]*try.Client{a: b, b: a} {
		sender.Send(&packets.Publish{Topic: []byte("groups/birds"), Payload: []byte("hi")})
		for _, c := range []*try.Client{sender, receiver} {
			if p := c.Message(); string(p.Payload) != "hi" ||
				property(p, "from") != map[*try.Client]string{a: "users/ann", b: "users/bob"}[sender] {
				t.Fatalf("%q came from %q", p.Payload, property(p, "from"))
			}
		}
	}

	began := time.Now()
	one.must("DELETE", "/v1/groups/birds/members/bob", nil)
	gone(t, two, b)
	t.Logf("a leave at the one took %v until it held at the other", time.Since(began))
	session := one.must("GET", "/v1/users/bob", nil)["sessions"].([]any)[0].(object)
	one.must("DELETE", "/v1/sessions/"+session["id"].(string), nil)
	for { // what was pushed to find out whether he is gone
		p := b.Receive()
		if d, ok := p.(*packets.Disconnect); ok && d.Code == packets.NotAuthorized {
			break
		}
	}

	// The one goes, and ann finds the other. It comes back, and both are joined again.
	one.program.Stop()
	a = dial("a", ann)
	two.push("groups/birds", "from the other")
	a.Want("groups/birds", "from the other")
	one.args[1] = one.devices
	one.begin()
	later := one.phone("later", "ann", ann)
	two.push("users/ann", "joined again")
	a.Want("users/ann", "joined again")
	p := later.Message()
	if string(p.Payload) == "from the other" { // it has waited for the one
		p = later.Message()
	}
	if string(p.Payload) != "joined again" {
		t.Fatalf("%q came", p.Payload)
	}
}

// settled waits until a membership of bob, made elsewhere, holds at the instance at: at once, or
// with its next sweep if the instances were not joined yet.
func settled(t *testing.T, at *bench, c *try.Client) {
	t.Helper()
	late, cancel := context.WithTimeout(t.Context(), 2*sweepEvery)
	defer cancel()
	for late.Err() == nil {
		at.push("groups/birds", "probe")
		at.push("users/bob", "mark")
		if p := c.Message(); string(p.Payload) == "probe" {
			c.Want("users/bob", "mark")
			return
		}
	}
	t.Fatal("a membership that was made at one instance does not hold at the other")
}

// gone waits until bob, at an instance, gets nothing of the group any more.
func gone(t *testing.T, at *bench, c *try.Client) {
	t.Helper()
	for range 1000 {
		at.push("groups/birds", "probe")
		at.push("users/bob", "mark")
		if p := c.Message(); string(p.Payload) == "mark" {
			return
		}
		c.Want("users/bob", "mark")
	}
	t.Fatal("a leave at one instance does not hold at the other")
}
