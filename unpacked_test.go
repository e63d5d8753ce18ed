package dunlin

import (
	"context"
	"fmt"
	"math"
	"net"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A SUBSCRIBE of many short filters takes many times its bytes until it is answered. Those that
// wait for a slow Authorizer do not take more than MaxMemory together.
func TestManySubscribesThatWaitStayWithinMaxMemory(t *testing.T) {
	const clients, filters, limit = 250, 9000, 64 << 20
	last := fmt.Sprintf("%04d", filters-1)
	for name, slow := range map[string]string{"the first filter": "0000", "the last filter": last} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			release := make(chan struct{})
			b := newTestBroker(t, func(c *Config) {
				c.MaxMemory = limit
				c.Authorizer = hooks.AuthorizerFunc(func(_ context.Context,
					q *hooks.AccessRequest) error {
					if q.Topic == slow {
						asked.Add(1)
						<-release
					}
					return nil
				})
			})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			go b.Serve(l)
			p := &packets.Subscribe{PacketID: 1}
			for i := range filters {
				p.Subscriptions = append(p.Subscriptions,
					packets.Subscription{Filter: fmt.Sprintf("%04d", i)})
			}
			before := heapBytes()
			for i := range clients {
				nc, err := net.Dial("tcp", l.Addr().String())
				require.NoError(t, err)
				defer nc.Close()
				c, _ := newTestClient(t, nc, &packets.Connect{Version: packets.V5,
					ClientID: fmt.Sprint(i)})
				c.send(p)
			}
			for { // each is asked about, waits for room, or has been refused
				ended := clients - b.connections()
				if int(asked.Load())+b.reading.Waiting()+ended >= clients {
					break
				}
				runtime.Gosched()
			}
			require.Positive(t, asked.Load())
			taken, counted := heapBytes()-before, b.Stats().Memory
			require.Less(t, taken, int64(limit), "bytes in use, %d are counted", counted)
			close(release)
			require.NoError(t, b.Close())
		})
	}
}

// Without limits a SUBSCRIBE may take, with its buffer, more bytes than an int32 counts. Its room is
// given back all the same.
func TestTheRoomOfAHugeSubscribeIsGivenBack(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxMemory = -1 }, func(r *guardRig) {
		c := &conn{b: r.b, sess: new(session)}
		turn := r.b.getTurn()
		turn.read = link.NewBuffer(10)
		require.NoError(t, c.unpacked(turn, math.MaxInt32))
		require.Positive(t, r.b.reading.Used())
		c.givePartial()
		require.Zero(t, r.b.reading.Used())
		c.countRest()
	})
}
