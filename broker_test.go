package dunlin

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func newTestBroker(t testing.TB, edit func(*Config)) *Broker {
	t.Helper()
	cfg := Config{Authenticator: hooks.AllowAll, Logger: quiet}
	if edit != nil {
		edit(&cfg)
	}
	b, err := New(cfg)
	require.NoError(t, err)
	return b
}

// A testClient speaks packets over any net.Conn.
type testClient struct {
	t  testing.TB
	nc net.Conn
	r  *packets.Reader
	v  packets.Version
}

func newTestClient(t testing.TB, nc net.Conn, p *packets.Connect) (*testClient, *packets.Connack) {
	t.Helper()
	c := &testClient{t: t, nc: nc, r: packets.NewReader(nc, packets.Limits{}), v: p.Version}
	c.r.SetVersion(p.Version)
	c.send(p)
	ack, ok := c.recv().(*packets.Connack)
	require.True(t, ok, "the answer to CONNECT is no CONNACK")
	return c, ack
}

func (c *testClient) send(p packets.Packet) {
	c.t.Helper()
	b, err := p.Append(nil, c.v)
	require.NoError(c.t, err)
	_, err = c.nc.Write(b)
	require.NoError(c.t, err)
}

func (c *testClient) recv() packets.Packet {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	p, err := c.r.ReadPacket()
	require.NoError(c.t, err)
	return p
}

func connect(id string) *packets.Connect {
	return &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: id}
}

// serveMemory serves b on an in-memory listener. The function ends that and waits.
func serveMemory(t testing.TB, b *Broker) (*listeners.Memory, func()) {
	l := listeners.NewMemory()
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	return l, func() {
		b.Close()
		require.ErrorIs(t, <-served, ErrBrokerClosed)
	}
}

func dial(t testing.TB, l *listeners.Memory) net.Conn {
	t.Helper()
	nc, err := l.Dial()
	require.NoError(t, err)
	return nc
}

func TestNewRefusesWhatMakesNoSense(t *testing.T) {
	three := packets.QoS(3)
	var none hooks.AuthenticatorFunc
	for name, tt := range map[string]struct {
		edit func(*Config)
		want string
	}{
		"no Authenticator": {func(c *Config) { c.Authenticator = nil },
			"Authenticator is nil"},
		"an Authenticator that is nil": {func(c *Config) { c.Authenticator = none },
			"Authenticator is nil"},
		"a chain with nil":            {func(c *Config) { c.Authenticator = hooks.ChainAuthenticators(hooks.AllowAll, nil) }, "Authenticator: member 1 is nil"},
		"a chain in a chain with nil": {func(c *Config) { c.Authorizer = hooks.AllAuthorizers(hooks.AnyAuthorizer(hooks.AuthorizerFunc(nil))) }, "Authorizer: member 0: member 0 is nil"},
		"an Interceptor that is nil":  {func(c *Config) { c.Interceptor = hooks.InterceptorFunc(nil) }, "Interceptor is nil"},
		"a method that is nil":        {func(c *Config) { c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"X": nil} }, `EnhancedAuth["X"] is nil`},
		"a method without name": {func(c *Config) {
			c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"": challengeAuth{}}
		}, `EnhancedAuth: "" is no Authentication Method`},
		"a method that is no text": {func(c *Config) {
			c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"\xff": challengeAuth{}}
		}, "EnhancedAuth: \"\\xff\" is no Authentication Method"},
		"a version that is none": {func(c *Config) { c.Versions = []packets.Version{6} }, "Versions: 6"},
		"QoS 3": {func(c *Config) { c.MaxQoS = &three },
			"MaxQoS: 3"},
		"a Keep Alive over 18 h": {func(c *Config) { c.MaxKeepAlive = 24 * time.Hour }, "MaxKeepAlive is 24h"},
		"a Keep Alive of 1.5 s":  {func(c *Config) { c.MaxKeepAlive = 1500 * time.Millisecond }, "MaxKeepAlive is 1.5s"},
		"an unknown overflow": {func(c *Config) { c.Overflow = 9 },
			"Overflow is 9"},
		"an unknown strategy": {func(c *Config) { c.Shared = 9 },
			"Shared is 9"},
		"an unknown policy": {func(c *Config) { c.OverRate = 9 },
			"OverRate is 9"},
		"a rate that is none":                           {func(c *Config) { c.PublishBytes = math.NaN() }, "PublishBytes is NaN"},
		"too long response information":                 {func(c *Config) { c.ResponseInformation = strings.Repeat("x", 70000) }, "ResponseInformation has 70000 bytes"},
		"response information without room for a topic": {func(c *Config) { c.ResponseInformation = strings.Repeat("x", 65535) }, "ResponseInformation has 65535 bytes"},
		"response information with too many levels": {func(c *Config) {
			c.ResponseInformation,
				c.MaxTopicLevels = "a/b/c", 3
		}, "ResponseInformation has so many levels"},
		"response information with U+0000":       {func(c *Config) { c.ResponseInformation = "a\x00b" }, "ResponseInformation is not UTF-8"},
		"response information that is not UTF-8": {func(c *Config) { c.ResponseInformation = "a\xff" }, "ResponseInformation is not UTF-8"},
		"response information with a wildcard":   {func(c *Config) { c.ResponseInformation = "answers/+/" }, "ResponseInformation is \"answers/+/\""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Authenticator: hooks.AllowAll}
			tt.edit(&cfg)
			_, err := New(cfg)
			require.ErrorContains(t, err, "Config."+tt.want)
		})
	}
}

