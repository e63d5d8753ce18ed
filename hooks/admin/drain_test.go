package admin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// travellers is how many clients TestADrainLosesNothing moves: 10,000 with DUNLIN_FULL=1.
func travellers(t *testing.T) int {
	if os.Getenv("DUNLIN_FULL") == "" {
		return 200
	}
	t.Log("10,000 clients")
	return 10_000
}

const (
	elsewhere = "second.example:1883"
	patient   = 30 * time.Second // how long a traveller waits for what is missing
)

// A traveller is a client that publishes to itself, and goes where it is told to.
type traveller struct {
	t    *testing.T
	id   string
	next int             // the number of the next message
	kept map[string]bool // acknowledged messages; whether they have come
	told int             // how often it was sent to the second broker
	// How long it waits from one message to the next
	pause time.Duration
}

// live is what a traveller does at a broker, until it is sent away or stop says so and all its
// messages have come, or it has waited long for them. It says whether it was sent away.
func (x *traveller) live(b *mqtttest.Broker, stop func() bool) (away bool) {
	c := b.Client(x.t, x.id, func(p *packets.Connect) {
		p.CleanStart = false
		p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 3600)
	})
	defer c.Close()
	c.Send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{
		{Filter: "own/" + x.id, QoS: 1}}})
	r := packets.NewReader(c.Conn(), packets.Limits{})
	r.SetVersion(packets.V5)
	sent, stopped := "", time.Time{}
	for {
		if stop() {
			if stopped.IsZero() {
				stopped = time.Now()
			}
			if x.missing() == 0 || time.Since(stopped) > patient {
				return false
			}
			c.Conn().SetReadDeadline(stopped.Add(patient + time.Second))
		}
		p, err := r.ReadPacket()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
		require.NoError(x.t, err, "only a DISCONNECT ends the connection of %s", x.id)
		switch p := p.(type) {
		case *packets.Disconnect:
			require.Equal(x.t, packets.UseAnotherServer, p.Code)
			to, _ := p.Properties.Text(packets.ServerReference)
			require.Equal(x.t, elsewhere, to)
			x.told++
			return true
		case *packets.Publish:
			x.kept[string(p.Payload)] = true
			if p.QoS > 0 {
				c.Send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
			}
		case *packets.Ack:
			require.Less(x.t, p.Code, packets.ReasonCode(0x80))
			if !x.kept[sent] { // it is not here already
				x.kept[sent] = false // and has to come
			}
			time.Sleep(x.pause)
		}
		if _, is := p.(*packets.Publish); is {
			continue
		}
		sent = strconv.Itoa(x.next)
		x.next++
		c.Send(&packets.Publish{Topic: []byte("own/" + x.id), Payload: []byte(sent), QoS: 1,
			PacketID: uint16(x.next%60_000 + 2)})
	}
}

// missing is how many acknowledged messages have not come.
func (x *traveller) missing() (n int) {
	for _, came := range x.kept {
		if !came {
			n++
		}
	}
	return n
}

// All clients move to a second broker at the rate that was asked for. No message that either broker
// has acknowledged is lost.
func TestADrainLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		require.Zero(t, drained(t, newBench(t), travellers(t)))
	})
}

// A broker that loses a message that it acknowledges while it drains is found out.
func TestALossInADrainIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broker *dunlin.Broker
		var lost atomic.Bool
		of := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
			c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, c *hooks.Client,
				m *packets.Message) (*packets.Message, error) {
				if c.ID == "c37" && broker.Ready() != nil && lost.CompareAndSwap(false, true) {
					return nil, hooks.ErrDrop
				}
				return m, nil
			})
		}))
		broker = of.Broker()
		require.Equal(t, 1, drained(t, benchOf(t, of), 50))
	})
}

// drained moves n clients from a bench to a second broker, and back when all is over. It returns
// how many messages were lost that a broker had acknowledged.
func drained(t *testing.T, b *bench, n int) (lost int) {
	rate := n / 10
	second := mqtttest.NewBroker(t)
	var over, home atomic.Bool
	var all sync.WaitGroup
	clients := make([]*traveller, n)
	for i := range clients {
		x := &traveller{t: t, id: fmt.Sprint("c", i), kept: map[string]bool{},
			pause: max(100*time.Millisecond, time.Duration(n)*100*time.Microsecond)}
		clients[i] = x
		all.Go(func() {
			if !x.live(b.broker, home.Load) {
				return
			}
			x.live(second, over.Load)
			for !home.Load() { // until the first broker takes clients again
				time.Sleep(time.Second)
			}
			x.live(b.broker, home.Load) // what waits there
		})
	}
	time.Sleep(2 * time.Second)
	began := time.Now()
	b.act(n, "drain", fmt.Sprintf(`{"per_second":%d,"server_reference":%q}`, rate, elsewhere))
	for b.h.brokers["main"].drain.view().Running {
		time.Sleep(10 * time.Millisecond)
	}
	took, last := time.Since(began), b.h.brokers["main"].drain.view()
	require.Empty(t, last.Err)
	require.Equal(t, n, last.Moved)
	require.Greater(t, took, 9*time.Second)
	require.Less(t, took, 20*time.Second)
	require.Error(t, b.broker.Broker().Ready())
	time.Sleep(2 * time.Second)
	require.Equal(t, n, second.Broker().Stats().Connections)
	over.Store(true)
	time.Sleep(time.Second)
	b.act(1, "undrain", `{}`)
	home.Store(true)
	all.Wait()
	acknowledged := 0
	for _, x := range clients {
		require.Equal(t, 1, x.told, x.id)
		acknowledged += len(x.kept)
		lost += x.missing()
	}
	t.Logf("%d clients moved in %v; %d messages acknowledged, %d lost", n, took, acknowledged,
		lost)
	require.Greater(t, acknowledged, 5*n)
	return lost
}
