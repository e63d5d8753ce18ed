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
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A client that sends something and is gone at once: the poller may tell of both in one. Without
// Keep Alive nothing else would tell of the end.
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
				c.Observer = &hooks.Observer{Disconnected: func(e hooks.Disconnected) { gone <- e.Err }}
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
			defer enough.Store(true) // also if this test fails: the others need the processors
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
					t.Fatalf("the broker has not noticed that %d of %d clients are gone", clients-i,
						clients)
				}
			}
			b.Close()
			require.ErrorIs(t, <-served, ErrBrokerClosed)
		})
	}
}

// Which of two connections is accepted first does not follow from which came first. One that its
// client has closed already is from before the other, and takes nothing from it; unless the client
// has said more behind its CONNECT, which is to be heard.
func TestAClosedConnectionTakesNothingOver(t *testing.T) {
	if !link.RawIO {
		t.Skip("what has come is seen ahead only where connections are waited for without a buffer")
	}
	for _, tc := range []struct{ clean, more bool }{{false, false}, {true, false}, {false, true},
		{true, true}} {
		t.Run(fmt.Sprintf("%+v", tc), func(t *testing.T) {
			const late = 7
			entered, hold, refused := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			b := newTestBroker(t, func(c *Config) {
				c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
					r *hooks.ConnectRequest) error {
					if r.Connect.KeepAlive == late {
						close(entered)
						<-hold
					}
					return nil
				})
				c.Observer = &hooks.Observer{Refused: func(e hooks.Refused) { refused <- e.Err }}
			})
			sub := mustSubscribe(t, b, "t", nil)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			served := make(chan error, 1)
			go func() { served <- b.Serve(l) }()

			first, err := net.Dial("tcp", l.Addr().String())
			require.NoError(t, err)
			p := connect("c")
			p.KeepAlive, p.CleanStart = late, tc.clean
			said, err := p.Append(nil, packets.V5)
			require.NoError(t, err)
			if tc.more {
				said, err = (&packets.Publish{Topic: []byte("t")}).Append(said, packets.V5)
				require.NoError(t, err)
			}
			_, err = first.Write(said)
			require.NoError(t, err)
			<-entered
			first.Close()

			nc, err := net.Dial("tcp", l.Addr().String())
			require.NoError(t, err)
			p = connect("c")
			p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 60)
			second, ack := newTestClient(t, nc, p)
			require.Equal(t, packets.Success, ack.Code)
			close(hold)
			if tc.more {
				require.Equal(t, packets.SessionTakenOver, second.recv().(*packets.Disconnect).Code)
				_, err := sub.Next(t.Context())
				require.NoError(t, err)
			} else {
				patient, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				select {
				case err := <-refused:
					require.ErrorContains(t, err, "connected anew")
				case <-patient.Done():
					t.Error("the closed connection is not refused")
				}
				second.send(&packets.Pingreq{})
				require.IsType(t, &packets.Pingresp{}, second.recv())
			}
			nc.Close()
			b.Close()
			require.ErrorIs(t, <-served, ErrBrokerClosed)
		})
	}
}

// A client that sends DISCONNECT and connects anew at once, while the broker is not done with what
// it sent before: the DISCONNECT came first, and drops the Will.
func TestADisconnectRightBeforeATakeoverDropsTheWill(t *testing.T) {
	if !link.RawIO {
		t.Skip("what has come is seen ahead only where connections are waited for without a buffer")
	}
	entered, hold := make(chan struct{}), make(chan struct{})
	b := newTestBroker(t, func(c *Config) {
		c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			if r.Client.ID == "c" && r.Connect.Will == nil {
				hold <- struct{}{}
			}
			return nil
		})
		c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client,
			m *packets.Message) (*packets.Message, error) {
			if m.Topic == "t" {
				entered <- struct{}{}
				<-hold
			}
			return m, nil
		})
	})
	sub := mustSubscribe(t, b, "will", nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	dial := func(p *packets.Connect) *testClient {
		nc, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		c, ack := newTestClient(t, nc, p)
		require.Equal(t, packets.Success, ack.Code)
		return c
	}
	for range 50 {
		p := connect("c")
		p.Will = &packets.Will{Topic: "will", Payload: []byte("w")}
		old := dial(p)
		old.send(&packets.Publish{Topic: []byte("t")})
		<-entered
		old.send(&packets.Disconnect{})
		c := dial(connect("c"))
		old.nc.Close()
		c.nc.Close()
	}
	require.Empty(t, unread(sub), "Wills")
	b.Close()
	require.ErrorIs(t, <-served, ErrBrokerClosed)
}
