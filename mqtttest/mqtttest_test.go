package mqtttest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
	"github.com/stretchr/testify/require"
)

// A fakeTB is a test that may fail without this one failing.
type fakeTB struct {
	testing.TB
	mu       sync.Mutex
	said     strings.Builder
	failed   bool
	cleanups []func()
}

func (f *fakeTB) Helper()           {}
func (f *fakeTB) Output() io.Writer { return io.Discard }
func (f *fakeTB) Cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }
func (f *fakeTB) Logf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(&f.said, format+"\n", args...)
}
func (f *fakeTB) Errorf(format string, args ...any) {
	f.Logf(format, args...)
	f.failed = true
}
func (f *fakeTB) Fatal(args ...any) { f.Fatalf("%s", fmt.Sprint(args...)) }
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	panic(f) // ends body
}

// runs runs a test body and its cleanups and returns what it said, "" if it passed.
func runs(t *testing.T, body func(t testing.TB)) string {
	t.Helper()
	f := &fakeTB{TB: t}
	protect := func(fn func()) {
		defer func() {
			if v := recover(); v != nil && v != any(f) {
				panic(v)
			}
		}()
		fn()
	}
	protect(func() { body(f) })
	for i := len(f.cleanups) - 1; i >= 0; i-- {
		protect(f.cleanups[i])
	}
	if !f.failed {
		return ""
	}
	return f.said.String()
}

// both runs f in a bubble and outside of one.
func both(t *testing.T, f func(t *testing.T)) {
	t.Run("in virtual time", func(t *testing.T) { synctest.Test(t, f) })
	t.Run("in real time", f)
}

// bothIdle is both for an f that wants a client to have nothing to read. In real time WantIdle
// would wait for a moment, and package internal/endtoend has its tests; here idle sees that nothing
// comes before the answer to a PINGREQ.
func bothIdle(t *testing.T, f func(t *testing.T, idle func(c *mqtttest.Client, why string))) {
	t.Run("in virtual time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(t, (*mqtttest.Client).WantIdle) })
	})
	t.Run("in real time", func(t *testing.T) {
		f(t, func(c *mqtttest.Client, why string) {
			t.Helper()
			c.Send(&packets.Pingreq{})
			c.WantType(why, packets.TypePingresp)
		})
	})
}

func subscribe(id uint16, filter string, qos packets.QoS) *packets.Subscribe {
	return &packets.Subscribe{PacketID: id,
		Subscriptions: []packets.Subscription{{Filter: filter, QoS: qos}}}
}

func publish(topic, payload string) *packets.Publish {
	return &packets.Publish{Topic: []byte(topic), Payload: []byte(payload)}
}

func publish1(id uint16, topic, payload string) *packets.Publish {
	return &packets.Publish{QoS: packets.QoS1, PacketID: id, Topic: []byte(topic),
		Payload: []byte(payload)}
}

func TestAConversation(t *testing.T) {
	bothIdle(t, func(t *testing.T, idle func(*mqtttest.Client, string)) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "c1")
		require.False(t, c.Connack.SessionPresent)
		c.Send(subscribe(1, "a/#", packets.QoS1))
		c.Want("the subscription is granted",
			&packets.Suback{PacketID: 1, Codes: []packets.ReasonCode{packets.GrantedQoS1}})
		idle(c, "there are no retained messages")
		b.WaitSubscribed(t, "a/#")
		b.Publish("a/b", "hello")
		c.Want("the message arrives", publish1(1, "a/b", "hello"))
		c.Send(&packets.Ack{Kind: packets.TypePuback, PacketID: 1})
		idle(c, "it was acknowledged")

		c.Send(publish1(7, "x/1", "one"), publish1(8, "x/2", "two"))
		c.WantType("the first is acknowledged", packets.TypePuback)
		c.Want("and the second", &packets.Ack{Kind: packets.TypePuback, PacketID: 8,
			Code: packets.NoMatchingSubscribers})
		require.Equal(t, "two", string(b.WaitFor(t, "x/+", mqtttest.Payload("two")).Payload))
		require.Equal(t, "one", string(b.WaitFor(t, "x/+", nil).Payload),
			"the first one has not been returned yet")
		require.Len(t, b.Messages("x/#"), 2)
		require.Len(t, b.Messages("#"), 3)

		b.WaitConnected(t, "c1")
		c.Disconnect()
		b.WaitDisconnected(t, "c1")
		require.Contains(t, b.Trace(), "> PUBLISH qos=1 id=7 topic=x/1 payload=one")
	})
}

