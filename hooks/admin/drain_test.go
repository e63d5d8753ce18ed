package admin

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

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

const elsewhere = "second.example:1883"

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
// messages have come. It says whether it was sent away.
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
	sent := ""
	for {
		p, err := r.ReadPacket()
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
			if stop() && x.missing() == 0 {
				return false
			}
		case *packets.Ack:
			require.Less(x.t, p.Code, packets.ReasonCode(0x80))
			if !x.kept[sent] { // it is not here already
				x.kept[sent] = false // and has to come
			}
			if stop() && x.missing() == 0 {
				return false
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
		n := travellers(t)
		rate := n / 10
		b, second := newBench(t), mqtttest.NewBroker(t)
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
		acknowledged, lost := 0, 0
		for _, x := range clients {
			require.Equal(t, 1, x.told, x.id)
			acknowledged += len(x.kept)
			lost += x.missing()
		}
		t.Logf("%d clients moved in %v; %d messages acknowledged, %d lost", n, took, acknowledged,
			lost)
		require.Greater(t, acknowledged, 5*n)
		require.Zero(t, lost)
	})
}
