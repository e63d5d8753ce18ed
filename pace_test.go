package dunlin

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is OverRatePauseReading: what is read from a client that publishes faster than it may,
// and when.

// flood writes n PUBLISH packets in one go, and leaves the client to read what comes.
func flood(t *testing.T, c *testClient, n int) {
	t.Helper()
	var wire []byte
	for range n {
		wire, _ = (&packets.Publish{Topic: []byte("t")}).Append(wire, c.v)
	}
	_, err := c.nc.Write(wire)
	require.NoError(t, err)
	synctest.Wait()
}

// A rate holds within one read: a second's worth is decoded, and then one message after the other
// in its time.
func TestARateHoldsWithinARead(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.PublishRate = 5 }, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		flood(t, c, 5000)
		require.EqualValues(t, 5, r.b.Stats().MessagesReceived, "a second's worth")
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, 55, r.b.Stats().MessagesReceived, "and five in each second")
		c.nc.Close()
	})
}

// What an owner has used up stays used up on its next connection, and on another one of the same
// principal.
func TestARateBelongsToTheOwner(t *testing.T) {
	for _, tt := range []struct {
		name         string
		first, again *packets.Connect
		open         bool   // nobody is verified
		at           uint64 // messages when the second one has flooded, too
	}{
		{"the same client", as("c", "u"), as("c", "u"), false, 5},
		{"another client of the principal", as("c", "u"), as("d", "u"), false, 5},
		{"another principal", as("c", "u"), as("d", "v"), false, 10},
		{"a client without a name", as("c", "-"), as("c", "-"), false, 5},
		{"another client without a name", as("c", "-"), as("d", "-"), false, 10},
		{"a name that nobody has verified", as("c", "u"), as("d", "u"), true, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTestBroker(t, func(c *Config) {
					c.PublishRate = 5
					if !tt.open {
						c.Authenticator = new(caller)
					}
				})
				l, done := serveMemory(t, b)
				for i, p := range []*packets.Connect{tt.first, tt.again} {
					c, _ := newTestClient(t, dial(t, l), p)
					flood(t, c, 20)
					if i == 0 {
						require.EqualValues(t, 5, b.Stats().MessagesReceived)
					}
					c.nc.Close()
					synctest.Wait()
				}
				require.Equal(t, tt.at, b.Stats().MessagesReceived)
				done()
			})
		})
	}
}

// Only PUBLISH waits: a client of an owner that has used up its rate, and pings, is answered and
// stays.
func TestAClientThatOnlyPingsIsNotPaused(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.PublishRate = 0.001 }, func(r *guardRig) {
		p := as("c", "u")
		p.KeepAlive = 10
		c := r.connect(p)
		flood(t, c, 3)
		c.nc.Close()
		synctest.Wait()
		c = r.connect(p)
		for i := range 20 {
			c.send(&packets.Pingreq{})
			start := time.Now()
			require.IsType(t, &packets.Pingresp{}, c.recv(), fmt.Sprint("the answer to ping ", i))
			require.Zero(t, time.Since(start))
			time.Sleep(10 * time.Second)
		}
		require.EqualValues(t, 1, r.b.Stats().MessagesReceived)
		c.close()
	})
}

// The table holds owners that are connected, and those that owe something.
func TestOwnersThatOweNothingAreForgotten(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.PublishRate = 5 }, func(r *guardRig) {
		paces := func() (n, idle int) {
			synctest.Wait()
			return r.b.guard.Paces.Len()
		}
		idle := r.connect(as("a", "a"))
		busy := r.connect(as("b", "b"))
		flood(t, busy, 2)
		n, i := paces()
		require.Equal(t, []int{2, 0}, []int{n, i})
		idle.nc.Close()
		busy.nc.Close()
		n, i = paces()
		require.Equal(t, []int{1, 1}, []int{n, i})
		time.Sleep(time.Minute)
		busy = r.connect(as("b", "b"))
		busy.nc.Close()
		n, i = paces()
		require.Equal(t, []int{0, 0}, []int{n, i})
	})
}