// Every limit may be negative: none.
func TestEveryLimitMayBeNegative(t *testing.T) {
	cfg := Config{Authenticator: hooks.AllowAll, Logger: quiet}
	v := reflect.ValueOf(&cfg).Elem()
	n := 0
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Int, reflect.Int64:
			f.SetInt(-1)
		case reflect.Float64:
			f.SetFloat(-1)
		default:
			continue
		}
		n++
	}
	require.Greater(t, n, 30)
	b, err := New(cfg)
	require.NoError(t, err)
	defer b.Close()
	l, stop := serveMemory(t, b)
	defer stop()
	_, ack := newTestClient(t, dial(t, l), connect("c"))
	require.Equal(t, packets.Success, ack.Code)
	_, ok := ack.Properties.Uint(packets.ServerKeepAlive)
	require.False(t, ok, "no limit of the Keep Alive")
}

func TestServeAfterTheEndReturnsErrBrokerClosed(t *testing.T) {
	for name, end := range map[string]func(*Broker) error{
		"Close":    (*Broker).Close,
		"Shutdown": func(b *Broker) error { return b.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTestBroker(t, nil)
				l1, l2 := listeners.NewMemory(), listeners.NewMemory()
				served := make(chan error, 2)
				go func() { served <- b.Serve(l1) }()
				go func() { served <- b.Serve(l2) }()
				synctest.Wait()
				require.NoError(t, end(b))
				require.ErrorIs(t, <-served, ErrBrokerClosed)
				require.ErrorIs(t, <-served, ErrBrokerClosed)
				require.NoError(t, end(b), "a second time")
				require.NoError(t, b.Close())
				require.NoError(t, b.Shutdown(context.Background()))
				l3 := listeners.NewMemory()
				require.ErrorIs(t, b.Serve(l3), ErrBrokerClosed)
				_, err := l3.Dial()
				require.Error(t, err, "the listener of a late Serve is closed")
				c1, c2 := net.Pipe()
				defer c1.Close()
				require.ErrorIs(t, b.ServeConn(context.Background(), c2), ErrBrokerClosed)
				require.ErrorIs(t, b.Publish(context.Background(), &Message{Topic: "a"}),
					ErrBrokerClosed)
				_, err = b.Subscribe(context.Background(), "a", nil)
				require.ErrorIs(t, err, ErrBrokerClosed)
			})
		})
	}
}

