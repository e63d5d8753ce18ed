package dunlin

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// This file is what becomes of hooks, deadlines and publishers that wait when their connection or
// the Broker ends.

// undecided is an Authorizer that decides no publish before its context ends.
type undecided struct {
	entered chan struct{}
	slow    func()
}

func (a undecided) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	if r.Action != hooks.ActionPublish {
		return nil
	}
	close(a.entered)
	<-ctx.Done()
	return ctx.Err()
}

// OnReload is there because Close waits for stop between the end of the context and that of the
// connections.
func (a undecided) OnReload(func()) func() { return a.slow }

// A message that no hook has decided, because the Broker or the connection is being ended, is not
// acknowledged.
func TestWhatNobodyDecidedIsNotAcknowledged(t *testing.T) {
	for _, v := range []packets.Version{packets.V311, packets.V5} {
		t.Run("Close "+v.String(), func(t *testing.T) {
			onStage(t, func(st *stage) {
				st.stop()
				a := undecided{make(chan struct{}), func() { time.Sleep(time.Second) }}
				st.cfg.Authorizer = a
				st.start()
				p := st.dial("p", v, true, 0)
				p.want(packets.TypeConnack)
				go p.send(message2("t", "x", packets.QoS1, 1))
				<-a.entered
				st.b.Close()
				p.wantNothing("the message was not routed")
			})
		})
	}
	t.Run("the context of ServeConn", func(t *testing.T) {
		for range 100 { // two goroutines race
			onServedConn(t, func(b *Broker, a undecided, cancel func(), served chan error,
				got func() []byte) {
				cancel()
				<-served
				require.Empty(t, got(), "the message was not routed")
			})
		}
	})
}

// Close ends the context of a hook that is asked for a connection of ServeConn.
func TestCloseEndsTheHooksOfServeConn(t *testing.T) {
	onServedConn(t, func(b *Broker, a undecided, cancel func(), served chan error,
		got func() []byte) {
		closed := make(chan error, 1)
		go func() { closed <- b.Close() }()
		time.Sleep(time.Hour)
		returned := len(closed)
		cancel() // so that the bubble ends
		<-closed
		<-served
		require.Equal(t, 1, returned, "Close waits for a hook that has not been told")
	})
}

// onServedConn has a 3.1.1 client of ServeConn publish, and calls f while the hook decides. got
// returns what has come since the CONNACK.
func onServedConn(t *testing.T, f func(b *Broker, a undecided, cancel func(), served chan error,
	got func() []byte)) {
	synctest.Test(t, func(t *testing.T) {
		a := undecided{make(chan struct{}), func() { time.Sleep(time.Second) }}
		b, err := New(Config{Logger: quiet, Authenticator: hooks.AllowAll, Authorizer: a})
		require.NoError(t, err)
		defer b.Close()
		here, there := net.Pipe()
		defer here.Close()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		served := make(chan error, 1)
		go func() { served <- b.ServeConn(ctx, there) }()
		var mu sync.Mutex
		var in []byte
		go func() {
			buf := make([]byte, 1024)
			for {
				n, err := here.Read(buf)
				mu.Lock()
				in = append(in, buf[:n]...)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
		send := func(p packets.Packet) {
			x, err := p.Append(nil, packets.V311)
			require.NoError(t, err)
			_, err = here.Write(x)
			require.NoError(t, err)
		}
		got := func() []byte {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			x := in
			in = nil
			return x
		}
		send(&packets.Connect{Version: packets.V311, CleanStart: true, ClientID: "c"})
		require.NotEmpty(t, got())
		send(message2("t", "x", packets.QoS1, 1))
		<-a.entered
		f(b, a, cancel, served, got)
	})
}

type untilTheEnd struct{ entered chan struct{} }

func (a untilTheEnd) Start(context.Context, *hooks.ConnectRequest) (hooks.Exchange, error) {
	return a, nil
}

func (a untilTheEnd) Next(ctx context.Context, _ []byte) ([]byte, bool, error) {
	close(a.entered)
	<-ctx.Done()
	return nil, false, ctx.Err()
}

// Shutdown ends the hook that decides a CONNECT: nobody will have the answer.
func TestShutdownEndsTheHookOfACONNECT(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		a := untilTheEnd{make(chan struct{})}
		st.cfg.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"m": a}
		st.start()
		st.dial("c", packets.V5, true, 0, func(p *packets.Connect) {
			p.Properties = p.Properties.AppendText(packets.AuthenticationMethod, "m")
		})
		<-a.entered
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		require.NoError(t, st.b.Shutdown(ctx))
	})
}

