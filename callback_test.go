package dunlin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// This file is Close and Shutdown, called by functions that the Broker itself has called.

// A caller is every function that a Broker calls. One of them closes the Broker.
type caller struct {
	b    *Broker
	from string // the function that does
	end  func(b *Broker) error
	said chan error // what end returned

	called atomic.Bool
}

// at is called by every function with its name.
func (c *caller) at(name string) {
	if name == c.from && c.called.CompareAndSwap(false, true) {
		c.said <- c.end(c.b)
	}
}

func (c *caller) Authenticate(_ context.Context, r *hooks.ConnectRequest) error {
	c.at("Authenticate")
	if r.Client.Username == "nobody" {
		return packets.Errorf(packets.NotAuthorized, "nobody")
	}
	return nil
}

func (c *caller) Start(context.Context, *hooks.ConnectRequest) (hooks.Exchange, error) {
	c.at("Start")
	return c, nil
}

func (c *caller) Next(context.Context, []byte) ([]byte, bool, error) {
	c.at("Next")
	return nil, true, nil
}

func (c *caller) Authorize(_ context.Context, r *hooks.AccessRequest) error {
	c.at("Authorize " + r.Action.String())
	if r.Topic == "secret" {
		return packets.Errorf(packets.NotAuthorized, "secret")
	}
	return nil
}

func (c *caller) AuthorizeDelivery(context.Context, *hooks.AccessRequest) error {
	c.at("AuthorizeDelivery")
	return nil
}

func (c *caller) Intercept(_ context.Context, _ *hooks.Client, m *Message) (*Message, error) {
	c.at("Intercept")
	return m, nil
}

func (c *caller) InterceptDelivery(
	_ context.Context, _ *hooks.Client, m *Message,
) (*Message, error) {
	c.at("InterceptDelivery")
	return m, nil
}

func (c *caller) observer() *hooks.Observer {
	return &hooks.Observer{
		Connected:    func(hooks.Connected) { c.at("Connected") },
		Refused:      func(hooks.Refused) { c.at("Refused") },
		Disconnected: func(hooks.Disconnected) { c.at("Disconnected") },
		SessionEnded: func(hooks.SessionEnded) { c.at("SessionEnded") },
		Subscribed:   func(hooks.Subscribed) { c.at("Subscribed") },
		Unsubscribed: func(hooks.Unsubscribed) { c.at("Unsubscribed") },
		Denied:       func(hooks.Denied) { c.at("Denied") },
		Published:    func(hooks.Published) { c.at("Published") },
		Delivered:    func(hooks.Delivered) { c.at("Delivered") },
		Acknowledged: func(hooks.Acknowledged) { c.at("Acknowledged") },
		Dropped:      func(hooks.Dropped) { c.at("Dropped") },
		Settled:      func(hooks.Settled) { c.at("Settled") },
		Banned:       func(hooks.Banned) { c.at("Banned") },
	}
}

// callingListener calls while it accepts.
type callingListener struct {
	*listeners.Memory
	c *caller
}

func (l callingListener) Accept() (net.Conn, error) {
	nc, err := l.Memory.Accept()
	l.c.at("Accept")
	return nc, err
}

// start makes the Broker.
func (c *caller) start(t *testing.T) *listeners.Memory {
	c.b = newTestBroker(t, func(cfg *Config) {
		cfg.Authenticator, cfg.Authorizer, cfg.Interceptor, cfg.Observer = c, c, c, c.observer()
		cfg.DeliveryInterceptor = c
		cfg.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"m": c}
		cfg.ConnContext = func(ctx context.Context,
			_ net.Conn) context.Context {
			c.at("ConnContext")
			return ctx
		}
		cfg.Store = storetest.Intercept(new(memory.Store),
			func(_ context.Context, call string, _ int) error {
				c.at("Store." + call)
				return nil
			})
	})
	l := listeners.NewMemory()
	go c.b.Serve(callingListener{l, c}) // ends with the Broker
	return l
}

