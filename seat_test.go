package dunlin

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// This file is connections on event loops. All other tests of
// sockets run on them, too, unless the tag goroutines is given.

// looped is a Broker with event loops.
type looped struct {
	t       *testing.T
	b       *Broker
	network string
	addr    string
	others  []*testClient // at least one on each loop, see settle
}

// onLoops runs f with a Broker that serves TCP, and with one that serves a unix socket.
func onLoops(t *testing.T, edit func(*Config), f func(x *looped)) {
	if runtime.GOOS != "linux" {
		t.Skip("event loops are for Linux")
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			b := newTestBroker(t, func(c *Config) {
				c.EventLoops = EventLoopsOn
				if edit != nil {
					edit(c)
				}
			})
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			l, err := net.Listen(network, addr)
			require.NoError(t, err)
			served := make(chan error, 1)
			go func() { served <- b.Serve(l) }()
			f(&looped{t: t, b: b, network: network, addr: l.Addr().String()})
			within(t, "Close", func() { b.Close() })
			require.ErrorIs(t, <-served, ErrBrokerClosed)
		})
	}
}

func (x *looped) dial() net.Conn {
	nc, err := net.Dial(x.network, x.addr)
	require.NoError(x.t, err)
	x.t.Cleanup(func() { nc.Close() })
	return nc
}

func (x *looped) connect(id string) *testClient {
	c, ack := newTestClient(x.t, x.dial(), connect(id))
	require.Equal(x.t, packets.Success, ack.Code)
	return c
}

// ping finds out whether the broker serves c.
func (c *testClient) ping() {
	c.t.Helper()
	c.send(&packets.Pingreq{})
	require.IsType(c.t, &packets.Pingresp{}, c.recv())
}

// ends waits until the broker has closed the connection.
func (c *testClient) ends() {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(30 * time.Second))
	_, err := io.Copy(io.Discard, c.nc)
	require.NoError(c.t, err, "the broker closes the connection")
}

// seats says which connections of b are on event loops.
func seats(b *Broker) (on, off int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		if c.seat != nil {
			on++
		} else {
			off++
		}
	}
	return on, off
}

func TestAnIdleConnectionHasNoGoroutine(t *testing.T) {
	onLoops(t, nil, func(x *looped) {
		const clients = 100
		before := runtime.NumGoroutine()
		for i := range clients {
			x.connect(fmt.Sprint("c", i)).subscribe("t", packets.QoS1)
		}
		on, _ := seats(x.b)
		require.Equal(t, clients, on)
		require.Less(t, runtime.NumGoroutine(), before+clients/2)
	})
}

// Nobody has to switch them on.
func TestAnIdleConnectionHasNoGoroutineByDefault(t *testing.T) {
	if !autoLoops || runtime.GOOS != "linux" {
		t.Skip("event loops are not the default here")
	}
	onLoops(t, func(c *Config) {
		c.EventLoops = EventLoopsAuto
		c.Observer = &hooks.Observer{Connected: func(hooks.Connected) {}}
	}, func(x *looped) {
		x.connect("c")
		on, off := seats(x.b)
		require.Equal(t, []int{1, 0}, []int{on, off})
	})
}

// Where somebody else may have the net.Conn, and close it, or the loops do not know what it is, a
// connection has a goroutine.
func TestWhatHasAGoroutineNevertheless(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(*Config)
		wrap func(net.Listener) net.Listener
	}{
		"an Observer of messages that may wait": {edit: func(c *Config) {
			c.EventLoops = EventLoopsAuto
			c.Observer = &hooks.Observer{Acknowledged: func(hooks.Acknowledged) {}}
		}},
		"switched off": {edit: func(c *Config) { c.EventLoops = EventLoopsOff }},
		"a listener of somebody else": {wrap: func(l net.Listener) net.Listener {
			return &takenListener{Listener: l}
		}},
		"ConnContext": {edit: func(c *Config) {
			c.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return ctx }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestBroker(t, func(c *Config) {
				c.EventLoops = EventLoopsOn
				if tt.edit != nil {
					tt.edit(c)
				}
			})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			addr := l.Addr().String()
			if tt.wrap != nil {
				l = plainly{l}
			}
			served := make(chan error, 1)
			go func() { served <- b.Serve(l) }()
			nc, err := net.Dial("tcp", addr)
			require.NoError(t, err)
			defer nc.Close()
			newTestClient(t, nc, connect("c"))
			on, off := seats(b)
			require.Equal(t, []int{0, 1}, []int{on, off})
			b.Close()
			<-served
		})
	}
}

