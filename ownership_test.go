package dunlin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// New copies Config: later changes have no effect.
func TestNewCopiesWhatTheCallerCouldChange(t *testing.T) {
	one, versions := packets.QoS1, []packets.Version{packets.V5}
	methods := map[string]hooks.EnhancedAuthenticator{"TEST": challengeAuth{}}
	withRules(t, everything, func(c *Config) {
		c.MaxQoS, c.EnhancedAuth, c.Versions = &one, methods, versions
	}, func(r *guardRig) {
		one, versions[0] = packets.QoS0, packets.V31
		delete(methods, "TEST")
		c, ack := newTestClient(t, dial(t, r.l), connect("c"))
		require.Equal(t, packets.Success, ack.Code)
		n, _ := ack.Properties.Uint(packets.MaximumQoS)
		require.EqualValues(t, 1, n)
		c.nc.Close()
		require.Contains(t, r.b.cfg.EnhancedAuth, "TEST")
	})
}

// A brokenStore cannot be loaded.
type brokenStore struct{ store.Store }

func (brokenStore) Load(context.Context) iter.Seq2[store.Op, error] {
	return func(yield func(store.Op, error) bool) { yield(nil, errors.New("on purpose")) }
}

// A followed Authorizer counts who follows its rules.
type followed struct {
	hooks.Reloads
	followers int
}

func (f *followed) Authorize(context.Context, *hooks.AccessRequest) error { return nil }

func (f *followed) OnReload(g func()) (stop func()) {
	f.followers++
	end := f.Reloads.OnReload(g)
	return func() { f.followers--; end() }
}

func TestANewThatFailsLeavesNothingWithTheAuthorizer(t *testing.T) {
	f := &followed{}
	_, err := New(Config{Authenticator: hooks.AllowAll, Authorizer: f, Logger: quiet, Store: brokenStore{}})
	require.ErrorContains(t, err, "on purpose")
	require.Zero(t, f.followers)
	b := newTestBroker(t, func(c *Config) { c.Authorizer = f })
	require.Equal(t, 1, f.followers)
	b.Close()
	require.Zero(t, f.followers)
}

// A Session that has ended publishes on for a moment, until its connection knows. Meanwhile its number in the tree may be that of
// another Session, whose No Local is not about these messages.
func TestNoLocalIsNotAboutWhoHadTheNumberBefore(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprint("route cached: ", cached), func(t *testing.T) { noLocalOfAnother(t, cached) })
	}
}

func noLocalOfAnother(t *testing.T, cached bool) {
	b := newTestBroker(t, nil)
	t.Cleanup(func() { b.Close() })
	old := newFeed(t, b, connect("old"))
	old.packet(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "x"}}}, packets.V5)
	if cached { // with the connection
		for range 3 {
			old.packet(&packets.Publish{Topic: []byte("t")}, packets.V5)
		}
	}
	require.True(t, b.DeleteSession(context.Background(), "old"))
	next := newFeed(t, b, connect("next"))
	next.packet(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "t", NoLocal: true}}}, packets.V5)
	require.Equal(t, old.c.number, next.c.number, "the number is given out again")
	before := next.sink.n
	m, err := (&packets.Publish{Topic: []byte("t")}).Append(nil, packets.V5)
	require.NoError(t, err)
	turn := b.getTurn()
	turn.read = newBuffer(len(m))
	turn.read.b = append(turn.read.b, m...)
	require.Error(t, old.c.input(turn), "the Session was deleted")
	turn.read = nil
	b.putTurn(turn)
	require.Equal(t, before+len(m), next.sink.n)
	next.packet(&packets.Publish{Topic: []byte("t")}, packets.V5)
	require.Equal(t, before+len(m), next.sink.n, "its own messages it does not get")
}