// A hook whose context is made after its connection was stopped finds it ended.
func TestAHookOfAStoppedConnectionIsTold(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		subscribed, goOn := make(chan struct{}), make(chan struct{})
		st.cfg.Observer = &hooks.Observer{Subscribed: func(hooks.Subscribed) { close(subscribed); <-goOn }}
		st.cfg.Interceptor = hooks.InterceptorFunc(func(ctx context.Context, _ *hooks.Client,
			m *packets.Message) (*packets.Message, error) {
			<-ctx.Done()
			return nil, errors.New("ended")
		})
		st.start()
		p := st.clean("p")
		b, _ := subscribeTo("x", 0).Append(nil, p.v)
		b, _ = message2("t", "x", packets.QoS1, 1).Append(b, p.v)
		p.nc.Write(b) // one read for both
		<-subscribed
		st.b.Disconnect("p", packets.AdministrativeAction)
		close(goOn)
		time.Sleep(time.Minute)
		require.True(t, p.ended(), "the hook waits for a context that nobody ends")
	})
}

// A publisher that waits for a full Subscription ends when it is told to.
func TestAPublisherThatIsHeldBackEnds(t *testing.T) {
	for _, how := range []string{"Disconnect", "Shutdown"} {
		t.Run(how, func(t *testing.T) {
			onStage(t, func(st *stage) {
				sub, err := st.b.Subscribe(context.Background(), "t",
					&SubscribeOptions{QoS: 1, Buffer: 1, Overflow: OverflowBlock,
						BlockTimeout: time.Hour})
				require.NoError(t, err)
				defer sub.Close()
				p := st.clean("p")
				p.send(message2("t", "1", packets.QoS1, 1), message2("t", "2", packets.QoS1, 2))
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				if how == "Shutdown" {
					require.NoError(t, st.b.Shutdown(ctx))
					return
				}
				st.b.Disconnect("p", packets.AdministrativeAction)
				<-ctx.Done()
				require.True(t, p.ended())
			})
		})
	}
}

// A connection that is over leaves no Timer behind.
func TestNoTimerOutlivesItsConnection(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		st.cfg.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			r.Grant.Expires = time.Now().Add(24 * time.Hour)
			return nil
		})
		st.start()
		for range 20 {
			st.clean("c") // takes over
		}
		time.Sleep(5 * time.Second)
		require.Equal(t, 1, st.b.connections())
		require.Equal(t, 1, st.b.due.Len(), "Timers, for one connection")
	})
}

type stopCounter struct{ n *int }

func (stopCounter) Authorize(context.Context, *hooks.AccessRequest) error { return nil }
func (s stopCounter) OnReload(func()) func() {
	return func() { *s.n++ }
}

// Shutdown, and the Close that was deferred, stop a Reloader once.
func TestAReloaderIsStoppedOnce(t *testing.T) {
	n := 0
	b, err := New(Config{Logger: quiet, Authenticator: hooks.AllowAll, Authorizer: stopCounter{&n}})
	require.NoError(t, err)
	require.NoError(t, b.Shutdown(context.Background()))
	require.NoError(t, b.Close())
	require.Equal(t, 1, n)
}

// A named Session that expires at the moment of Subscribe makes room for a new one.
func TestSubscribeAtTheMomentOfExpiry(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		o := &SubscribeOptions{Name: "n", Expiry: time.Second}
		met := false
		var sub *Subscription
		var err error
		// whenDue, the first to need a turn, has found it expired, and is about to end it
		b.turns = sync.Pool{New: func() any {
			if !met {
				met = true
				sub, err = b.Subscribe(t.Context(), "t", o)
			}
			return &turn{b: b}
		}}
		require.NoError(t, mustSubscribe(t, b, "t", o).Close())
		time.Sleep(time.Minute)
		synctest.Wait()
		require.True(t, met)
		require.NoError(t, err, "nobody has deleted it")
		require.NoError(t, sub.Err(), "nobody has deleted it")
		mustPublish(t, b, "t", "x", 0)
		require.Equal(t, []string{"x"}, unread(sub))
	})
}