func TestURL(t *testing.T) {
	b := mqtttest.NewBroker(t)
	url := b.URL()
	require.Equal(t, url, b.URL())
	addr, ok := strings.CutPrefix(url, "mqtt://127.0.0.1:")
	require.True(t, ok, url)
	connectTCP := func(id string) net.Conn {
		nc, err := net.Dial("tcp", "127.0.0.1:"+addr)
		require.NoError(t, err)
		p := &packets.Connect{Version: packets.V311, CleanStart: true, ClientID: id}
		raw, err := p.Append(nil, packets.V311)
		require.NoError(t, err)
		nc.Write(raw)
		ack, err := packets.NewReader(nc, packets.Limits{}).ReadPacket()
		require.NoError(t, err)
		require.Equal(t, "CONNACK code=0x00", packets.Trace(ack))
		return nc
	}
	nc := connectTCP("one")
	b.WaitConnected(t, "one")
	nc.Close()
	b.WaitDisconnected(t, "one")
	b.Restart()
	connectTCP("two").Close()
}

func TestServeAnotherListener(t *testing.T) {
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS() // for its certificate
	defer srv.Close()
	var seen atomic.Pointer[tls.ConnectionState]
	b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
		c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			seen.Store(r.Client.TLS)
			return nil
		})
	}))
	l, err := tls.Listen("tcp", "127.0.0.1:0", srv.TLS)
	require.NoError(t, err)
	b.Serve(l)
	in := b.Inject(mqtttest.Refuse(packets.Banned), mqtttest.OnListener(l))
	defer in.Lift()
	b.Client(t, "by memory").Disconnect()
	require.Nil(t, seen.Load())

	dial := func() packets.Packet {
		nc, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		require.NoError(t, err)
		defer nc.Close()
		raw, _ := (&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "by TLS"}).
			Append(nil, packets.V5)
		nc.Write(raw)
		r := packets.NewReader(nc, packets.Limits{})
		r.SetVersion(packets.V5)
		p, err := r.ReadPacket()
		require.NoError(t, err)
		return p
	}
	require.Equal(t, packets.Banned, dial().(*packets.Connack).Code,
		"the fault is for this listener")
	in.Lift()
	require.Equal(t, packets.Success, dial().(*packets.Connack).Code)
	require.NotNil(t, seen.Load(), "hooks see the TLS state")
}