func TestServeConnReturnsWhyItEnded(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*testClient, context.CancelFunc)
		want func(*testing.T, error)
	}{
		"DISCONNECT is no error": {
			func(c *testClient, _ context.CancelFunc) { c.send(&packets.Disconnect{}) },
			func(t *testing.T, err error) { require.NoError(t, err) },
		},
		"a cut": {
			func(c *testClient, _ context.CancelFunc) {
				// the CONNACK comes before the broker waits for more, and a pipe that is closed
				// takes no deadline
				synctest.Wait()
				c.nc.Close()
			},
			func(t *testing.T, err error) { require.ErrorIs(t, err, io.EOF) },
		},
		"an error of the client": {
			func(c *testClient, _ context.CancelFunc) { c.send(&packets.Pingresp{}); c.recv(); c.nc.Close() },
			func(t *testing.T, err error) {
				require.Equal(t, packets.ProtocolError,
					packets.CodeOf(err))
			},
		},
		"its context": {
			func(c *testClient, cancel context.CancelFunc) {
				cancel()
				d := c.recv().(*packets.Disconnect)
				require.Equal(c.t, packets.AdministrativeAction, d.Code)
				c.nc.Close()
			},
			func(t *testing.T, err error) {
				require.Equal(t, packets.AdministrativeAction, packets.CodeOf(err))
				require.ErrorIs(t, err, context.Canceled)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTestBroker(t, nil)
				defer b.Close()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				client, server := net.Pipe()
				served := make(chan error, 1)
				go func() { served <- b.ServeConn(ctx, server) }()
				tc, _ := newTestClient(t, client, connect("c"))
				c.do(tc, cancel)
				c.want(t, <-served)
				client.Close()
			})
		})
	}
}

func TestServeConnSaysWhyItWasCancelledBeforeTheConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		defer b.Close()
		ctx, cancel := context.WithCancelCause(context.Background())
		_, server := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- b.ServeConn(ctx, server) }()
		synctest.Wait()
		why := errors.New("why")
		cancel(why)
		require.ErrorIs(t, <-served, why)
	})
}

// panicking is a hook that panics for one topic.
type panicking struct{}

func (panicking) Authorize(_ context.Context, r *hooks.AccessRequest) error {
	if r.Topic == "panic" {
		panic("on purpose")
	}
	return nil
}

func TestAPanicInAHookEndsOneConnectionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		b := newTestBroker(t, func(c *Config) {
			c.Authorizer = panicking{}
			c.Observer = &hooks.Observer{Panicked: func(hooks.Panicked) { told++ }}
		})
		l, done := serveMemory(t, b)
		bad, _ := newTestClient(t, dial(t, l), connect("bad"))
		good, _ := newTestClient(t, dial(t, l), connect("good"))
		bad.send(&packets.Publish{Topic: []byte("panic")})
		_, ok := bad.recv().(*packets.Disconnect)
		require.True(t, ok)
		bad.nc.Close()
		good.send(&packets.Pingreq{})
		require.IsType(t, &packets.Pingresp{}, good.recv())
		good.nc.Close()
		synctest.Wait()
		require.EqualValues(t, 1, b.Stats().Panics)
		require.Equal(t, 1, told)
		done()
	})
}

// A connection that announces 256 MiB must not cost them.
func TestMemoryFollowsWhatWasReceived(t *testing.T) {
	b := newTestBroker(t, func(c *Config) { c.MaxConnectSize, c.MaxPacketSize = -1, -1 })
	defer b.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	client, server := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- b.ServeConn(context.Background(), server) }()
	_, err := client.Write([]byte{0x10, 0xff, 0xff, 0xff, 0x7f, 0})
	require.NoError(t, err)
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20),
		"bytes allocated for six that came")
	client.Close()
	require.Error(t, <-served)
}

