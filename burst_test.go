package dunlin

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A large message for many clients takes little memory on its way: not a copy for each of them
// before the first is written.
func TestALargeMessageForManyIsNotCopiedForAllAtOnce(t *testing.T) {
	const clients, size = 100, 900 << 10
	b := newTestBroker(t, func(c *Config) { c.MaxMemory = 64 << 20 })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go b.Serve(l)
	var reading sync.WaitGroup
	got := make(chan struct{}, 2*clients)
	for i := range clients {
		nc, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer nc.Close()
		send := func(p packets.Packet) {
			wire, err := p.Append(nil, packets.V5)
			require.NoError(t, err)
			_, err = nc.Write(wire)
			require.NoError(t, err)
			_, err = nc.Read(make([]byte, 256))
			require.NoError(t, err)
		}
		send(&packets.Connect{Version: packets.V5, CleanStart: true})
		send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{
			{Filter: "#", QoS: packets.QoS(i % 2)}}})
		reading.Go(func() {
			for {
				if _, err := io.CopyN(io.Discard, nc, size); err != nil {
					return
				}
				got <- struct{}{}
			}
		})
	}
	for _, retain := range []bool{false, true} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m := &Message{Topic: "t", Payload: make([]byte, size), QoS: packets.QoS1, Retain: retain}
		require.NoError(t, b.Publish(t.Context(), m))
		runtime.ReadMemStats(&after)
		made := int64(after.TotalAlloc - before.TotalAlloc)
		require.Less(t, made, int64(clients*size/2), "bytes allocated, retained: %v", retain)
		for range clients {
			<-got
		}
	}
	require.NoError(t, b.Close())
	reading.Wait()
}

// heapBytes is the memory of all that is in use, without what pools keep.
func heapBytes() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A slowRule takes its time over every request of an action.
type slowRule struct {
	action  hooks.Action
	asked   chan struct{}
	release chan struct{}
}

func (r *slowRule) Authorize(_ context.Context, q *hooks.AccessRequest) error {
	if q.Action == r.action {
		r.asked <- struct{}{}
		<-r.release
	}
	return nil
}

// While connections wait for a hook, or for a Subscription that is full, they do not keep the large
// buffers that they read with.
func TestAConnectionThatWaitsHoldsLittle(t *testing.T) {
	const clients, most = 200, int64(20 << 10)
	for name, first := range map[string]packets.Packet{
		"the Authenticator":            nil,
		"the Authorizer, of a PUBLISH": &packets.Publish{Topic: []byte("a")},
		"the Authorizer, of a SUBSCRIBE": &packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "a"}}},
		"a full Subscription": &packets.Publish{Topic: []byte("full"), QoS: packets.QoS1, PacketID: 1},
	} {
		t.Run(name, func(t *testing.T) {
			waiting, release := make(chan struct{}, clients), make(chan struct{})
			rule := &slowRule{hooks.ActionSubscribe, waiting, release}
			b := newTestBroker(t, func(c *Config) {
				c.Authenticator = hooks.AuthenticatorFunc(func(context.Context,
					*hooks.ConnectRequest) error {
					if first == nil {
						waiting <- struct{}{}
						<-release
					}
					return nil
				})
				switch p := first.(type) {
				case *packets.Publish:
					if string(p.Topic) == "a" {
						rule.action = hooks.ActionPublish
						c.Authorizer = rule
					}
				case *packets.Subscribe:
					c.Authorizer = rule
				}
			})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			go b.Serve(l)
			sub, err := b.Subscribe(t.Context(), "full", &SubscribeOptions{QoS: packets.QoS1,
				Overflow: OverflowBlock, Name: "full", Buffer: 1})
			require.NoError(t, err)
			require.NoError(t, b.Publish(t.Context(), &Message{Topic: "full", QoS: packets.QoS1}))
			before := heapBytes()
			for i := range clients {
				nc, err := net.Dial("tcp", l.Addr().String())
				require.NoError(t, err)
				defer nc.Close()
				c := &packets.Connect{Version: packets.V5, ClientID: fmt.Sprint(i), CleanStart: true}
				wire, err := c.Append(nil, packets.V5)
				require.NoError(t, err)
				_, err = nc.Write(wire)
				require.NoError(t, err)
				if first == nil {
					continue
				}
				_, err = nc.Read(make([]byte, 256))
				require.NoError(t, err)
				wire, err = first.Append(nil, packets.V5)
				require.NoError(t, err)
				_, err = nc.Write(wire)
				require.NoError(t, err)
			}
			for range clients {
				if name == "a full Subscription" {
					break
				}
				<-waiting
			}
			for name == "a full Subscription" {
				if s, _ := b.Session("$local/full"); s.Queued > clients {
					break
				}
				runtime.Gosched()
			}
			each := int64(0)
			for range 20 { // the last ones may be about to wait
				if each = (heapBytes() - before) / clients; each < most {
					break
				}
			}
			require.Less(t, each, most, "bytes for each")
			close(release)
			require.NoError(t, sub.Close())
			require.NoError(t, b.Close())
		})
	}
}