// What a test that fails says.
func TestFailureMessages(t *testing.T) {
	quick := mqtttest.Timeout(30 * time.Millisecond)
	for _, tt := range []struct {
		name string
		body func(t testing.TB)
		want []string
	}{
		{"a message that does not come", func(t testing.TB) {
			b := mqtttest.NewBroker(t, quick)
			c := b.Client(t, "sensor")
			c.Send(publish1(1, "a/b", "20"))
			c.WantType("acknowledged", packets.TypePuback)
			b.Client(t, "bystander")
			b.WaitFor(t, "a/+", mqtttest.Payload("21"))
		}, []string{`no message on "a/+" that matches within 30ms`,
			"PUBLISH qos=1 id=0 topic=a/b payload=20  # does not match",
			`connection 1, client "sensor"`, "> CONNECT v=5 client=sensor clean", "< CONNACK",
			"!bystander"}},
		{"a message where there is nothing", func(t testing.TB) {
			mqtttest.NewBroker(t, quick).WaitFor(t, "a/+", nil)
		}, []string{"nothing was published there; 0 messages elsewhere",
			"there were no connections"}},
		{"a message that was returned before", func(t testing.TB) {
			b := mqtttest.NewBroker(t, quick)
			b.Publish("a", "x")
			b.WaitFor(t, "a", nil)
			b.WaitFor(t, "a", nil)
		}, []string{"was returned by an earlier WaitFor"}},
		{"a filter that is none", func(t testing.TB) {
			mqtttest.NewBroker(t, quick).WaitFor(t, "a+", nil)
		}, []string{`"a+" is no Topic Filter`}},
		{"a subscription that is not made", func(t testing.TB) {
			b := mqtttest.NewBroker(t, quick)
			b.Client(t, "c1").Send(subscribe(1, "a/#", 0))
			b.WaitSubscribed(t, "b/#")
		}, []string{`nobody has subscribed to "b/#" within 30ms`, "> SUBSCRIBE id=1 filter=a/#:0"}},
		{"a client that stays", func(t testing.TB) {
			b := mqtttest.NewBroker(t, quick)
			b.Client(t, "c1")
			b.WaitDisconnected(t, "c1")
		}, []string{`client "c1" is still connected after 30ms`, "> CONNECT v=5 client=c1"}},
		{"a client that never came", func(t testing.TB) {
			mqtttest.NewBroker(t, quick).WaitDisconnected(t, "c1")
		}, []string{`client "c1" was never connected`}},
		{"a client that does not come", func(t testing.TB) {
			mqtttest.NewBroker(t, quick).WaitConnected(t, "c1")
		}, []string{`client "c1" is not connected within 30ms`}},
		{"a packet that is another one", func(t testing.TB) {
			c := mqtttest.NewBroker(t, quick).Client(t, "c1")
			c.Send(&packets.Pingreq{})
			c.Want("a SUBACK comes", &packets.Suback{PacketID: 1})
		}, []string{`client "c1": a SUBACK comes`, "want SUBACK id=1", "got  PINGRESP",
			"> PINGREQ"}},
		{"a packet of another type", func(t testing.TB) {
			c := mqtttest.NewBroker(t, quick).Client(t, "c1")
			c.Send(&packets.Pingreq{})
			c.WantType("a SUBACK comes", packets.TypeSuback)
		}, []string{"want SUBACK", "got  PINGRESP"}},
		{"a packet that does not come", func(t testing.TB) {
			c := mqtttest.NewBroker(t, quick).Client(t, "c1")
			c.Want("a SUBACK comes", &packets.Suback{PacketID: 1})
		}, []string{"want SUBACK", "got  nothing for 30ms"}},
		{"a packet instead of silence", func(t testing.TB) {
			c := mqtttest.NewBroker(t, quick).Client(t, "c1")
			c.Send(&packets.Pingreq{}, &packets.Pingreq{})
			c.WantIdle("nobody answers")
		}, []string{"nobody answers", "want nothing", "got  PINGRESP"}},
		{"the end instead of silence", func(t testing.TB) {
			b := mqtttest.NewBroker(t, quick)
			c := b.Client(t, "c1")
			b.Stop()
			c.WantIdle("it stays")
		}, []string{"it stays", "the end of the connection", "# ended:"}},
		{"a connection that is not closed", func(t testing.TB) {
			mqtttest.NewBroker(t, quick).Client(t, "c1").WantClosed("it is thrown out")
		}, []string{"it is thrown out", "want the end of the connection", "got  nothing for 30ms"}},
		{"a packet before the end", func(t testing.TB) {
			c := mqtttest.NewBroker(t, quick).Client(t, "c1")
			c.Send(&packets.Pingreq{})
			c.WantClosed("it is gone")
		}, []string{"it is gone", "got  PINGRESP"}},
		{"a CONNECT that is refused", func(t testing.TB) {
			b := mqtttest.NewBroker(t, quick)
			b.Inject(mqtttest.Refuse(packets.Banned))
			b.Client(t, "c1")
		}, []string{"the CONNECT is accepted", "got  CONNACK code=0x8A",
			"refused with 0x8A by a fault"}},
		{"a packet without wire form", func(t testing.TB) {
			mqtttest.NewBroker(t).Client(t, "c1").Send(publish(strings.Repeat("x", 70_000), ""))
		}, []string{`client "c1": Send PUBLISH`}},
		{"a client that breaks the protocol, and nobody looks", func(t testing.TB) {
			b := mqtttest.NewBroker(t)
			c := b.Client(t, "c1")
			c.Send(&packets.Connect{Version: packets.V5, ClientID: "c1"})
			b.WaitDisconnected(t, "c1")
		}, []string{"did not look at these failures", "a client broke the protocol",
			"a second CONNECT", "connection 1"}},
		{"a hook that panics, and nobody looks", func(t testing.TB) {
			b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
				c.Logger = slog.New(slog.DiscardHandler)
				c.Interceptor = hooks.InterceptorFunc(func(context.Context, *hooks.Client,
					*packets.Message) (*packets.Message, error) {
					panic("oh no")
				})
			}))
			c := b.Client(t, "c1")
			c.Send(publish("a", "b"))
			b.WaitDisconnected(t, "c1")
		}, []string{"did not look at these failures", `panic while serving client "c1": oh no`}},
		{"a configuration that makes no sense", func(t testing.TB) {
			mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) { c.Authenticator = nil }))
		}, []string{"Authenticator is nil"}},
		{"a message that the broker refuses", func(t testing.TB) {
			mqtttest.NewBroker(t).Publish("a/#", "x")
		}, []string{`Publish to "a/#"`, "no Topic Name"}},
		{"a store that cannot be opened again", func(t testing.TB) {
			b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
				c.Store = struct{ store.Store }{new(memory.Store)}
			}))
			b.Restart()
		}, []string{"cannot be opened again", "option Store"}},
		{"somebody else's store that is to be empty", func(t testing.TB) {
			b := mqtttest.NewBroker(t, mqtttest.Store(func() (store.Store, error) {
				return new(memory.Store), nil
			}))
			b.Restart()
			b.RestartEmpty()
		}, []string{"empty it between Stop and Start"}},
		{"two stores", func(t testing.TB) {
			mqtttest.NewBroker(t, mqtttest.Store(func() (store.Store, error) {
				return new(memory.Store), nil
			}),
				mqtttest.Config(func(c *dunlin.Config) { c.Store = new(memory.Store) }))
		}, []string{"a Store in the configuration, and an option"}},
		{"a store that fails", func(t testing.TB) {
			mqtttest.NewBroker(t, mqtttest.Store(func() (store.Store, error) {
				return nil, errors.New("no disk")
			}))
		}, []string{"mqtttest: no disk"}},
		{"a message while it is stopped", func(t testing.TB) {
			b := mqtttest.NewBroker(t)
			b.Stop()
			b.Publish("a", "x")
		}, []string{"while the broker is stopped"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var said string
			synctest.Test(t, func(t *testing.T) { said = runs(t, tt.body) })
			require.NotEmpty(t, said, "the test fails")
			for _, w := range tt.want {
				if not, ok := strings.CutPrefix(w, "!"); ok {
					require.NotContains(t, said, not)
				} else {
					require.Contains(t, said, w)
				}
			}
		})
	}
}

func TestGoroutinesThatAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		said := runs(t, func(t testing.TB) {
			b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
				c.Authenticator = hooks.AuthenticatorFunc(func(context.Context,
					*hooks.ConnectRequest) error {
					go hang(release) // what a hook starts and forgets
					return nil
				})
			}))
			b.Client(t, "c1").Disconnect()
		})
		require.Contains(t, said, "goroutines of the broker are left after the test")
		require.Contains(t, said, "mqtttest_test.hang")
	})
}

func hang(release chan struct{}) { <-release }

func TestURLInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		require.Contains(t, runs(t, func(t testing.TB) { mqtttest.NewBroker(t).URL() }), "use Dial")
	})
}

// What the test has looked at does not fail it.
func TestFailuresThatAreRead(t *testing.T) {
	both(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "c1")
		c.Send(&packets.Connect{Version: packets.V5, ClientID: "c1"})
		require.Equal(t, packets.ProtocolError,
			c.WantClosed("a second CONNECT ends the connection").Code)
		require.Empty(t, b.Failures(), "WantClosed has seen it")

		c = b.Client(t, "c2")
		c.Send(&packets.Connack{})
		c.WantType("the broker says why", packets.TypeDisconnect)
		c.Close()
		b.WaitDisconnected(t, "c2")
		require.Empty(t, b.Failures(), "so has a DISCONNECT that was read")
	})
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "c3")
		c.Conn().Write([]byte{0xFF, 0x00})
		b.WaitDisconnected(t, "c3")
		require.Eventually(t, func() bool {
			return len(b.Failures()) == 1
		}, time.Second, time.Millisecond)
		require.Empty(t, b.Failures(), "each is returned once")
	})
}