func TestConnectHasOneDeadlineAndKeepAliveIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, func(c *Config) { c.ConnectTimeout = 3 * time.Second })
		l, done := serveMemory(t, b)
		start := time.Now()
		slow := dial(t, l)
		for range 5 { // bytes do not prolong it
			slow.Write([]byte{0x10, 0x7f, 0, 4, 'M'}[:1])
			time.Sleep(500 * time.Millisecond)
		}
		_, err := slow.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.LessOrEqual(t, time.Since(start), 3*time.Second)
		slow.Close()

		// 43691 * 3 / 2 is more than 16 bits
		for _, keepAlive := range []uint16{1, 3, 43691, 65535} {
			p := connect("c")
			p.KeepAlive = keepAlive
			c, _ := newTestClient(t, dial(t, l), p)
			limit := time.Duration(keepAlive) * time.Second * 3 / 2
			time.Sleep(limit - time.Millisecond)
			c.send(&packets.Pingreq{}) // a whole packet in the last moment
			require.IsType(t, &packets.Pingresp{}, c.recv())
			last := time.Now()
			time.Sleep(limit / 2)
			c.nc.Write([]byte{0xc0}) // a byte is no packet
			c.nc.SetReadDeadline(time.Time{})
			d, err := c.r.ReadPacket()
			require.NoError(t, err)
			require.Equal(t, packets.KeepAliveTimeout, d.(*packets.Disconnect).Code)
			require.Equal(t, limit, time.Since(last))
			c.nc.Close()
		}
		done()
	})
}

func TestAFrozenSubscriberCostsTheOthersNothingAndStaysInBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound = 256 << 10
		b := newTestBroker(t,
			func(c *Config) { c.MaxOutboundBytes = bound; c.MaxQueuedMessages = 100; c.WriteTimeout = time.Hour })
		l, done := serveMemory(t, b)
		frozen, _ := newTestClient(t, dial(t, l), connect("frozen"))
		live, _ := newTestClient(t, dial(t, l), connect("live"))
		for _, c := range []*testClient{frozen, live} {
			c.send(&packets.Subscribe{PacketID: 1,
				Subscriptions: []packets.Subscription{{Filter: "#", QoS: 1}}})
			c.recv()
		}
		pub, _ := newTestClient(t, dial(t, l), connect("pub"))
		payload := make([]byte, 1000)
		start := time.Now()
		for i := range 2000 {
			qos := packets.QoS(i % 2)
			pub.send(&packets.Publish{Topic: []byte("t"), QoS: qos, PacketID: 1, Payload: payload})
			if qos > 0 {
				require.Equal(t, packets.Success, pub.recv().(*packets.Ack).Code)
			}
			p := live.recv().(*packets.Publish)
			if p.QoS > 0 {
				live.send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
			}
		}
		require.Less(t, time.Since(start), 200*time.Millisecond,
			"virtual time that a publisher waited for the frozen one")
		s, _ := b.Session("frozen")
		require.LessOrEqual(t, s.Queued, 100)
		require.Greater(t, b.Stats().MessagesDropped, uint64(500))
		c := b.sessionAt("frozen").conn
		require.LessOrEqual(t, c.out.Size(), bound+2000)
		for _, c := range []*testClient{frozen, live, pub} {
			c.nc.Close()
		}
		done()
	})
}

func TestAClientThatTakesNothingIsEndedByWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := make(chan error, 2)
		b := newTestBroker(t, func(c *Config) {
			c.WriteTimeout = 5 * time.Second
			c.Observer = &hooks.Observer{Disconnected: func(e hooks.Disconnected) { why <- e.Err }}
		})
		l, done := serveMemory(t, b)
		frozen, _ := newTestClient(t, dial(t, l), connect("frozen"))
		frozen.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "#"}}})
		frozen.recv()
		start := time.Now()
		for range 100 {
			require.NoError(t, b.Publish(context.Background(),
				&Message{Topic: "t", Payload: make([]byte, 10_000)}))
		}
		require.Error(t, <-why)
		require.Equal(t, 5*time.Second, time.Since(start))
		frozen.nc.Close()
		done()
	})
}

func TestSharedMessagesOfAnEndedSessionGoToAnotherMember(t *testing.T) { // [5.0 MQTT5-NOID-4.8.2-1]
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		l, done := serveMemory(t, b)
		first, _ := newTestClient(t, dial(t, l), connect("first"))
		first.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "$share/g/t", QoS: 1}}})
		first.recv()
		for i := range 3 {
			require.NoError(t, b.Publish(context.Background(),
				&Message{Topic: "t", QoS: 1, Payload: []byte{byte('0' + i)}}))
			first.recv()
		}
		second, _ := newTestClient(t, dial(t, l), connect("second"))
		second.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "$share/g/t", QoS: 1}}})
		second.recv()
		first.nc.Close() // without an acknowledgement, and without Session Expiry
		for i := range 3 {
			p := second.recv().(*packets.Publish)
			require.Equal(t, string(rune('0'+i)), string(p.Payload))
		}
		second.nc.Close()
		done()
	})
}

