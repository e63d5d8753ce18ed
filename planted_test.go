//go:build lockcheck

package dunlin

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// This file plants what the build with the tag lockcheck has to find: were one of these not found,
// the other tests of that build would show nothing.

func TestPlantedViolationsAreFound(t *testing.T) {
	ask := hooks.AuthorizerFunc(func(context.Context, *hooks.AccessRequest) error { return nil })
	b := newTestBroker(t, func(c *Config) {
		c.Authorizer, c.Store = ask, new(memory.Store)
		c.Observer = &hooks.Observer{Subscribed: func(hooks.Subscribed) {}}
	})
	defer b.Close()
	s := &session{holder: &nobody, b: b, id: "c"}
	under := func(f func()) func() {
		return func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			f()
		}
	}
	c := newConn(b, b.ctx, new(sink))
	c.client = new(hooks.Client)
	for _, tt := range []struct {
		name, want string
		do         func()
	}{
		{"Close of a net.Conn", "Close of a net.Conn while session.mu is held",
			under(func() { c.nc.Close() })},
		{"Read", "Read of a net.Conn while session.mu is held", under(func() { c.nc.Read(nil) })},
		{"Write", "Write of a net.Conn while session.mu is held",
			under(func() { c.nc.Write(nil) })},
		{"a deadline", "SetReadDeadline of a net.Conn while session.mu is held",
			under(func() { c.nc.SetReadDeadline(aLongTimeAgo) })},
		{"all of them", "Close of a net.Conn while session.mu is held",
			under(func() { closeAll(nil) })},
		{"a write without waiting", "Write of a net.Conn while session.mu is held",
			under(func() {
				c.nc.TryWrite(&link.Buffer{B: []byte("x")}, 1)
			})},
		{"an Authorizer", "a decision of a hook while session.mu is held",
			under(func() { b.authorize(b.ctx, &hooks.AccessRequest{Client: c.client}, "") })},
		{"an Authenticator", "a decision of a hook while session.mu is held",
			under(func() { c.decideConnect(&hooks.ConnectRequest{}) })},
		{"the Observer", "a call of the Observer while session.mu is held",
			under(func() { b.obs.Subscribed(hooks.Subscribed{Client: c.client}) })},
		{"the log", "a line of the log while session.mu is held",
			under(func() { b.log.Debug("unwanted") })},
		{"an inversion", "session.mu is taken while Broker.mu is held: session.mu comes first",
			func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				s.connected()
			}},
		{"two Sessions", "session.mu is taken while session.mu is held: only one of them may be",
			under(func() { (&session{b: b}).connected() })},
		{"a topic behind a Session",
			"a lock of topics is taken while session.mu is held: a lock of topics comes first",
			under(func() { b.lockTopic([]byte("t")).Unlock() })},
		{"two leaves", "Broker.mu is taken while records.mu is held: only one of them may be",
			func() {
				b.journal.mu.Lock()
				defer b.journal.mu.Unlock()
				b.isClosed()
			}},
		{"a lock inside of a descriptor",
			"Broker.mu is taken while a descriptor is held: only one of them may be", func() {
				defer link.InsideDescriptor()()
				b.isClosed()
			}},
		{"a wait on a channel", "a wait for the Store while session.mu is held", under(func() {
			x := b.journal.Await(&store.DeleteSession{Session: 77})
			b.journal.WaitFollowing(b.ctx, x)
		})},
		{"a wait for a reader", "a wait while session.mu is held", under(func() {
			ended, end := context.WithCancel(context.Background())
			end()
			sub := &Subscription{s: &session{b: b}, news: make(chan struct{}),
				closed: make(chan struct{})}
			_, err := sub.Next(ended)
			require.Error(t, err)
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			var found []string
			undo := lock.Report(func(v string) {
				mu.Lock()
				defer mu.Unlock()
				line, _, _ := strings.Cut(strings.TrimPrefix(v, "lock: "), "\n")
				found = append(found, line)
			})
			tt.do()
			undo()
			require.Contains(t, found, tt.want)
		})
	}
}

// What the program does in a loop of the Broker, in its handler, and when a message is for it, it
// may do with the Broker as well: no lock is held.
func TestTheProgramIsCalledWithNoLockHeld(t *testing.T) {
	b := newTestBroker(t, nil)
	defer b.Close()
	sub, err := b.Subscribe(t.Context(), "a", &SubscribeOptions{Name: "reader", QoS: 1})
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, b.Publish(t.Context(),
			&Message{Topic: "a", Payload: []byte("x"), QoS: 1, Retain: true}))
	}
	for range b.Sessions() {
		lock.NoneHeld("the body of a loop")
		b.Stats()
	}
	for range b.Retained("#") {
		lock.NoneHeld("the body of a loop")
		b.Stats()
	}
	for m := range sub.Messages() {
		lock.NoneHeld("the body of a loop")
		m.Ack()
		require.NoError(t, sub.Delete())
	}
	r, err := b.Respond(t.Context(), "q", func(context.Context, *Incoming) (*Message, error) {
		lock.NoneHeld("a handler")
		b.Stats()
		return &Message{Payload: []byte("answer")}, nil
	})
	require.NoError(t, err)
	answer, err := b.Request(t.Context(), "q", nil)
	require.NoError(t, err)
	require.Equal(t, "answer", string(answer.Payload))
	require.NoError(t, r.Close())
}
