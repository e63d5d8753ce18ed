package dunlin

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what becomes of decisions that are under way when their time, their connection or
// the Broker ends.

// A ponderer is every hook that decides. One of its decisions waits until the context ends.
type ponderer struct {
	over           string        // the decision that takes so long: a type of packet, or "Will"
	entered, ended chan struct{} // closed when it begins, and when it has ended
}

func newPonderer(over string) *ponderer {
	return &ponderer{over, make(chan struct{}), make(chan struct{})}
}

func (p *ponderer) decide(ctx context.Context, over string) error {
	if over != p.over {
		return nil
	}
	close(p.entered)
	<-ctx.Done()
	close(p.ended)
	return ctx.Err()
}

func (p *ponderer) Authenticate(ctx context.Context, _ *hooks.ConnectRequest) error {
	return p.decide(ctx, "CONNECT")
}

func (p *ponderer) Start(context.Context, *hooks.ConnectRequest) (hooks.Exchange, error) {
	return p, nil
}

func (p *ponderer) Next(ctx context.Context, _ []byte) ([]byte, bool, error) {
	return nil, true, p.decide(ctx, "AUTH")
}

func (p *ponderer) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	switch {
	case r.Will:
		return p.decide(ctx, "Will")
	case r.Action == hooks.ActionSubscribe:
		return p.decide(ctx, "SUBSCRIBE")
	}
	return p.decide(ctx, "PUBLISH")
}

func (p *ponderer) Intercept(ctx context.Context, _ *hooks.Client, m *Message) (*Message, error) {
	return m, p.decide(ctx, "interception")
}

func (p *ponderer) configure(c *Config) {
	c.Authenticator, c.Authorizer, c.Interceptor = p, p, p
	c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"m": p}
}

// provoke has the client ask for the decision that p waits over.
func (p *ponderer) provoke(t *testing.T, nc net.Conn, v packets.Version) {
	c := &packets.Connect{Version: v, CleanStart: true, ClientID: "c"}
	if p.over == "AUTH" {
		c.Properties = c.Properties.AppendText(packets.AuthenticationMethod, "m")
	}
	if p.over == "Will" {
		c.Will = &packets.Will{Topic: "w"}
	}
	var then packets.Packet
	switch p.over {
	case "SUBSCRIBE":
		then = subscribeTo("t", 1)
	case "PUBLISH", "interception":
		then = message2("t", "x", packets.QoS1, 1)
	}
	if then == nil {
		wire, err := c.Append(nil, v)
		require.NoError(t, err)
		_, err = nc.Write(wire)
		require.NoError(t, err)
	} else {
		client, ack := newTestClient(t, nc, c)
		require.Equal(t, packets.Success, ack.Code)
		client.send(then)
		nc.SetReadDeadline(time.Time{})
	}
	<-p.entered
}

var decisions = []string{"CONNECT", "AUTH", "Will", "SUBSCRIBE", "PUBLISH", "interception"}

// Close ends the context of every hook, over every transport, and what a hook could not decide
// because of that is not answered.
func TestCloseEndsWhatHooksDecideAndAnswersNothing(t *testing.T) {
	for _, tr := range transports {
		for _, over := range decisions {
			for _, v := range []packets.Version{packets.V311, packets.V5} {
				if over == "AUTH" && v < packets.V5 {
					continue
				}
				t.Run(fmt.Sprint(tr.name, " ", over, " ", v), func(t *testing.T) {
					p := newPonderer(over)
					b := newTestBroker(t, p.configure)
					nc := tr.open(t, b)()
					defer nc.Close()
					p.provoke(t, nc, v)
					within(t, "Close", func() { b.Close() })
					got, _ := io.ReadAll(nc)
					require.Empty(t, got)
				})
			}
		}
	}
}

// afterHook is a net.Conn whose Close waits for a hook.
type afterHook struct {
	net.Conn
	hook *ponderer
}

func (c afterHook) Close() error {
	<-c.hook.ended
	return c.Conn.Close()
}

// The contexts of hooks end before connections are closed, so that a Close that waits for a hook,
// as that of a socket once did, waits for nothing that does not come.
func TestHooksAreToldOfTheEndBeforeConnectionsAreClosed(t *testing.T) {
	for name, end := range map[string]func(b *Broker, cancel func()){
		"the context of ServeConn": func(_ *Broker, cancel func()) { cancel() },
		"Close":                    func(b *Broker, _ func()) { b.Close() },
		"Shutdown":                 func(b *Broker, _ func()) { b.Shutdown(context.Background()) },
	} {
		for _, over := range decisions {
			t.Run(name+" "+over, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPonderer(over)
					b := newTestBroker(t, func(c *Config) {
						p.configure(c)
						c.ConnectTimeout = -1
					})
					here, there := net.Pipe()
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					served := make(chan error, 1)
					go func() { served <- b.ServeConn(ctx, afterHook{there, p}) }()
					v := packets.V311
					if over == "AUTH" {
						v = packets.V5
					}
					p.provoke(t, here, v)
					go end(b, cancel) // returns when the hook does
					got, err := io.ReadAll(here)
					require.NoError(t, err)
					require.Empty(t, got)
					<-served
					b.Close()
				})
			})
		}
	}
}

