package dunlin

import (
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// withPassword is as, for a client that askOrOpen verifies.
func withPassword(id, user string) *packets.Connect {
	p := as(id, user)
	p.HasPassword, p.Password = true, []byte("right")
	return p
}

// askOrOpen wraps AllowAll: it verifies those who bring a password, and accepts all others.
func askOrOpen(r *hooks.ConnectRequest) error {
	if r.Connect.HasPassword {
		return nil
	}
	return hooks.AllowAll.Authenticate(context.Background(), r)
}

// Somebody who only claims a User Name takes nothing from the principal of that name.
func TestAClaimedNameTakesNothingFromItsPrincipal(t *testing.T) {
	st := new(memory.Store)
	config := func(c *Config) { c.Store, c.MaxSessionsPerPrincipal = st, 2 }
	withRules(t, everything, config, func(r *guardRig) {
		r.grant = askOrOpen
		for i := range 2 {
			r.connect(as(fmt.Sprint("claim", i), "alice")).close()
		}
		r.refused(as("claim2", "alice"), packets.QuotaExceeded)
		r.refused(as("claim2", "bob"), packets.QuotaExceeded)
		alice := r.connect(withPassword("a", "alice"))
		alice.subscribe("of/alice", 1)
		r.refused(as("a", "alice"), packets.ClientIdentifierNotValid)
		alice.nothing("it was not even disturbed")
		alice.close()
	})
	require.NoError(t, st.Open())
	withRules(t, everything, config, func(r *guardRig) {
		r.grant = askOrOpen
		p := r.connect(withPassword("p", "p"))
		p.publish("of/alice", "", false)
		r.refused(as("a", "alice"), packets.ClientIdentifierNotValid)
		back, ack := newTestClient(t, dial(t, r.l), as("claim0", "alice"))
		require.True(t, ack.SessionPresent, "it has its own")
		back.subscribe("of/claim", 1)
		back.close()
		p.publish("of/claim", "", false)

		alice := r.connect(withPassword("a", "alice"))
		alice.message("of/alice")
		anew, ack := newTestClient(t, dial(t, r.l), withPassword("claim0", "alice"))
		require.Equal(t, packets.Success, ack.Code, "a claim keeps nobody from a Client Identifier")
		require.False(t, ack.SessionPresent)
		anew.nothing("what was queued for the one who claimed the name")
		r.refused(withPassword("a2", "alice"), packets.QuotaExceeded)
		r.refused(withPassword("claim1", "alice"), packets.QuotaExceeded)
		for _, c := range []*testClient{p, alice, anew} {
			c.close()
		}
	})
}

// Two who claim different names do not get each other's messages.
func TestADifferentClaimBeginsAnew(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		r.grant = askOrOpen
		first := r.connect(as("c", "alice"))
		first.subscribe("a", 1)
		first.close()
		_, ack := newTestClient(t, dial(t, r.l), as("c", "bob"))
		require.Equal(t, packets.Success, ack.Code)
		require.False(t, ack.SessionPresent)
		r.connect(as("none", "-")).close()
		r.refused(as("none", "bob"), packets.ClientIdentifierNotValid)
	})
}

// An Authenticator that wraps AllowAll and sets a Principal has verified it.
func TestAPrincipalIsNoClaim(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.Identity.Principal = "p"
			return hooks.AllowAll.Authenticate(context.Background(), q)
		}
		r.connect(as("c", "alice")).close()
		require.EqualValues(t, 1, r.owned()["=p"][0])
		r.grant = nil
		r.refused(as("c", "alice"), packets.ClientIdentifierNotValid)
	})
}

// A pace belongs to the Client Identifier that was granted, whatever the client asked for.
func TestAGrantedClientIdentifierHasOnePace(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.PublishRate, c.OverRate = 3, OverRateRefusePublish
	}, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.ClientID = "granted-" + q.Client.Username
			return hooks.AllowAll.Authenticate(context.Background(), q)
		}
		for i := range 3 {
			c := r.connect(as(fmt.Sprint("any", i), "u"))
			require.False(t, c.publish("a", "", false).Failed())
			c.close()
		}
		c := r.connect(as("other", "u"))
		require.Equal(t, packets.QuotaExceeded, c.publish("a", "", false))
		d := r.connect(as("other", "v"))
		require.False(t, d.publish("a", "", false).Failed(),
			"the same was asked for, another granted")
		c.close()
		d.close()
	})
}

// At MaxConnections a client takes over its own connection, also if it is known by a Client
// Identifier that it has not sent.
func TestAtMaxConnectionsAGrantedClientIdentifierMayReplaceItself(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxConnections = 1 }, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.ClientID = q.Client.Username
			return nil
		}
		first := r.connect(as("x", "u"))
		second := r.connect(as("y", "u"))
		require.Equal(t, packets.SessionTakenOver, first.recv().(*packets.Disconnect).Code)
		first.nc.Close()
		r.refused(as("u", "v"), packets.ServerBusy)
		synctest.Wait()
		require.Equal(t, 1, r.b.Stats().Connections)
		second.close()
	})
}

// Who is accepted without proof does not make a name known: that is for those who have proved it.
func TestAClaimMakesNoNameKnown(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		known := false
		r.grant = func(q *hooks.ConnectRequest) error {
			known = q.Known
			return askOrOpen(q)
		}
		r.connect(as("c", "alice")).close()
		r.connect(withPassword("a", "alice")).close()
		require.False(t, known)
		r.connect(withPassword("a", "alice")).close()
		require.True(t, known)
	})
}

// Those who only claim a name cannot have a Client Identifier banned for the principal
// that is verified.
func TestTakeoversByAClaimBanNoPrincipal(t *testing.T) {
	for _, user := range []string{"alice", "mallory"} {
		t.Run(user, func(t *testing.T) {
			config := func(c *Config) { c.MaxTakeovers = 5 }
			withRules(t, everything, config, func(r *guardRig) {
				r.grant = askOrOpen
				var all []*testClient
				connect := func(p *packets.Connect) int {
					c, code := r.connectFrom("192.0.2.1", p)
					go io.Copy(io.Discard, c.nc) // what the client is told
					all = append(all, c)
					return code
				}
				for range 7 {
					require.Zero(t, connect(as("sensor-1", user)))
				}
				require.EqualValues(t, packets.Banned, connect(as("sensor-1", user)))
				require.Zero(t, connect(withPassword("sensor-1", "alice")))
				require.EqualValues(t, packets.Banned, connect(as("sensor-1", user)))
				s := r.b.sessionAt("sensor-1")
				require.True(t, s.named && s.connected(), "alice has not been disconnected")
				require.True(t, r.b.Unban(BanSession, "sensor-1"))
				for _, c := range all {
					c.nc.Close()
				}
			})
		})
	}
}
