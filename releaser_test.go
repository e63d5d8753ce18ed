package dunlin

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// slowDeliveries allow everything, deliveries to one client once release is closed.
type slowDeliveries struct {
	who              string
	entered, release chan struct{}
}

func (slowDeliveries) Authorize(context.Context, *hooks.AccessRequest) error { return nil }

func (d slowDeliveries) AuthorizeDelivery(ctx context.Context, r *hooks.AccessRequest) error {
	if r.Client.ID != d.who {
		return nil
	}
	d.entered <- struct{}{}
	select {
	case <-d.release:
	case <-ctx.Done():
	}
	return nil
}

// A message that its member of a shared subscription did not take, when it became durable, goes to
// another one. A slow decision about that holds up nobody else.
func TestASlowDecisionAboutAMessageThatMovesHoldsUpNoAcknowledgement(t *testing.T) {
	onSlowDeliveries(t, "b", func(st *stage, d slowDeliveries) {
		a, b := st.clean("a"), st.clean("b")
		a.subscribe("$share/g/t", packets.QoS2)
		p := st.durable("p", packets.V5)
		time.Sleep(time.Second)
		release := st.store.hold()
		p.send(message2("t", "for one of them", packets.QoS2, 1))
		b.subscribe("$share/g/t", packets.QoS2)
		a.nc.Close()
		synctest.Wait()
		release()
		st.othersGoOn(d)
		got := b.want(packets.TypePublish)
		require.Equal(t, "for one of them", string(got[0].(*packets.Publish).Payload))
	})
}

// A QoS 2 message goes to a clean Session once it is durable, and whether it may is decided then.
func TestASlowDecisionAboutAMessageThatIsDurableHoldsUpNoAcknowledgement(t *testing.T) {
	onSlowDeliveries(t, "b", func(st *stage, d slowDeliveries) {
		b := st.clean("b")
		b.subscribe("t", packets.QoS2)
		st.durable("p", packets.V5).send(message2("t", "x", packets.QoS2, 1))
		st.othersGoOn(d)
		b.want(packets.TypePublish)
	})
}

// Nor does it hold up the publisher, or those that get the message as well.
func TestASlowDecisionAboutOneClientHoldsUpThatClientAlone(t *testing.T) {
	onSlowDeliveries(t, "b", func(st *stage, d slowDeliveries) {
		b, c := st.clean("b"), st.clean("c")
		b.subscribe("#", packets.QoS1)
		c.subscribe("#", packets.QoS1)
		p := st.clean("p")
		for i := range 3 {
			p.send(message2(fmt.Sprint("t/", i), "x", packets.QoS1, uint16(i+1)))
			p.want(packets.TypePuback)
			c.want(packets.TypePublish)
		}
		require.Len(t, d.entered, 1, "it is asked about one message at a time")
		b.wantNothing("undecided")
		close(d.release)
		b.want(packets.TypePublish, packets.TypePublish, packets.TypePublish)
	})
}

// onSlowDeliveries runs f on a stage where deliveries to one client are decided slowly.
func onSlowDeliveries(t *testing.T, who string, f func(st *stage, d slowDeliveries)) {
	onStage(t, func(st *stage) {
		d := slowDeliveries{who, make(chan struct{}, 10), make(chan struct{})}
		st.restart(func(c *Config) { c.Authorizer = d })
		f(st, d)
	})
}

// othersGoOn fails unless a client's retained message is stored, acknowledged and delivered while a
// decision is under way, which then ends.
func (st *stage) othersGoOn(d slowDeliveries) {
	st.t.Helper()
	synctest.Wait()
	require.Len(st.t, d.entered, 1, "the decision is under way")
	other := st.durable("other", packets.V5)
	other.subscribe("u", packets.QoS0)
	other.send(toRetain(message2("u", "x", packets.QoS1, 1)))
	require.Len(st.t, other.got(), 2, "the message, and the PUBACK")
	close(d.release)
}