// stacks is what every goroutine is doing.
func stacks() []byte {
	b := make([]byte, 256<<10)
	return b[:runtime.Stack(b, true)]
}

// noneLeft lets goroutines that have nothing left to do end, until there are no more than before.
func noneLeft(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines are left, there were %d:\n%s", runtime.NumGoroutine(), before,
				stacks())
		}
	}
}

var churnTime = flag.Duration("churn", 2*time.Second, "how long TestChurn runs")

// TestChurn lets 50 clients connect, take one another over, subscribe, publish and leave, then
// compares every counter with a walk over state.
func TestChurn(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	before := runtime.NumGoroutine()
	b := newTestBroker(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(t.Output(),
			&slog.HandlerOptions{Level: slog.LevelError}))
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	stop := time.Now().Add(*churnTime)
	var all sync.WaitGroup
	var dialled atomic.Uint64
	for n := range 50 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(n)))
			for time.Now().Before(stop) {
				if churn(rnd, l.Addr().String(), &all) {
					dialled.Add(1)
				}
			}
		})
	}
	all.Wait()
	// Everybody has left, also those that the broker accepts late: it is done with them when it has
	// answered one that came behind them, and all have ended. Sessions with an expiry stay.
	nc, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	last := &testClient{t: t, nc: nc, r: packets.NewReader(nc, packets.Limits{}), v: packets.V5}
	last.r.SetVersion(packets.V5)
	last.send(connect("last"))
	_, err = last.r.ReadPacket() // without a deadline: thousands may be in front of it
	require.NoError(t, err)
	last.nc.Close()
	require.NoError(t, l.Close())
	require.ErrorIs(t, <-served, net.ErrClosed)
	b.serving.Wait()
	st := b.Stats()
	require.Zero(t, st.Connections)
	require.Equal(t, dialled.Load()+1, st.Accepted+st.Refused)
	subs := 0
	n := 0
	for s := range b.Sessions() {
		subs += len(s.Subscriptions)
		require.Nil(t, s.Client)
		require.False(t, s.ExpiresAt.IsZero())
		n++
	}
	require.Equal(t, n, st.Sessions)
	require.Equal(t, subs, st.Subscriptions)
	retained := 0
	for range b.Retained("#") {
		retained++
	}
	require.Equal(t, retained, st.Retained)
	for s := range b.Sessions() {
		b.DeleteSession(context.Background(), s.ClientID)
	}
	st = b.Stats()
	require.Zero(t, [4]int{st.Sessions, st.Subscriptions, st.Queued, st.Inflight},
		"sessions, subscriptions, queued, in flight")
	b.numbers.RLock()
	numbers := len(b.byNumber)
	b.numbers.RUnlock()
	require.Equal(t, 1, numbers, "numbers that were not given back")
	require.Zero(t, b.tree.Subscribers())
	require.Zero(t, b.memory.Of(budget.Subscriptions))
	require.Zero(t, st.Panics)
	require.NoError(t, b.Shutdown(context.Background()))
	noneLeft(t, before)
}

