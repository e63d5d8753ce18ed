package dunlin

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file holds what only sockets can show, because Close of a socket waits for its reader, and
// what a net.Conn or net.Listener does to the Broker when its Close waits.

// serveTCP serves b on a loopback port. The function ends b and waits.
func serveTCP(t testing.TB, b *Broker) (addr string, done func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	return l.Addr().String(), func() {
		b.Close()
		require.ErrorIs(t, <-served, ErrBrokerClosed)
	}
}

// within fails the test, with all stacks, if f has not returned after 30 seconds.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatalf("%s has not returned after 30 s\n%s", what, stacks())
	}
}

// Clients of a banned address connect, are banned, and leave, all at the same time.
func TestABanOfAnAddressReturnsWhileItsClientsConnect(t *testing.T) {
	b := newTestBroker(t, nil)
	addr, done := serveTCP(t, b)
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			wire, _ := connect(fmt.Sprint("c", i)).Append(nil, packets.V5)
			for ctx.Err() == nil {
				nc, err := net.Dial("tcp", addr)
				if err != nil {
					continue
				}
				nc.Write(wire)
				nc.Read(make([]byte, 64)) // the CONNACK, or the end
				nc.Close()
			}
		})
	}
	within(t, "Ban", func() {
		for b.Stats().Accepted < 2000 {
			if err := b.Ban(Ban{Kind: BanAddress, Value: "127.0.0.1"}); err != nil {
				t.Error(err)
			}
			b.Unban(BanAddress, "127.0.0.1")
			for range 100 { // lets clients come in
				runtime.Gosched()
			}
		}
	})
	cancel()
	within(t, "Close", done)
	clients.Wait()
}

// A hook decides about a TCP connection that is ended meanwhile, and takes its time.
func TestAConnectionIsEndedWhileAHookDecidesItsConnect(t *testing.T) {
	for name, end := range map[string]func(b *Broker, cancel func()){
		"a ban": func(b *Broker,
			_ func()) {
			b.Ban(Ban{Kind: BanAddress, Value: "127.0.0.1"})
		},
		"the context of ServeConn": func(_ *Broker, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			deciding, decide := make(chan context.Context, 1), make(chan struct{})
			b := newTestBroker(t, func(c *Config) {
				c.Authenticator = hooks.AuthenticatorFunc(func(ctx context.Context,
					_ *hooks.ConnectRequest) error {
					deciding <- ctx
					<-decide
					return nil
				})
			})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer l.Close()
			client, err := net.Dial("tcp", l.Addr().String())
			require.NoError(t, err)
			defer client.Close()
			server, err := l.Accept()
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			served := make(chan error, 1)
			go func() { served <- b.ServeConn(ctx, server) }()
			wire, err := connect("c").Append(nil, packets.V5)
			require.NoError(t, err)
			_, err = client.Write(wire)
			require.NoError(t, err)
			hook := <-deciding
			within(t, name, func() {
				end(b, cancel)
				<-hook.Done() // the end of a context is told by a goroutine of its own
				b.Stats()
			})
			close(decide)
			within(t, "ServeConn", func() { require.Error(t, <-served) })
			got, _ := io.ReadAll(client)
			require.Empty(t, got, "the client is not accepted any more")
			require.Zero(t, b.Stats().Accepted)
			within(t, "Close", func() { b.Close() })
		})
	}
}

// A gate is what a Close waits for.
type gate struct{ entered, open chan struct{} }

func newGate() *gate { return &gate{make(chan struct{}, 1), make(chan struct{})} }

func (g *gate) wait() {
	select {
	case g.entered <- struct{}{}:
	default:
	}
	<-g.open
}

type gatedConn struct {
	net.Conn
	*gate
}

func (c gatedConn) Close() error {
	c.wait()
	return c.Conn.Close()
}

func (c gatedConn) RemoteAddr() net.Addr { return tcpAddr("192.0.2.7") }

type gatedListener struct {
	*listeners.Memory
	*gate
}

func (l gatedListener) Close() error {
	l.wait()
	return l.Memory.Close()
}

// A Close that waits holds up the goroutine that calls it, and nobody else: it is called without a
// lock.
func TestNoCloseIsCalledWithALock(t *testing.T) {
	for name, end := range map[string]func(b *Broker, cancel func()){
		"a ban": func(b *Broker,
			_ func()) {
			b.Ban(Ban{Kind: BanAddress, Value: "192.0.2.7"})
		},
		"the context of ServeConn": func(_ *Broker, cancel func()) { cancel() },
		"Close":                    func(b *Broker, _ func()) { b.Close() },
		"Shutdown":                 func(b *Broker, _ func()) { b.Shutdown(context.Background()) },
	} {
		for _, connected := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, connected: %t", name, connected), func(t *testing.T) {
				b := newTestBroker(t, nil)
				g := newGate()
				here, there := net.Pipe()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				served := make(chan error, 1)
				go func() { served <- b.ServeConn(ctx, gatedConn{there, g}) }()
				if connected {
					newTestClient(t, here, connect("c"))
				} else {
					here.Write([]byte{0x10}) // is read when the connection has been taken up
				}
				go io.Copy(io.Discard, here) // ends with the connection
				go end(b, cancel)            // returns when the gate is open
				<-g.entered
				within(t, "Stats, while Close of the net.Conn waits,",
					func() { b.Stats(); b.Sessions() })
				close(g.open)
				<-served
				here.Close()
				b.Close()
			})
		}
	}
	t.Run("a listener", func(t *testing.T) {
		b := newTestBroker(t, nil)
		l := gatedListener{listeners.NewMemory(), newGate()}
		served := make(chan error, 1)
		go func() { served <- b.Serve(l) }()
		nc, err := l.Dial() // is taken when the listener is being served
		require.NoError(t, err)
		newTestClient(t, nc, connect("c"))
		closed := make(chan error, 1)
		go func() { closed <- b.Close() }()
		<-l.entered
		within(t, "Stats, while Close of the net.Listener waits,", func() { b.Stats() })
		close(l.open)
		require.NoError(t, <-closed)
		require.ErrorIs(t, <-served, ErrBrokerClosed)
	})
}

// firstGated is a listener whose first connection comes from a banned address, and waits in its
// Close.
type firstGated struct {
	*listeners.Memory
	g *gate
}

func (l *firstGated) Accept() (net.Conn, error) {
	nc, err := l.Memory.Accept()
	if g := l.g; err == nil && g != nil {
		l.g = nil
		return gatedConn{nc, g}, nil
	}
	return nc, err
}

// A connection that is turned away, and takes its time over that, keeps nobody from being accepted.
func TestAConnectionThatIsTurnedAwayHoldsUpNobody(t *testing.T) {
	b := newTestBroker(t, nil)
	require.NoError(t, b.Ban(Ban{Kind: BanAddress, Value: "192.0.2.7"}))
	g := newGate()
	l := &firstGated{listeners.NewMemory(), g}
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	_, err := l.Dial()
	require.NoError(t, err)
	<-g.entered
	within(t, "a CONNECT behind it", func() {
		nc, err := l.Dial()
		if err == nil {
			newTestClient(t, nc, connect("c"))
		}
	})
	close(g.open)
	b.Close()
	require.ErrorIs(t, <-served, ErrBrokerClosed)
	require.EqualValues(t, 1, b.Stats().Refused)
}
