package endtoend

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what package mqtttest waits for when it is not in a bubble. All else about it is
// tested in its own folder.

// What WantIdle makes of the ways in which nothing can come.
func TestWantIdleInRealTime(t *testing.T) {
	publish := func(id uint16) *packets.Publish {
		return &packets.Publish{QoS: packets.QoS1, PacketID: id, Topic: []byte("a"),
			Payload: []byte("x")}
	}
	t.Run("nothing was sent", func(t *testing.T) {
		c := mqtttest.NewBroker(t).Client(t, "c1")
		c.WantIdle("the broker has nothing to say")
		c.Send(&packets.Pingreq{})
		c.WantType("a PINGREQ of the test has its own answer", packets.TypePingresp)
		c.WantIdle("and one only")
	})
	t.Run("no CONNECT was sent", func(t *testing.T) {
		mqtttest.NewBroker(t).Open(t).WantIdle("the broker waits for it")
	})
	t.Run("the answer is lost", func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "c1")
		lost := b.Inject(mqtttest.Drop(mqtttest.ToClient, packets.TypePuback, 1))
		c.Send(publish(1))
		b.WaitFor(t, "a", nil)
		c.WantIdle("no acknowledgement comes")
		c.Send(&packets.Pingreq{})
		c.WantType("nor behind it, however long it takes", packets.TypePingresp)
		require.Equal(t, 1, lost.Hits())
		c.Send(publish(2))
		c.WantType("the next one does", packets.TypePuback)
	})
	t.Run("its PINGREQ is lost", func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "")
		id, ok := c.Connack.Properties.Text(packets.AssignedClientIdentifier)
		require.True(t, ok)
		b.WaitConnected(t, id)
		b.Inject(mqtttest.Drop(mqtttest.FromClient, packets.TypePingreq, 0), mqtttest.ForClient(id))
		c.Send(&packets.Pingreq{})
		c.WantIdle("it is dropped")
	})
	t.Run("the broker does not read", func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c, other := b.Client(t, "c1"), b.Client(t, "c2")
		in := b.Inject(mqtttest.StallReads(), mqtttest.ForClient("c1"))
		c.Send(publish(1))
		c.WantIdle("nobody reads it")
		other.Send(&packets.Pingreq{})
		other.WantType("others are served", packets.TypePingresp)
		in.Lift()
		c.WantType("it goes on", packets.TypePuback)
		require.Equal(t, 1, in.Hits())
	})
}

// A failing is a test that may fail without this one failing.
type failing struct {
	testing.TB
	said strings.Builder
	last []func()
}

func (f *failing) Helper()           {}
func (f *failing) Cleanup(fn func()) { f.last = append(f.last, fn) }
func (f *failing) Errorf(format string, args ...any) {
	fmt.Fprintf(&f.said, format+"\n", args...)
}
func (f *failing) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	panic(f) // ends the body
}

// fails runs a test body and what it wants done at its end, and returns what was said.
func fails(t *testing.T, body func(t testing.TB)) string {
	f := &failing{TB: t}
	func() {
		defer func() {
			if v := recover(); v != nil && v != any(f) {
				panic(v)
			}
		}()
		body(f)
	}()
	for i := len(f.last) - 1; i >= 0; i-- {
		f.last[i]()
	}
	return f.said.String()
}

// What does not come in time.
func TestWaitsEndInRealTime(t *testing.T) {
	const patience = 30 * time.Millisecond
	for _, tt := range []struct {
		name string
		body func(t testing.TB, b *mqtttest.Broker)
		want string
	}{
		{"a message", func(t testing.TB, b *mqtttest.Broker) { b.WaitFor(t, "a/+", nil) },
			`no message on "a/+" that matches within 30ms`},
		{"a subscription", func(t testing.TB, b *mqtttest.Broker) { b.WaitSubscribed(t, "a/#") },
			`nobody has subscribed to "a/#" within 30ms`},
		{"a connection", func(t testing.TB, b *mqtttest.Broker) { b.WaitConnected(t, "c1") },
			`client "c1" is not connected within 30ms`},
		{"a packet", func(t testing.TB, b *mqtttest.Broker) {
			b.Open(t).Want("it comes",
				&packets.Pingresp{})
		}, "got  nothing for 30ms"},
		{"the end", func(t testing.TB, b *mqtttest.Broker) { b.Open(t).WantClosed("it ends") },
			"got  nothing for 30ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			require.Contains(t, fails(t, func(t testing.TB) {
				tt.body(t, mqtttest.NewBroker(t, mqtttest.Timeout(patience)))
			}), tt.want)
			require.GreaterOrEqual(t, time.Since(began), patience)
		})
	}
}

// The broker's reason for an end is known a moment after the client sees the end.
func TestFailuresInRealTime(t *testing.T) {
	for _, tt := range []struct{ name, bytes string }{
		{"a packet that is none", "\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00\xff\x00"},
		{"another protocol", "GET / HTTP/1.1\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := mqtttest.NewBroker(t)
			nc, err := b.Dial()
			require.NoError(t, err)
			_, err = nc.Write([]byte(tt.bytes))
			require.NoError(t, err)
			// until the broker ends it, so that it does not take the client for gone
			_, err = io.ReadAll(nc)
			require.NoError(t, err)
			nc.Close()
			require.Eventually(t, func() bool {
				return len(b.Failures()) == 1
			}, 10*time.Second, time.Millisecond)
			require.Empty(t, b.Failures(), "each is returned once")
		})
	}
}

// A goroutine that a hook leaves behind has some time to end.
func TestGoroutinesThatAreLeftInRealTime(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	connect := func(stays func()) func(t testing.TB) {
		return func(t testing.TB) {
			b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
				c.Authenticator = hooks.AuthenticatorFunc(func(context.Context,
					*hooks.ConnectRequest) error {
					go stays()
					return nil
				})
			}))
			b.Client(t, "c1").Disconnect()
		}
	}
	require.Empty(t, fails(t, connect(func() { time.Sleep(50 * time.Millisecond) })))
	require.Contains(t, fails(t, connect(func() {
		<-release
	})), "goroutines of the broker are left after the test")
}