// ConnectTimeout counts from the beginning of a connection until its CONNACK, whoever takes the
// time: the client or a hook, in an exchange of AUTH packets as well.
func TestAllDecisionsBeforeTheCONNACKShareConnectTimeout(t *testing.T) {
	for _, over := range []string{"CONNECT", "AUTH", "Will"} {
		t.Run(over, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPonderer(over)
				b := newTestBroker(t, func(c *Config) {
					p.configure(c)
					c.ConnectTimeout = 3 * time.Second
				})
				l, done := serveMemory(t, b)
				start := time.Now()
				nc := dial(t, l)
				synctest.Wait()
				time.Sleep(2 * time.Second)
				p.provoke(t, nc, packets.V5)
				r := packets.NewReader(nc, packets.Limits{})
				r.SetVersion(packets.V5)
				answer, err := r.ReadPacket()
				require.NoError(t, err)
				require.Equal(t, packets.NotAuthorized, answer.(*packets.Connack).Code)
				require.Equal(t, 3*time.Second, time.Since(start))
				nc.Close()
				done()
			})
		})
	}
}

// An exchange that goes on after its first step has the time that its beginning has left.
func TestAnExchangeHasOneTimeForAllItsSteps(t *testing.T) {
	method := packets.Properties(nil).AppendText(packets.AuthenticationMethod, "m")
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("re-authentication: %t", again), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := false
				b := newTestBroker(t, func(c *Config) {
					c.ConnectTimeout = 3 * time.Second
					c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"m": &slowSteps{slow: &slow}}
				})
				l, done := serveMemory(t, b)
				p := connect("c")
				p.Properties = method
				var c *testClient
				if again {
					var ack *packets.Connack
					c, ack = newTestClient(t, dial(t, l), p)
					require.Equal(t, packets.Success, ack.Code)
					time.Sleep(time.Minute)
				}
				slow = true
				start := time.Now()
				if again {
					c.send(&packets.Auth{Code: packets.ReAuthenticate, Properties: method})
				} else {
					nc := dial(t, l)
					c = &testClient{t: t, nc: nc, r: packets.NewReader(nc, packets.Limits{}),
						v: packets.V5}
					c.r.SetVersion(packets.V5)
					c.send(p)
				}
				require.Equal(t, packets.ContinueAuthentication, c.recv().(*packets.Auth).Code)
				time.Sleep(time.Second)
				c.send(&packets.Auth{Code: packets.ContinueAuthentication, Properties: method})
				if answer := c.recv(); again {
					require.Equal(t, packets.NotAuthorized, answer.(*packets.Disconnect).Code)
				} else {
					require.Equal(t, packets.NotAuthorized, answer.(*packets.Connack).Code)
				}
				require.Equal(t, 3*time.Second, time.Since(start))
				c.nc.Close()
				done()
			})
		})
	}
}

// slowSteps accepts at once or, if slow, asks the client once more and decides nothing then.
type slowSteps struct {
	slow  *bool
	asked bool
}

func (s *slowSteps) Start(context.Context, *hooks.ConnectRequest) (hooks.Exchange, error) {
	return &slowSteps{slow: s.slow}, nil
}

func (s *slowSteps) Next(ctx context.Context, _ []byte) ([]byte, bool, error) {
	switch {
	case !*s.slow:
		return nil, true, nil
	case !s.asked:
		s.asked = true
		return nil, false, nil
	}
	<-ctx.Done()
	return nil, false, ctx.Err()
}

// slowRules allow everything, and decide nothing before their context ends while they are slow.
type slowRules struct {
	slow    atomic.Bool
	entered chan struct{}
	changed func() // says that the rules have changed
}

func (r *slowRules) Authorize(ctx context.Context, _ *hooks.AccessRequest) error {
	if r.slow.Load() {
		r.entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (r *slowRules) OnReload(changed func()) (stop func()) {
	r.changed = changed
	return func() {}
}

// A subscription that nobody has decided, because the time was over or the Broker was closed, is
// kept.
func TestASubscriptionThatNobodyDecidedIsKept(t *testing.T) {
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("Close: %t", closed), func(t *testing.T) {
			onStage(t, func(st *stage) {
				st.stop()
				rules := &slowRules{entered: make(chan struct{}, 10)}
				st.cfg.Authorizer = rules
				st.start()
				p := st.durable("c", packets.V5)
				p.subscribe("t", 1)
				rules.slow.Store(true)
				if closed {
					rules.changed() // all subscriptions are decided anew
					<-rules.entered
					st.stop()
					st.start()
				} else {
					p.nc.Close()
					// they are decided for the client that comes back
					p = st.dial("c", packets.V5, false, 3600)
					time.Sleep(time.Minute)
					got := p.want(packets.TypeConnack)
					require.Equal(t, packets.NotAuthorized, got[0].(*packets.Connack).Code)
				}
				rules.slow.Store(false)
				st.durable("c", packets.V5)
				s, ok := st.b.Session("c")
				require.True(t, ok)
				require.Len(t, s.Subscriptions, 1)
			})
		})
	}
}

// A client whose CONNACK waits for the Store is told to come again when its connection has to end:
// a client that is told Not authorized may give up for good.
func TestAConnectionThatEndsBeforeItsCONNACKMayComeAgain(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(st *stage)
		want packets.ReasonCode
	}{
		{"Shutdown", func(st *stage) {
			go st.b.Shutdown(context.Background())
		}, packets.ServerUnavailable},
		{"takeover", func(st *stage) {
			st.dial("c", packets.V5, false, 60)
		}, packets.ServerBusy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				release := st.store.hold()
				p := st.dial("c", packets.V5, false, 60)
				p.wantNothing("while the commit runs")
				tt.end(st)
				synctest.Wait()
				release()
				require.Equal(t, tt.want, p.want(packets.TypeConnack)[0].(*packets.Connack).Code)
			})
		})
	}
}
