package dunlin

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A Session that nobody has holds its Will, its names and the properties of its client.
func TestSessionsCountWithAllThatTheyHold(t *testing.T) {
	withRules(t, everything, func(c *Config) { oneForAll(c); c.MaxMemory = 4 << 20 },
		func(r *guardRig) {
			big := func(i int) *packets.Connect {
				p := as(fmt.Sprint(i, strings.Repeat("i", 1000)), "u")
				p.Properties = p.Properties.AppendUser("k", strings.Repeat("v", 1000))
				p.Will = &packets.Will{Topic: "w", Payload: make([]byte, 4000)}
				return p
			}
			n := 0
			for ; ; n++ {
				require.Less(r.t, n, 1000)
				nc := dial(r.t, r.l)
				p := big(n)
				c := &testClient{t: r.t, nc: nc, r: packets.NewReader(nc, packets.Limits{}),
					v: p.Version}
				c.r.SetVersion(p.Version)
				c.send(p)
				answer, ok := c.recv().(*packets.Connack)
				require.True(r.t, ok)
				if answer.Code != packets.Success {
					require.Equal(r.t, packets.QuotaExceeded, answer.Code)
					c.close()
					break
				}
				c.send(&packets.Disconnect{Code: packets.DisconnectWithWill})
				synctest.Wait()
				c.close()
				synctest.Wait()
				require.Equal(r.t, r.b.holding(), r.b.counted())
			}
			most := r.b.memory.Limit() / 2
			require.LessOrEqual(r.t, r.b.memory.Of(budget.Sessions), most)
			require.Greater(r.t, r.b.memory.Of(budget.Sessions), most-20_000)
			require.Greater(r.t, n, 200)
			found, err := r.b.DeleteSession(r.t.Context(), big(0).ClientID)
			require.NoError(r.t, err)
			require.True(r.t, found)
			r.connect(big(n)).close()
			for i := range n + 1 {
				r.b.DeleteSession(r.t.Context(), big(i).ClientID)
			}
			synctest.Wait()
			require.Zero(r.t, r.b.memory.Of(budget.Sessions))
		})
}

// An identifier of a QoS 2 message that is never released stays with its Session, over all its
// connections.
func TestReceivedIdentifiersCount(t *testing.T) {
	withRules(t, everything, func(c *Config) { oneForAll(c); c.MaxMemory = 1 << 20 },
		func(r *guardRig) {
			id, refused := 0, 0
			for range 40 {
				c := r.connect(as("c", "u"))
				for range 1000 {
					id++
					c.send(&packets.Publish{Topic: []byte("t"), QoS: packets.QoS2,
						PacketID: uint16(id)})
					if a := c.recv().(*packets.Ack); a.Code.Failed() {
						require.Equal(r.t, packets.QuotaExceeded, a.Code)
						refused++
					}
				}
				synctest.Wait()
				require.Equal(r.t, r.b.holding(), r.b.counted())
				c.close()
			}
			require.Positive(r.t, refused)
			require.Greater(r.t, refused, 10_000)
			require.LessOrEqual(r.t, r.b.memory.Of(budget.Sessions), r.b.memory.Limit()/2)
			require.Greater(r.t, r.b.memory.Of(budget.Sessions), r.b.memory.Limit()/3)
			c := r.connect(as("c", "u"))
			for i := range id {
				c.send(&packets.Ack{Kind: packets.TypePubrel, PacketID: uint16(i + 1)})
				c.recv()
			}
			synctest.Wait()
			require.Less(r.t, r.b.memory.Of(budget.Sessions), int64(5000), "and the memory comes back")
			c.close()
		})
}