// provoke has the Broker call every function.
func (c *caller) provoke(t *testing.T, l *listeners.Memory) {
	_, _ = c.b.Respond(t.Context(), "question", func(context.Context, *Incoming) (*Message, error) {
		c.at("handler")
		return nil, nil
	})
	all := func(ps ...packets.Packet) {
		nc, err := l.Dial()
		if err != nil {
			return // it is closed already
		}
		var wire []byte
		for _, p := range ps {
			wire, err = p.Append(wire, packets.V5)
			require.NoError(t, err)
		}
		nc.Write(wire)
		r := packets.NewReader(nc, packets.Limits{})
		r.SetVersion(packets.V5)
		for err == nil {
			var p packets.Packet
			p, err = r.ReadPacket()
			if m, ok := p.(*packets.Publish); ok && m.QoS > packets.QoS0 {
				wire, _ = (&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID}).Append(nil,
					packets.V5)
				nc.Write(append(wire, 0xe0, 0)) // and a DISCONNECT
			}
		}
		nc.Close()
	}
	enhanced := connect("e")
	enhanced.Properties = enhanced.Properties.AppendText(packets.AuthenticationMethod, "m")
	small := connect("s")
	small.Properties = small.Properties.AppendUint(packets.MaximumPacketSize, 40)
	lasting := as("c", "u")
	receipt := message2("t", "x", packets.QoS1, 1)
	receipt.Properties = receipt.Properties.AppendUser("receipt", "1")
	unsubscribe := &packets.Unsubscribe{PacketID: 3, Filters: []string{"t"}}
	all(enhanced, &packets.Disconnect{})
	all(as("x", "nobody"))
	all(small, subscribeTo("t", 0), &packets.Publish{Topic: []byte("t"),
		Payload: make([]byte, 100)}, &packets.Disconnect{})
	all(lasting, subscribeTo("t", 1), message2("question", "x", packets.QoS1, 2),
		message2("secret", "x", packets.QoS1, 4), receipt)
	all(lasting, unsubscribe, &packets.Disconnect{})
	_ = c.b.Ban(Ban{Kind: BanClient, Value: "b"})
}

var callers = []string{
	"Authenticate", "Start", "Next", "Authorize publish", "Authorize subscribe",
	"AuthorizeDelivery", "Intercept", "InterceptDelivery", "ConnContext",
	"Connected", "Refused", "Disconnected", "SessionEnded", "Subscribed", "Unsubscribed", "Denied",
	"Published", "Delivered",
	"Acknowledged", "Dropped", "Settled", "Banned", "Store.commit", "handler", "Accept",
}

// Close and Shutdown return to what the Broker has called, and say that they cannot wait. The
// Broker ends all the same.
func TestCloseReturnsToWhatTheBrokerHasCalled(t *testing.T) {
	for how, end := range map[string]func(*Broker) error{
		"Close":    (*Broker).Close,
		"Shutdown": func(b *Broker) error { return b.Shutdown(context.Background()) },
	} {
		for _, from := range callers {
			t.Run(how+" from "+from, func(t *testing.T) {
				c := &caller{from: from, end: end, said: make(chan error, 1)}
				l := c.start(t)
				go c.provoke(t, l) // ends with the Broker
				within(t, how, func() {
					if err := <-c.said; !errors.Is(err, ErrStillClosing) {
						t.Errorf("expected ErrStillClosing, got %v", err)
					}
				})
				within(t, "a Close that waits", func() {
					if err := c.b.Close(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// The program may close the Broker while it reads a Subscription or the retained messages.
func TestALoopOverMessagesMayCloseTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		sub := mustSubscribe(t, b, "t", nil)
		require.NoError(t, b.Publish(t.Context(),
			&Message{Topic: "t", Retain: true, Payload: []byte("x")}))
		for range sub.Messages() {
			for range b.Retained("#") {
				require.NoError(t, b.Close())
			}
		}
		require.ErrorIs(t, sub.Err(), ErrBrokerClosed)
	})
}

// A Broker that waits for a hook which waits for it gives up waiting: Close after a while, Shutdown
// soon after its context.
func TestNoHookCanMakeCloseWaitForEver(t *testing.T) {
	for how, tt := range map[string]struct {
		end   func(b *Broker) error
		takes time.Duration // at most
	}{
		"Close": {(*Broker).Close, 2 * closePatience}, // it waits anew when a connection has ended
		"Shutdown": {func(b *Broker) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			return b.Shutdown(ctx)
		}, time.Minute + 2*shutdownPatience},
	} {
		for _, from := range []string{"Authenticate", "Intercept", "Connected", "handler",
			"Store.commit"} {
			t.Run(fmt.Sprint(how, " from ", from), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					if how == "Close" && from == "Store.commit" {
						return // Close waits for the Store
					}
					elsewhere := func(b *Broker) error {
						said := make(chan error, 1)
						go func() { said <- tt.end(b) }()
						return <-said
					}
					c := &caller{from: from, end: elsewhere, said: make(chan error, 1)}
					l := c.start(t)
					start := time.Now()
					go c.provoke(t, l) // ends with the Broker
					require.ErrorIs(t, <-c.said, ErrStillClosing)
					require.LessOrEqual(t, time.Since(start), tt.takes)
					require.NoError(t, c.b.Close())
					time.Sleep(time.Minute)
				})
			})
		}
	}
}

// A handler may close its own Responder.
func TestAHandlerMayCloseItsResponder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		var r *Responder
		said := make(chan error, 1)
		r, err := b.Respond(t.Context(), "question",
			func(context.Context, *Incoming) (*Message, error) {
				said <- r.Close()
				return nil, nil
			})
		require.NoError(t, err)
		require.NoError(t, b.Publish(t.Context(), &Message{Topic: "question"}))
		require.ErrorIs(t, <-said, ErrStillClosing)
		require.NoError(t, r.Close())
		require.NoError(t, b.Close())
	})
}