func TestStopAndStart(t *testing.T) {
	bothIdle(t, func(t *testing.T, idle func(*mqtttest.Client, string)) {
		b := mqtttest.NewBroker(t)
		b.Start() // does nothing
		b.PublishMessage(&dunlin.Message{Topic: "kept", Payload: []byte("x"), Retain: true})
		persistent := func(p *packets.Connect) {
			p.CleanStart = false
			p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 3600)
		}
		c := b.Client(t, "c1", persistent)
		b.Stop()
		require.Nil(t, b.Broker())
		c.WantClosed("a crash says nothing")
		nc, err := b.Dial()
		require.NoError(t, err)
		_, err = nc.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF, "nobody serves it")
		b.Start()
		c = b.Client(t, "c1", persistent)
		require.True(t, c.Connack.SessionPresent, "the session was stored")
		c.Send(subscribe(1, "#", 0))
		c.WantType("", packets.TypeSuback)
		c.WantType("and so were the retained messages", packets.TypePublish)
		b.Restart()
		require.True(t, b.Client(t, "c1", persistent).Connack.SessionPresent, "and again")

		b.RestartEmpty()
		c = b.Client(t, "c1", persistent)
		require.False(t, c.Connack.SessionPresent,
			"without its store the broker has forgotten the session")
		c.Send(subscribe(1, "#", 0))
		c.WantType("", packets.TypeSuback)
		idle(c, "and the retained messages")
		require.Len(t, b.Messages("kept"), 1, "the record is the test's, not the broker's")
	})
}

func TestVerboseWritesPackets(t *testing.T) {
	var said string
	f := &fakeTB{TB: t}
	b := mqtttest.NewBroker(f, mqtttest.Verbose())
	b.Client(t, "c1").Disconnect()
	for _, fn := range f.cleanups {
		fn()
	}
	said = f.said.String()
	require.Contains(t, said, `connection 1 "c1"`)
	require.Contains(t, said, "< CONNACK")
	require.False(t, f.failed)
}

// A listener that ends by itself is a failure.
func TestAListenerThatBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said := runs(t, func(t testing.TB) {
			mqtttest.NewBroker(t).Serve(broken{})
			synctest.Wait()
		})
		require.Contains(t, said, "the listener broken has ended: out of order")
	})
}

type broken struct{}

func (broken) Accept() (net.Conn, error) { return nil, errors.New("out of order") }
func (broken) Close() error              { return nil }
func (broken) Addr() net.Addr            { return &net.UnixAddr{Name: "broken"} }

// A wait that fails ends the test that waits: here a subtest, while the broker belongs to the whole
// test.
func TestAWaitFailsTheTestThatItIsGiven(t *testing.T) {
	for name, wait := range map[string]func(b *mqtttest.Broker, t testing.TB){
		"WaitFor":          func(b *mqtttest.Broker, t testing.TB) { b.WaitFor(t, "a", nil) },
		"WaitSubscribed":   func(b *mqtttest.Broker, t testing.TB) { b.WaitSubscribed(t, "a") },
		"WaitConnected":    func(b *mqtttest.Broker, t testing.TB) { b.WaitConnected(t, "c1") },
		"WaitDisconnected": func(b *mqtttest.Broker, t testing.TB) { b.WaitDisconnected(t, "c1") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := mqtttest.NewBroker(t) // would fail this test, which passes
				require.Contains(t, runs(t, func(t testing.TB) { wait(b, t) }), "15s")
			})
		})
	}
}

// What comes at the very end of the Timeout is seen, and is not told as missing.
func TestAWaitLooksAgainBeforeItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 {
			b := mqtttest.NewBroker(t, mqtttest.Timeout(time.Second))
			done := make(chan struct{})
			go func() {
				defer close(done)
				time.Sleep(time.Second)
				b.Broker().Publish(context.Background(),
					&dunlin.Message{Topic: "a", Payload: []byte("x")})
			}()
			said := runs(t, func(t testing.TB) { b.WaitFor(t, "a", nil) })
			<-done
			if said != "" {
				require.Contains(t, said, "nothing was published there",
					"it says what its last look has seen")
			}
		}
	})
}
