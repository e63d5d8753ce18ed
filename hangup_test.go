package dunlin

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A client that sends something and is gone at once: the poller may tell of both in one. Without Keep Alive nothing else would tell of the end.
func TestACloseRightBehindDataIsNoticed(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			const clients = 60
			gone := make(chan error, clients)
			b := newTestBroker(t, func(c *Config) {
				c.Observer = &hooks.Observer{Disconnected: func(_ *hooks.Client, _ packets.ReasonCode, err error) { gone <- err }}
			})
			l, err := net.Listen(network, addr)
			require.NoError(t, err)
			served := make(chan error, 1)
			go func() { served <- b.Serve(l) }()
			var enough atomic.Bool
			for range 2 { // busy processors, so that the broker is late
				go func() { // ends with enough
					for !enough.Load() {
					}
				}()
			}
			ping, err := (&packets.Pingreq{}).Append(nil, packets.V5)
			require.NoError(t, err)
			for i := range clients {
				nc, err := net.Dial(network, l.Addr().String())
				require.NoError(t, err)
				c, _ := newTestClient(t, nc, connect(fmt.Sprint("c", i)))
				_, err = c.nc.Write(ping[:1]) // half a packet, which has no answer
				require.NoError(t, err)
				c.nc.Close()
			}
			enough.Store(true)
			patient, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			for i := range clients {
				select {
				case <-gone:
				case <-patient.Done():
					t.Fatalf("the broker has not noticed that %d of %d clients are gone", clients-i, clients)
				}
			}
			b.Close()
			require.ErrorIs(t, <-served, ErrBrokerClosed)
		})
	}
}
