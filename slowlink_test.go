package dunlin

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// At MaxConnections a client takes over its own connection, which may be half open, and nobody else
// comes in.
func TestAtMaxConnectionsAClientMayReplaceItself(t *testing.T) {
	for _, perPrincipal := range []bool{false, true} {
		withRules(t, everything, func(c *Config) {
			c.MaxConnections, c.SessionPerPrincipal = 1, perPrincipal
			c.MaxConnectionsPerPrincipal = -1
		}, func(r *guardRig) {
			away := r.connect(as("away", "u"))
			away.close()
			synctest.Wait()
			first := r.connect(as("c", "u"))
			r.refused(as("d", "u"), packets.ServerBusy)
			r.refused(as("away", "u"), packets.ServerBusy)
			code := packets.ServerBusy
			if !perPrincipal {
				code = packets.ClientIdentifierNotValid // it is somebody else's
			}
			r.refused(as("c", "v"), code)
			second := r.connect(as("c", "u"))
			third := as("c", "u")
			third.CleanStart = true
			last := r.connect(third)
			synctest.Wait()
			require.Equal(t, packets.SessionTakenOver, first.recv().(*packets.Disconnect).Code)
			require.Equal(t, packets.SessionTakenOver, second.recv().(*packets.Disconnect).Code)
			first.nc.Close()
			second.nc.Close()
			synctest.Wait()
			require.Equal(t, 1, r.b.Stats().Connections)
			last.close()
		})
	}
}

// A packet that takes longer than the Keep Alive keeps its connection where the program wants that,
// if its bytes come fast enough.
func TestTheBytesOfALargePacketCountOnASlowLink(t *testing.T) {
	for _, tt := range []struct {
		name       string
		rate       float64 // SlowLinkRate
		size, pace int     // of the PUBLISH, and bytes that come per second
		arrives    bool
	}{
		{"only whole packets count", 0, 600_000, 50_000, false},
		{"fast enough", 1000, 600_000, 50_000, true},
		{"just fast enough", 1000, 20_000, 1100, true},
		{"too slow", 1000, 20_000, 900, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ended chan packets.ReasonCode
			withRules(t, everything, func(c *Config) {
				c.SlowLinkRate, ended = tt.rate, make(chan packets.ReasonCode, 1)
				c.Observer = &hooks.Observer{Disconnected: func(e hooks.Disconnected) { ended <- e.Code }}
			}, func(r *guardRig) {
				p := as("c", "u")
				p.KeepAlive = 2
				c := r.connect(p)
				wire, err := (&packets.Publish{Topic: []byte("t"),
					Payload: make([]byte, tt.size)}).Append(nil, packets.V5)
				require.NoError(t, err)
				for step := tt.pace / 10; len(wire) > 0; wire = wire[min(step, len(wire)):] {
					if _, err := c.nc.Write(wire[:min(step, len(wire))]); err != nil {
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				synctest.Wait()
				require.Equal(t, tt.arrives, r.b.Stats().MessagesReceived == 1)
				time.Sleep(3 * time.Second) // then nothing comes
				require.Equal(t, packets.KeepAliveTimeout, <-ended)
				c.nc.Close()
			})
		})
	}
}