// Each connection counts, also one that says nothing.
func TestConnectionsCount(t *testing.T) {
	withRules(t, everything, func(c *Config) { oneForAll(c); c.MaxMemory = 4 << 20 },
		func(r *guardRig) {
			for range 2000 {
				dial(r.t, r.l)
			}
			synctest.Wait()
			require.LessOrEqual(r.t, r.b.memory.Of(budget.Connections), r.b.memory.Limit()/2,
				"those that say nothing")
			synctest.Wait()
			require.NotPanics(r.t, func() { require.Equal(r.t, r.b.holding(), r.b.counted()) })
			time.Sleep(time.Minute)
			synctest.Wait()
			require.Zero(r.t, r.b.memory.Of(budget.Connections))
			var all []*testClient
			for i := range 80 {
				all = append(all, r.connect(as(fmt.Sprint("c", i), "u")))
			}
			require.EqualValues(r.t, len(all)*streamCost, r.b.memory.Of(budget.Connections))
			for _, c := range all {
				c.close()
			}
			synctest.Wait()
			require.Zero(r.t, r.b.memory.Of(budget.Connections))
		})
}

// Who never completes QoS 2 deliveries keeps a place for each, over all connections.
func TestPlacesOfDeliveriesInFlightCount(t *testing.T) {
	withRules(t, everything, func(c *Config) { oneForAll(c); c.MaxMemory = 1 << 20 },
		func(r *guardRig) {
			sent := 0
			for round := 0; ; round++ {
				require.Less(r.t, round, 100)
				c := r.connect(as("c", "u"))
				if round == 0 {
					c.subscribe("t", 2)
				}
				for range sent {
					require.Equal(r.t, packets.TypePubrel, c.recv().(*packets.Ack).Kind)
				}
				got := 0
				for range 256 {
					require.NoError(r.t, r.b.Publish(r.t.Context(),
						&Message{Topic: "t", QoS: packets.QoS2}))
					synctest.Wait()
					if r.b.memory.Of(budget.Queued) > 0 {
						break
					}
					m := c.recv().(*packets.Publish)
					c.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: m.PacketID})
					require.Equal(r.t, packets.TypePubrel, c.recv().(*packets.Ack).Kind)
					got++
				}
				synctest.Wait()
				require.Equal(r.t, r.b.holding(), r.b.counted())
				c.close()
				if sent += got; got < 256 {
					break
				}
			}
			require.Greater(r.t, sent, 1000)
			require.LessOrEqual(r.t, r.b.memory.Of(budget.Sessions), r.b.memory.Limit()/2)
		})
}

// A table that outlives its clients holds no long names.
func TestLongNamesTakeLittleRoomInTables(t *testing.T) {
	long := strings.Repeat("x", 8000)
	require.Less(t, len(shortKey(long)), 64)
	require.NotEqual(t, shortKey(long), shortKey(long+"y"))
	require.Equal(t, "short", shortKey("short"))
	b := newTestBroker(t, nil)
	defer b.Close()
	for i := range 1000 {
		b.ban(Ban{Kind: BanClient, Value: fmt.Sprint(i, long),
			Until: time.Now().Add(time.Hour + time.Duration(i))}, bannedByBroker)
	}
	n, size := 0, 0
	for _, x := range b.Bans() {
		n, size = n+1, size+len(x.Value)
	}
	require.LessOrEqual(t, size, guard.MaxAutomaticBytes)
	require.Greater(t, n, 100)
	require.Equal(t, fmt.Sprint(999, long), b.Bans()[n-1].Value,
		"those that end first have made room")
	for _, x := range b.Bans() {
		b.Unban(x.Kind, x.Value)
	}
	require.False(t, b.guard.Bans.Any())
}

// Any number of users who leave Sessions behind do not keep out those who leave nothing.
func TestSessionsThatStayLeaveRoomForThoseThatDoNot(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxMemory = 2 << 20 }, func(r *guardRig) {
		left := 0
		for ; ; left++ {
			name := fmt.Sprint("user", left)
			c, ack := newTestClient(r.t, dial(r.t, r.l), as(name, name))
			c.nc.Close()
			synctest.Wait()
			if ack.Code.Failed() {
				require.Equal(r.t, packets.QuotaExceeded, ack.Code)
				break
			}
		}
		require.Greater(r.t, left, 100)
		for i := range 10 {
			p := as(fmt.Sprint("brief", i), "brief")
			p.Properties = nil
			r.connect(p).nc.Close()
			synctest.Wait()
		}
	})
}
