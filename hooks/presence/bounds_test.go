package presence_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/presence"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// leave makes a client connect and disconnect.
func (r *rig) leave(id string) {
	c := client(id, 1)
	r.disconnect(c, r.connect(c), packets.NormalDisconnection)
	synctest.Wait()
}

// standing is the topics of the retained messages, in order.
func (r *rig) standing() []string {
	synctest.Wait()
	there := map[string]bool{}
	for _, m := range r.got {
		require.True(r.t, m.Retain)
		there[m.Topic] = len(m.Payload) > 0
	}
	var topics []string
	for topic, is := range there {
		if is {
			topics = append(topics, strings.TrimPrefix(topic, "$SYS/broker/clients/"))
		}
	}
	slices.Sort(topics)
	return topics
}

// Somebody who invents Client Identifiers takes a bounded number of retained messages.
func TestRetainedMessagesOfThoseThatHaveGoneAreBounded(t *testing.T) {
	withPresence(t, presence.Options{Retain: true, MaxKept: 3}, func(r *rig) {
		r.connect(client("stays", 1))
		for i := range 10 {
			r.leave(fmt.Sprint("c", i))
		}
		require.Equal(r.t, []string{"c7", "c8", "c9", "stays"}, r.standing())
		r.connect(client("c7", 1)) // again, and stays
		r.leave("d1")
		require.Equal(r.t, []string{"c7", "c8", "c9", "d1", "stays"}, r.standing())
		r.leave("c8") // the newest now
		r.leave("d2")
		require.Equal(r.t, []string{"c7", "c8", "d1", "d2", "stays"}, r.standing())
		time.Sleep(25 * time.Hour) // they have expired, and are forgotten without a message
		before := len(r.got)
		r.leave("d3")
		require.Len(r.t, r.got, before+1)
	})
	withPresence(t, presence.Options{Retain: true, MaxKeptBytes: 100_000}, func(r *rig) {
		r.leave("small")
		r.leave("a" + strings.Repeat("a", 20_000))
		r.leave("b" + strings.Repeat("b", 20_000))
		require.Len(r.t, r.standing(), 1, "three are too large together")
		r.leave(strings.Repeat("c", 60_000))
		require.Empty(r.t, r.standing(), "it is too large for itself")
		r.leave("small")
		require.Equal(r.t, []string{"small"}, r.standing())
	})
	withPresence(t, presence.Options{Retain: true, MaxKept: -1, Keep: -1}, func(r *rig) {
		for i := range 100 {
			r.leave(fmt.Sprint(i))
		}
		require.Len(r.t, r.standing(), 100)
	})
}

// What could not be cleared is cleared later.
func TestAMessageThatCannotBeClearedStaysKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := presence.New(presence.Options{Retain: true, MaxKept: 1})
		r := &rig{t: t, Presence: p, Observer: p.Observer()}
		fails := false
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { // waited for below
			done <- p.Run(ctx, presence.Func(func(_ context.Context, m *packets.Message) error {
				if fails && len(m.Payload) == 0 {
					return errors.New("no")
				}
				r.got = append(r.got, m)
				return nil
			}))
		}()
		synctest.Wait()
		r.leave("a")
		fails = true
		r.leave("b")
		require.Equal(t, []string{"a", "b"}, r.standing())
		require.EqualValues(t, 1, p.Lost())
		fails = false
		r.leave("c")
		require.Equal(t, []string{"c"}, r.standing())
		cancel()
		<-done
	})
}

func TestWaitingMessagesAreBoundedInBytes(t *testing.T) {
	p := presence.New(presence.Options{MaxWaitingBytes: 1 << 20})
	o := p.Observer()
	for i := range 100 { // nobody publishes
		id := strings.Repeat("x", 60_000) + fmt.Sprint(i)
		o.Connected(hooks.Connected{Client: client(id, i), At: time.Now()})
	}
	require.InDelta(t, 100-(1<<20)/120_000, int(p.Lost()), 1)
	published := 0
	ctx, cancel := context.WithCancel(t.Context())
	err := p.Run(ctx, presence.Func(func(context.Context, *packets.Message) error {
		if published++; uint64(published)+p.Lost() == 100 {
			cancel()
		}
		return nil
	}))
	require.ErrorIs(t, err, context.Canceled)
	o.Connected(hooks.Connected{Client: client("there is room again", 0), At: time.Now()})
	require.EqualValues(t, 100, uint64(published)+p.Lost())
}

// A client that takes over its own connection again and again fills no memory.
func TestConnectionsThatWaitAreBounded(t *testing.T) {
	for name, o := range map[string]presence.Options{
		"count": {MaxWaiting: 10}, "bytes": {MaxWaitingBytes: 11 * 1024},
	} {
		withPresence(t, o, func(r *rig) {
			for i := range 50 {
				r.connect(&hooks.Client{ID: strings.Repeat("x", 500), KeepAlive: uint16(i),
					Version: packets.V5})
				synctest.Wait()
			}
			n := len(r.story())
			require.Greater(r.t, n, 50, "%s: most are published, before those ahead have ended", name)
			require.Less(r.t, n, 90, "%s: the last ones wait", name)
		})
	}
}

// With PerPrincipal two clients with tokens as their User Names are two clients.
func TestTokensAreDifferentPrincipals(t *testing.T) {
	withPresence(t, presence.Options{PerPrincipal: true}, func(r *rig) {
		a, b := client("c", 1), client("c", 2)
		a.Username, a.HasUsername = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", true
		b.Username, b.HasUsername = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIyIn0.c2lo", true
		r.connect(a)
		r.connect(b)
		synctest.Wait()
		require.Len(r.t, r.got, 2, "nobody has taken over")
		require.NotEqual(r.t, r.got[0].Topic, r.got[1].Topic)
		for _, m := range r.got {
			require.NotContains(r.t, m.Topic+string(m.Payload), "c2l")
		}
	})
}

// A client that was never admitted leaves nothing.
func TestARefusedClientLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := presence.New(presence.Options{Retain: true})
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
			c.Observer = hooks.Join(c.Observer, p.Observer())
			c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
				r *hooks.ConnectRequest) error {
				if r.Client.ID != "ann" {
					return packets.Errorf(packets.NotAuthorized, "nobody")
				}
				return nil
			})
		}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx, b.Broker()) }() // waited for below
		for i := range 20 {
			c := b.Open(t)
			c.Send(&packets.Connect{Version: packets.V5, CleanStart: true,
				ClientID: fmt.Sprint("invented", i)})
			c.WantType("a refusal", packets.TypeConnack)
		}
		b.Client(t, "ann")
		synctest.Wait()
		var topics []string
		for m := range b.Broker().Retained("$SYS/broker/clients/#") {
			topics = append(topics, m.Topic)
		}
		require.Equal(t, []string{"$SYS/broker/clients/ann"}, topics)
		cancel()
		<-done
	})
}