// plainly is a listener that is not one of package net.
type plainly struct{ net.Listener }

// However many clients wait for a hook, for the Store, for a reader, for memory or for their rate,
// the others are served.
func TestNobodyWaitsForTheWaitOfAnother(t *testing.T) {
	const waiting = 12
	for name, tt := range waitsOnLoops {
		t.Run(name, func(t *testing.T) {
			g := &gate{make(chan struct{}, 1), make(chan struct{})}
			onLoops(t, func(c *Config) {
				if tt.edit != nil {
					tt.edit(c, g.wait)
				}
			}, func(x *looped) {
				g.open = make(chan struct{})
				defer close(g.open)
				if tt.begin != nil {
					tt.begin(x)
				}
				others := []*testClient{x.connect("a"), x.connect("b"), x.connect("c"), x.connect("d")}
				for i := range waiting {
					p := connect(fmt.Sprint("w", i))
					if tt.wait == nil {
						p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 60)
						wire, err := p.Append(nil, packets.V5)
						require.NoError(t, err)
						x.dial().Write(wire)
						continue
					}
					c, _ := newTestClient(t, x.dial(), p)
					tt.wait(c)
				}
				for range 3 {
					for _, c := range others {
						c.ping()
					}
					x.connect("new").ping()
				}
			})
		})
	}
}

// waitsOnLoops are what clients wait for: gate waits for the end of the test. Without wait a CONNECT
// of a durable Session does.
var waitsOnLoops = map[string]struct {
	edit  func(c *Config, gate func())
	begin func(x *looped)
	wait  func(c *testClient)
}{
	"an Authenticator": {edit: func(c *Config, gate func()) {
		c.Authenticator = hooks.AuthenticatorFunc(
			func(_ context.Context, r *hooks.ConnectRequest) error {
				if r.Client.ID[0] == 'w' {
					gate()
				}
				return nil
			})
	}},
	"an Authorizer": {edit: func(c *Config, gate func()) {
		c.Authorizer = hooks.AuthorizerFunc(func(context.Context, *hooks.AccessRequest) error {
			gate()
			return nil
		})
	}, wait: twoMessages},
	"an Interceptor": {edit: func(c *Config, gate func()) {
		c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client,
			m *packets.Message) (*packets.Message, error) {
			gate()
			return m, nil
		})
	}, wait: twoMessages},
	"an Observer": {edit: func(c *Config, gate func()) {
		c.Observer = &hooks.Observer{Subscribed: func(hooks.Subscribed) { gate() }}
	}, wait: func(c *testClient) {
		c.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "wait"}}})
	}},
	"an Observer of refusals": {edit: func(c *Config, gate func()) {
		c.Observer = &hooks.Observer{Denied: func(hooks.Denied) { gate() }}
	}, wait: func(c *testClient) {
		c.nc.Write([]byte("\x30\x06\x00\x03$no\x00"))
	}},
	"an Observer of refusals that are remembered": {edit: func(c *Config, gate func()) {
		var first sync.Map
		c.Authorizer = stableNo{}
		c.Observer = &hooks.Observer{Denied: func(e hooks.Denied) {
			if _, again := first.LoadOrStore(e.Client.ID, true); again {
				gate()
			}
		}}
	}, wait: func(c *testClient) {
		p := &packets.Publish{Topic: []byte("no"), QoS: packets.QoS1, PacketID: 1}
		c.send(p)
		require.IsType(c.t, &packets.Ack{}, c.recv())
		c.send(p)
	}},
	"the Store": {edit: func(c *Config, gate func()) {
		c.Store = &faultStore{Store: new(memory.Store),
			before: func([]store.Op) error { gate(); return nil }}
	}},
	"OverflowBlock": {begin: func(x *looped) {
		mustSubscribe(x.t, x.b, "#", &SubscribeOptions{Buffer: 1, Overflow: OverflowBlock,
			BlockTimeout: time.Hour})
	}, wait: twoMessages},
	"a rate": {edit: func(c *Config, _ func()) { c.PublishRate = 1e-3 }, wait: twoMessages},
	"the rest of a packet": {wait: func(c *testClient) {
		c.nc.Write([]byte("\x30\xff\x7f\x00\x01t"))
	}},
	"memory for a packet": {edit: func(c *Config, _ func()) {
		c.MaxMemory = 2 * (65_536 + 100) * 100 / partialPercent
	}, wait: func(c *testClient) {
		c.nc.Write(append([]byte("\x30\xd0\x86\x03\x00\x01t"), make([]byte, 8000)...))
	}},
}