// churn is the life of one connection, with one of few Client Identifiers.
func churn(rnd *rand.Rand, addr string, all *sync.WaitGroup) (dialled bool) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(5 * time.Second))
	p := &packets.Connect{Version: packets.Version(3 + rnd.IntN(3)), CleanStart: rnd.IntN(2) == 0,
		ClientID: fmt.Sprint("c", rnd.IntN(20))}
	if p.Version == packets.V5 && rnd.IntN(2) == 0 {
		p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 1000)
	}
	if rnd.IntN(2) == 0 {
		p.Will = &packets.Will{Topic: "will", Payload: []byte("gone"),
			QoS: packets.QoS(rnd.IntN(3)), Retain: rnd.IntN(2) == 0}
	}
	all.Go(func() { // acknowledges what comes, ends with the connection
		r := packets.NewReader(nc, packets.Limits{})
		r.SetVersion(p.Version)
		for {
			in, err := r.ReadPacket()
			if err != nil {
				return
			}
			var a packets.Ack
			switch in := in.(type) {
			case *packets.Publish:
				if in.QoS == 0 {
					continue
				}
				a = packets.Ack{Kind: packets.TypePuback + packets.Type(in.QoS) - 1,
					PacketID: in.PacketID}
			case *packets.Ack:
				switch in.Kind {
				case packets.TypePubrec:
					a = packets.Ack{Kind: packets.TypePubrel, PacketID: in.PacketID}
				case packets.TypePubrel:
					a = packets.Ack{Kind: packets.TypePubcomp, PacketID: in.PacketID}
				default:
					continue
				}
			default:
				continue
			}
			b, _ := a.Append(nil, p.Version)
			nc.Write(b)
		}
	})
	write := func(p packets.Packet, v packets.Version) error {
		b, err := p.Append(nil, v)
		if err == nil {
			_, err = nc.Write(b)
		}
		return err
	}
	if write(p, p.Version) != nil {
		return true
	}
	for i := range rnd.IntN(20) {
		var q packets.Packet
		topic := fmt.Sprint("t/", rnd.IntN(5))
		switch rnd.IntN(4) {
		case 0:
			q = &packets.Subscribe{PacketID: uint16(i + 1), Subscriptions: []packets.Subscription{
				{Filter: []string{"t/+", "#", topic, "$share/g/t/+"}[rnd.IntN(4)],
					QoS: packets.QoS(rnd.IntN(3))}}}
		case 1:
			q = &packets.Unsubscribe{PacketID: uint16(i + 1), Filters: []string{"t/+", topic}}
		default:
			q = &packets.Publish{Topic: []byte(topic), QoS: packets.QoS(rnd.IntN(3)),
				PacketID: uint16(i + 1), Retain: rnd.IntN(4) == 0, Payload: []byte("x")}
		}
		if write(q, p.Version) != nil {
			return true
		}
	}
	if rnd.IntN(2) == 0 {
		write(&packets.Disconnect{}, p.Version)
	}
	return true
}

// However many come at once, no more than MaxConnections are accepted.
func TestMaxConnectionsHoldsForThoseThatComeTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 7
		b := newTestBroker(t, func(c *Config) { c.MaxConnections = most })
		l, done := serveMemory(t, b)
		var all sync.WaitGroup
		var accepted, busy atomic.Int32
		for i := range 100 {
			nc := dial(t, l)
			defer nc.Close()
			all.Go(func() {
				switch _, ack := newTestClient(t, nc, connect(fmt.Sprint("c", i))); ack.Code {
				case packets.Success:
					accepted.Add(1)
				case packets.ServerBusy:
					busy.Add(1)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, most, accepted.Load())
		require.EqualValues(t, 100-most, busy.Load())
		done()
	})
}

func TestManyBrokersInOneProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails if a goroutine is left
		for range 100 {
			b := newTestBroker(t, nil)
			l, done := serveMemory(t, b)
			c, _ := newTestClient(t, dial(t, l), connect("c"))
			c.nc.Close()
			done()
		}
	})
}

func TestSerialAcceptErrorsAreRetriedAndOthersReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		defer b.Close()
		began := time.Now()
		boom := errors.New("boom")
		require.ErrorIs(t, b.Serve(&failing{err: boom}), boom)
		require.Equal(t, 15*time.Millisecond, time.Since(began),
			"it waits between attempts, each time longer")
	})
}

type failing struct {
	net.Listener
	err   error
	times int
}

func (f *failing) Accept() (net.Conn, error) {
	f.times++
	if f.times < 3 {
		return nil, temporary{}
	}
	return nil, f.err
}
func (f *failing) Close() error { return nil }

type temporary struct{}

func (temporary) Error() string   { return "too many open files" }
func (temporary) Temporary() bool { return true }
