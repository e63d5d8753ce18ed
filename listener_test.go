package dunlin

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// twoListeners runs f with a broker that has two described listeners, and one that has no
// description.
func twoListeners(t *testing.T, edit func(*Config), f func(b *Broker, public, inside,
	plain *listeners.Memory)) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, edit)
		public, inside, plain := listeners.NewMemory(), listeners.NewMemory(), listeners.NewMemory()
		// ends with b
		go b.ServeListener(public, &hooks.Listener{Name: "public", MaxConnections: 2})
		// ends with b
		go b.ServeListener(inside, &hooks.Listener{Name: "inside"})
		// ends with b
		go b.Serve(plain)
		f(b, public, inside, plain)
		require.NoError(t, b.Close())
	})
}

func TestHooksKnowTheListenerThatAccepted(t *testing.T) {
	var asked, observed []string
	name := func(c *hooks.Client) string {
		if c.Listener == nil {
			return "none"
		}
		return c.Listener.Name
	}
	twoListeners(t, func(c *Config) {
		c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			asked = append(asked, name(r.Client))
			if name(r.Client) == "inside" {
				r.Grant.ClientID = r.Connect.Username
			}
			return nil
		})
		c.Authorizer = hooks.AuthorizerFunc(func(_ context.Context, r *hooks.AccessRequest) error {
			if name(r.Client) == "public" {
				return packets.Errorf(packets.NotAuthorized, "not from outside")
			}
			return nil
		})
		c.Observer = &hooks.Observer{
			Connected: func(e hooks.Connected) {
				observed = append(observed, name(e.Client)+" "+e.Client.ID)
			},
			Refused: func(e hooks.Refused) {
				observed = append(observed, name(e.Client)+" refused")
			},
		}
	}, func(b *Broker, public, inside, plain *listeners.Memory) {
		for _, tt := range []struct {
			l    *listeners.Memory
			id   string
			code packets.ReasonCode
		}{{public, "a", packets.NotAuthorized}, {inside, "b", packets.NoMatchingSubscribers},
			{plain, "c", packets.NoMatchingSubscribers}} {
			c, _ := newTestClient(t, dial(t, tt.l), as(tt.id, "user of "+tt.id))
			c.send(&packets.Publish{QoS: packets.QoS1, PacketID: 1, Topic: []byte("x")})
			require.Equal(t, tt.code, c.recv().(*packets.Ack).Code, tt.id)
		}
		nc := dial(t, public) // ends without a CONNECT
		nc.Close()
		synctest.Wait()
		require.Equal(t, []string{"public", "inside", "none"}, asked)
		require.Equal(t, []string{"public a", "inside user of b", "none c", "public refused"},
			observed)
		_, ok := b.Session("user of b")
		require.True(t, ok, "the Client Identifier that was granted is that of the Session")
	})
}

func TestAListenerHasRoomForItsOwnConnections(t *testing.T) {
	twoListeners(t, nil, func(b *Broker, public, inside, _ *listeners.Memory) {
		first, _ := newTestClient(t, dial(t, public), connect("1"))
		newTestClient(t, dial(t, public), connect("2"))
		third := dial(t, public)
		_, err := third.Read(make([]byte, 1))
		require.Error(t, err, "a third one is closed before it says anything")
		newTestClient(t, dial(t, inside), connect("3"))
		newTestClient(t, dial(t, inside), connect("4"))
		newTestClient(t, dial(t, inside), connect("5"))
		first.nc.Close()
		synctest.Wait()
		newTestClient(t, dial(t, public), connect("6"))
		require.EqualValues(t, 1, b.Stats().Refused)
	})
}

// Two sockets with one description, for instance of IPv4 and IPv6, share its limit.
func TestListenersWithOneDescriptionShareItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		as, v4, v6 := &hooks.Listener{MaxConnections: 1}, listeners.NewMemory(),
			listeners.NewMemory()
		go b.ServeListener(v4, as) // ends with b
		go b.ServeListener(v6, as) // ends with b
		newTestClient(t, dial(t, v4), connect("1"))
		_, err := dial(t, v6).Read(make([]byte, 1))
		require.Error(t, err)
		require.NoError(t, b.Close())
		require.Empty(t, b.doors, "nothing is left of listeners that have ended")
		require.Equal(t, ErrBrokerClosed, b.ServeListener(listeners.NewMemory(), as))
	})
}

func TestAGrantedMaximumQoSHolds(t *testing.T) {
	qos0 := packets.QoS0
	twoListeners(t, func(c *Config) {
		c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			r.Grant.Limits.MaxQoS = &qos0
			return nil
		})
	}, func(_ *Broker, public, _, _ *listeners.Memory) {
		withWill := connect("w")
		withWill.Will = &packets.Will{Topic: "gone", QoS: packets.QoS1}
		_, ack := newTestClient(t, dial(t, public), withWill)
		require.Equal(t, packets.QoSNotSupported, ack.Code)
		c, _ := newTestClient(t, dial(t, public), connect("c"))
		c.send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "x",
			QoS: packets.QoS2}}})
		require.Equal(t, []packets.ReasonCode{0}, c.recv().(*packets.Suback).Codes)
		c.send(&packets.Publish{QoS: packets.QoS1, PacketID: 2, Topic: []byte("x")})
		require.Equal(t, packets.QoSNotSupported, c.recv().(*packets.Disconnect).Code)
	})
}