// stableNo refuses every publish, and says so once.
type stableNo struct{}

func (stableNo) Authorize(context.Context, *hooks.AccessRequest) error {
	return &packets.Error{Code: packets.NotAuthorized}
}
func (stableNo) Stable() bool { return true }

func twoMessages(c *testClient) {
	for range 3 { // which the broker may have ended
		c.nc.Write([]byte("\x30\x07\x00\x04wait\x00"))
	}
}

// What ends a connection ends one that has no goroutine.
func TestWhatEndsAConnectionWithoutGoroutine(t *testing.T) {
	for name, end := range map[string]func(x *looped, c *testClient){
		"Disconnect": func(x *looped, _ *testClient) { x.b.Disconnect("c", packets.AdministrativeAction) },
		"a Ban": func(x *looped, _ *testClient) {
			require.NoError(x.t, x.b.Ban(Ban{Kind: BanClient, Value: "c"}))
		},
		"Close": func(x *looped, _ *testClient) { x.b.Close() },
		"Shutdown": func(x *looped, c *testClient) {
			go c.ends() // it is waited for
			require.NoError(x.t, x.b.Shutdown(x.t.Context()))
		},
		"a takeover":    func(x *looped, _ *testClient) { x.connect("c").ping() },
		"DISCONNECT":    func(_ *looped, c *testClient) { c.send(&packets.Disconnect{}) },
		"what is wrong": func(_ *looped, c *testClient) { c.nc.Write([]byte{0, 0}) },
		"the end of what the client sends": func(_ *looped, c *testClient) {
			require.NoError(c.t, c.nc.(interface{ CloseWrite() error }).CloseWrite())
		},
		"half a packet and the end": func(_ *looped, c *testClient) {
			c.nc.Write([]byte{0x30})
			require.NoError(c.t, c.nc.(interface{ CloseWrite() error }).CloseWrite())
		},
		"Keep Alive": func(*looped, *testClient) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onLoops(t, nil, func(x *looped) {
				p := connect("c")
				if name == "Keep Alive" {
					p.KeepAlive = 1
				}
				c, _ := newTestClient(t, x.dial(), p)
				x.connect("other").ping()
				end(x, c)
				c.ends()
			})
		})
	}
}

// One that says nothing is ended when its time is over, and one that was closed before the loops
// have it when it comes there.
func TestWhatEndsAConnectionWithoutConnect(t *testing.T) {
	onLoops(t, func(c *Config) { c.ConnectTimeout = 50 * time.Millisecond }, func(x *looped) {
		silent := &testClient{t: t, nc: x.dial()}
		half := &testClient{t: t, nc: x.dial()}
		half.nc.Write([]byte{0x10})
		silent.ends()
		half.ends()
	})
	onLoops(t, nil, func(x *looped) {
		for range 100 {
			x.dial()
		}
		x.b.Close() // while they are taken up
	})
}

// A hook that panics, or ends its goroutine, ends its connection and takes the loop from nobody.
func TestAHookThatFailsOnALoop(t *testing.T) {
	for name, fail := range map[string]func(){
		"panic": func() { panic("a test") }, "Goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			onLoops(t, func(c *Config) {
				c.Authorizer = hooks.AuthorizerFunc(
					func(context.Context, *hooks.AccessRequest) error {
						fail()
						return nil
					})
			}, func(x *looped) {
				for range 2 * runtime.GOMAXPROCS(0) {
					c := x.connect("c")
					twoMessages(c)
					c.ends()
					x.connect("other").ping()
				}
			})
		})
	}
}
