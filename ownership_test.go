package dunlin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/link"
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
		require.Contains(t, r.b.cfg().EnhancedAuth, "TEST")
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
	_, err := New(Config{Authenticator: hooks.AllowAll, Authorizer: f, Logger: quiet,
		Store: brokenStore{}})
	require.ErrorContains(t, err, "on purpose")
	require.Zero(t, f.followers)
	b := newTestBroker(t, func(c *Config) { c.Authorizer = f })
	require.Equal(t, 1, f.followers)
	b.Close()
	require.Zero(t, f.followers)
}

// A Session that has ended publishes on for a moment, until its connection knows. Meanwhile its
// number in the tree may be that of another Session, whose No Local is not about these messages.
func TestNoLocalIsNotAboutWhoHadTheNumberBefore(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprint("route cached: ", cached),
			func(t *testing.T) { noLocalOfAnother(t, cached) })
	}
}

func noLocalOfAnother(t *testing.T, cached bool) {
	b := newTestBroker(t, nil)
	t.Cleanup(func() { b.Close() })
	old := newFeed(t, b, connect("old"))
	old.packet(&packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: "x"}}}, packets.V5)
	if cached { // with the connection
		for range 3 {
			old.packet(&packets.Publish{Topic: []byte("t")}, packets.V5)
		}
	}
	require.True(t, deletes(t, b, "old"))
	next := newFeed(t, b, connect("next"))
	next.packet(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "t",
		NoLocal: true}}}, packets.V5)
	require.Equal(t, old.c.number.Load(), next.c.number.Load(), "the number is given out again")
	before := next.sink.n
	m, err := (&packets.Publish{Topic: []byte("t")}).Append(nil, packets.V5)
	require.NoError(t, err)
	turn := b.getTurn()
	turn.read = link.NewBuffer(len(m))
	turn.read.B = append(turn.read.B, m...)
	require.Error(t, old.c.input(turn), "the Session was deleted")
	turn.read = nil
	b.putTurn(turn)
	require.Equal(t, before+len(m), next.sink.n)
	next.packet(&packets.Publish{Topic: []byte("t")}, packets.V5)
	require.Equal(t, before+len(m), next.sink.n, "its own messages it does not get")
}

// Bob, whose own client is taken over in a loop, does not keep Alice out, who uses the same Client
// Identifier.
func TestABanForTakeoversIsOfTheirOwner(t *testing.T) {
	for _, tt := range []struct{ name, looping, other, value string }{
		{"of a principal", "bob", "alice", "sensor-1\x00bob"},
		{"of clients without a name", "-", "alice", "sensor-1"},
		{"of clients with an empty name", "", "-", "sensor-1\x00"},
		{"of a principal, not of clients without a name", "bob", "-", "sensor-1\x00bob"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withRules(t, everything, func(c *Config) {
				c.SessionPerPrincipal, c.MaxTakeovers = true,
					5
			}, func(r *guardRig) {
				var all []*testClient
				connect := func(user string) int {
					c, code := r.connectFrom("192.0.2.1", as("sensor-1", user))
					go io.Copy(io.Discard, c.nc) // what the client is told
					all = append(all, c)
					return code
				}
				require.Zero(t, connect(tt.other))
				for range 7 {
					require.Zero(t, connect(tt.looping))
				}
				require.EqualValues(t, packets.Banned, connect(tt.looping))
				synctest.Wait()
				sessions := r.b.ofClient("sensor-1")
				require.Len(t, sessions, 2)
				for _, s := range sessions {
					s.mu.Lock()
					require.Equal(t, s.place() != tt.value, s.conn != nil, "%q is connected",
						s.place())
					s.mu.Unlock()
				}
				require.Zero(t, connect(tt.other), "nor is the other owner refused")
				bans := r.b.Bans()
				require.Len(t, bans, 1)
				require.Equal(t, BanSession, bans[0].Kind)
				require.Equal(t, tt.value, bans[0].Value)
				require.True(t, r.b.Unban(BanSession, tt.value))
				require.Zero(t, connect(tt.looping))
				for _, c := range all {
					c.nc.Close()
				}
			})
		})
	}
}

func TestABanOfASessionNeedsSessionsOfTheirOwn(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		require.ErrorContains(t, r.b.Ban(Ban{Kind: BanSession, Value: "c\x00bob"}),
			"SessionPerPrincipal")
	})
	withRules(t, everything, func(c *Config) { c.SessionPerPrincipal = true }, func(r *guardRig) {
		bob, alice := r.connect(as("c", "bob")), r.connect(as("c", "alice"))
		require.NoError(t, r.b.Ban(Ban{Kind: BanSession, Value: "c\x00bob"}))
		require.Equal(t, packets.AdministrativeAction, bob.recv().(*packets.Disconnect).Code)
		alice.nothing("somebody else's ban")
		bob.close()
		alice.close()
		require.Equal(t, "session", BanSession.String())
	})
}
