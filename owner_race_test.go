package dunlin

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// Connections of one principal that come at the same time are together no more than it may have.
func TestConnectionsThatComeTogetherKeepToTheLimit(t *testing.T) {
	const rounds, together, most = 200, 8, 2
	b := newTestBroker(t, func(c *Config) { c.MaxConnectionsPerPrincipal = most })
	for round := range rounds {
		var accepted atomic.Int32
		var all sync.WaitGroup
		begin, over := make(chan struct{}), make(chan struct{})
		var served sync.WaitGroup
		for i := range together {
			here, there := net.Pipe()
			served.Go(func() { b.ServeConn(context.Background(), there) })
			all.Go(func() {
				<-begin
				_, ack := newTestClient(t, here, &packets.Connect{Version: packets.V5,
					ClientID: fmt.Sprint(i), HasUsername: true, Username: "u", CleanStart: true})
				if ack.Code == packets.Success {
					accepted.Add(1)
				}
			})
			served.Go(func() { <-over; here.Close() })
		}
		close(begin)
		all.Wait()
		require.LessOrEqual(t, accepted.Load(), int32(most), "round %d", round)
		close(over)
		served.Wait()
	}
	require.NoError(t, b.Close())
}