// What the ended member of a shared subscription leaves to others has aged, or has expired; what
// nobody takes is counted as lost.
func TestWhatAnEndedMemberLeavesHasAged(t *testing.T) { // [MQTT-3.3.2-5] [MQTT-3.3.2-6]
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		l, done := serveMemory(t, b)
		defer done()
		p := connect("first")
		p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 100)
		first, _ := newTestClient(t, dial(t, l), p)
		first.subscribe("$share/g/t", 1)
		first.close()
		publish := func(payload string, expiry uint32) {
			props := packets.Properties(nil).AppendUint(packets.MessageExpiryInterval, expiry)
			require.NoError(t, b.Publish(t.Context(),
				&Message{Topic: "t", QoS: 1, Payload: []byte(payload), Properties: props}))
		}
		publish("old", 50)
		publish("young", 150)
		second, _ := newTestClient(t, dial(t, l), connect("second"))
		second.subscribe("$share/g/t", 1)
		time.Sleep(101 * time.Second)
		m := second.recv().(*packets.Publish)
		require.Equal(t, "young", string(m.Payload), "what has expired is not sent")
		left, _ := m.Properties.Uint(packets.MessageExpiryInterval)
		require.LessOrEqual(t, left, uint32(50), "it has waited for 100 s")
		require.EqualValues(t, 1, b.Stats().MessagesDropped)
		second.close()
		require.EqualValues(t, 2, b.Stats().MessagesDropped, "nobody is left to take it")
	})
}

// untold is an Authorizer that decides the first publish only when its context ends, and then not
// at once.
type untold struct {
	entered chan struct{}
	once    *sync.Once
	slow    func()
}

func (a untold) Authorize(ctx context.Context, r *hooks.AccessRequest) (err error) {
	if r.Action == hooks.ActionPublish {
		a.once.Do(func() {
			close(a.entered)
			<-ctx.Done()
			a.slow()
			err = ctx.Err()
		})
	}
	return err
}

// A QoS 2 message that no hook has decided, because its connection was taken over, is not received:
// sent again it is routed.
func TestWhatNobodyDecidedIsNotReceived(t *testing.T) {
	for _, v := range []packets.Version{packets.V311, packets.V5} {
		// before the client sends it again, and after that
		for _, late := range []time.Duration{0, time.Second} {
			t.Run(v.String()+" "+late.String(), func(t *testing.T) {
				onStage(t, func(st *stage) {
					st.stop()
					a := untold{make(chan struct{}), new(sync.Once), func() { time.Sleep(late) }}
					st.cfg.Authorizer = a
					st.start()
					sub, err := st.b.Subscribe(context.Background(), "t", &SubscribeOptions{QoS: 2})
					require.NoError(t, err)
					p := st.durable("p", v)
					wire, err := message2("t", "x", packets.QoS2, 1).Append(nil, v)
					require.NoError(t, err)
					p.nc.Write(wire)
					<-a.entered
					var got []packets.Packet
					for i := 0; len(got) == 0 && i < 3; i++ {
						p = st.durable("p", v)
						m := message2("t", "x", packets.QoS2, 1)
						m.Dup = true
						p.send(m)
						time.Sleep(time.Minute)
						got = slices.DeleteFunc(p.got(),
							func(q packets.Packet) bool { return q.Type() != packets.TypePubrec })
					}
					require.Len(t, got, 1)
					require.Equal(t, packets.Success, got[0].(*packets.Ack).Code)
					require.Equal(t, []string{"x"}, unread(sub), "received and never routed")
				})
			})
		}
	}
}

// A member of a shared subscription whose connection is being ended is away.
func TestAMemberThatIsBeingEndedIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		b := newTestBroker(t, func(c *Config) {
			c.Authorizer = hooks.AuthorizerFunc(func(_ context.Context,
				r *hooks.AccessRequest) error {
				if r.Topic == "slow" {
					<-gate
				}
				return nil
			})
		})
		l, done := serveMemory(t, b)
		defer done()
		first, _ := newTestClient(t, dial(t, l), as("first", "u"))
		first.subscribe("$share/g/t", 1)
		second, _ := newTestClient(t, dial(t, l), connect("second"))
		second.subscribe("$share/g/t", 1)
		first.send(&packets.Publish{Topic: []byte("slow")})
		synctest.Wait()
		b.Disconnect("first", packets.AdministrativeAction)
		for range 2 {
			mustPublish(t, b, "t", "x", 1)
			second.message("t")
		}
		close(gate)
	})
}
