package dunlin

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// receipts notes what the Observer is told of messages with a receipt.
type receipts struct {
	st  *stage
	mu  sync.Mutex
	all []string
}

// withReceipts runs f on a stage whose Observer notes receipts.
func withReceipts(t *testing.T, f func(r *receipts)) {
	onStage(t, func(st *stage) {
		r := &receipts{st: st}
		st.restart(func(c *Config) {
			c.Observer = &hooks.Observer{Settled: func(e hooks.Settled) {
				what := "has it"
				if e.Reason != 0 {
					what = e.Reason.String()
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				r.all = append(r.all, fmt.Sprintf("%s: %s %s", e.Receipt, e.Client.ID, what))
			}}
		})
		f(r)
	})
}

// wants fails unless exactly these were told since the last call, in any order.
func (r *receipts) wants(all ...string) {
	r.st.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.ElementsMatch(r.st.t, all, r.all)
	r.all = nil
}

// tracked is a message with a receipt.
func tracked(name, topic string, q packets.QoS) *Message {
	m := &Message{Topic: topic, Payload: []byte(name), QoS: q}
	m.Properties = m.Properties.AppendUser("other", "x").AppendUser("receipt", name)
	return m
}

func (r *receipts) publish(m *Message) {
	r.st.t.Helper()
	require.NoError(r.st.t, r.st.b.Publish(r.st.t.Context(), m))
}

func TestReceiptsOfAConnectedClient(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		st := r.st
		c := st.clean("c")
		c.subscribe("#", packets.QoS2)
		r.publish(tracked("zero", "t", packets.QoS0))
		r.wants("zero: c has it")
		c.want(packets.TypePublish)

		r.publish(tracked("one", "t", packets.QoS1))
		r.wants()
		require.Equal(t, []string{"one"}, st.b.PendingReceipts("c"))
		id := c.want(packets.TypePublish)[0].(*packets.Publish).PacketID
		c.send(ack(packets.TypePuback, id))
		r.wants("one: c has it")
		require.Empty(t, st.b.PendingReceipts("c"))

		r.publish(tracked("two", "t", packets.QoS2))
		id = c.want(packets.TypePublish)[0].(*packets.Publish).PacketID
		c.send(ack(packets.TypePubrec, id))
		r.wants("two: c has it")
		c.want(packets.TypePubrel)
		c.send(ack(packets.TypePubcomp, id))
		r.wants()

		r.publish(tracked("refused", "t", packets.QoS1))
		id = c.want(packets.TypePublish)[0].(*packets.Publish).PacketID
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: id, Code: packets.UnspecifiedError})
		r.wants("refused: c refused")

		r.publish(tracked("cut", "t", packets.QoS1))
		c.want(packets.TypePublish)
		c.nc.Close()
		r.wants("cut: c session ended")
	})
}

func TestReceiptsOfAnAbsentClient(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		st := r.st
		d := st.durable("d", packets.V5)
		d.subscribe("#", packets.QoS1)
		d.nc.Close()
		synctest.Wait()
		r.publish(tracked("a", "t", packets.QoS1))
		brief := tracked("brief", "t", packets.QoS1)
		brief.Properties = brief.Properties.AppendUint(packets.MessageExpiryInterval, 5)
		r.publish(brief)
		r.publish(tracked("large", strings.Repeat("t", 100), packets.QoS1))
		r.publish(tracked("b", "t", packets.QoS1))
		r.publish(&Message{Topic: "t", QoS: packets.QoS1})
		r.wants()
		time.Sleep(10 * time.Second)
		st.crash()
		require.Equal(t, []string{"a", "brief", "large", "b"}, st.b.PendingReceipts("d"))
		r.wants()
		d = st.dial("d", packets.V5, false, 3600, func(p *packets.Connect) {
			p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, 100)
		})
		got := d.want(packets.TypeConnack, packets.TypePublish, packets.TypePublish,
			packets.TypePublish)
		r.wants("brief: d expired", "large: d too large")
		d.send(ack(packets.TypePuback, got[1].(*packets.Publish).PacketID))
		r.wants("a: d has it")
		require.NoError(t, st.b.journal.Sync(st.t.Context()))
		st.crash()
		require.Equal(t, []string{"b"}, st.b.PendingReceipts("d"))
		_, err := st.b.DeleteSession(st.t.Context(), "d")
		require.NoError(t, err)
		r.wants("b: d session ended")
	})
}

func TestReceiptsOfAQueueThatIsFull(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		r.st.restart(func(c *Config) { c.MaxQueuedMessages = 2 })
		d := r.st.durable("d", packets.V5)
		d.subscribe("#", packets.QoS1)
		d.nc.Close()
		synctest.Wait()
		for i := range 3 {
			r.publish(tracked(fmt.Sprint(i), "t", packets.QoS1))
		}
		r.wants("0: d queue full")
	})
}

// Messages of clients have receipts as well, and what the program subscribes to settles them.
func TestReceiptsOfOthers(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		st := r.st
		sub, err := st.b.Subscribe(st.t.Context(), "t", &SubscribeOptions{QoS: packets.QoS1})
		require.NoError(t, err)
		defer sub.Close()
		p := st.clean("p")
		m := message2("t", "x", packets.QoS1, 1)
		m.Properties = m.Properties.AppendUser("receipt", "mine")
		p.send(m)
		p.want(packets.TypePuback)
		r.wants()
		_, err = sub.Next(st.t.Context())
		require.NoError(t, err)
		r.wants("mine: $local/#1 has it")
		m = message2("t", "x", packets.QoS1, 2)
		m.Properties = m.Properties.AppendUser("receipt", strings.Repeat("x", maxReceipt+1))
		p.send(m)
		p.want(packets.TypePuback)
		_, err = sub.Next(st.t.Context())
		require.NoError(t, err)
		r.wants()
	})
}

// A message that another member of the group gets has one receipt, of that member.
func TestAReceiptMovesWithItsMessage(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		st := r.st
		a, b := st.clean("a"), st.clean("b")
		a.subscribe("$share/g/t", packets.QoS1)
		b.subscribe("$share/g/t", packets.QoS1)
		r.publish(tracked("1", "t", packets.QoS1))
		first, second, name := a, b, "b"
		if len(a.got()) == 0 {
			first, second, name = b, a, "a"
		}
		first.nc.Close()
		r.wants()
		id := second.want(packets.TypePublish)[0].(*packets.Publish).PacketID
		second.send(ack(packets.TypePuback, id))
		r.wants("1: " + name + " has it")
	})
}

// A message that could not be stored is refused, and has no receipts.
func TestAMessageThatIsRefusedHasNoReceipts(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		st := r.st
		d := st.durable("d", packets.V5)
		d.subscribe("#", packets.QoS1)
		d.nc.Close()
		synctest.Wait()
		st.fullFor("no room for anything")
		require.Error(t, st.b.Publish(st.t.Context(), tracked("1", "t", packets.QoS1)))
		r.wants()
		require.Empty(t, st.b.PendingReceipts("d"))
	})
}

// Near MaxMemory an absent client loses what it was sent. That is the reason which is told.
func TestAReceiptOfWhatMemoryHasNoRoomFor(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		d := r.st.durable("d", packets.V5)
		d.subscribe("#", packets.QoS1)
		r.publish(tracked("sent", "t", packets.QoS1))
		d.want(packets.TypePublish)
		d.nc.Close()
		synctest.Wait()
		require.Equal(t, 1, r.st.b.ofClient("d")[0].shorten())
		r.wants("sent: d out of memory")
	})
}

// PUBREC has settled a message. Nothing more is told of it, though its PUBCOMP is still to come.
func TestAReceiptIsSettledOnceAlsoAfterARestart(t *testing.T) {
	for name, end := range map[string]func(r *receipts){
		"the client goes on": func(r *receipts) {
			d := r.st.dial("d", packets.V5, false, 3600)
			rel := d.want(packets.TypeConnack, packets.TypePubrel)[1].(*packets.Ack)
			d.send(ack(packets.TypePubcomp, rel.PacketID))
		},
		"the Session ends": func(r *receipts) {
			_, err := r.st.b.DeleteSession(r.st.t.Context(), "d")
			require.NoError(r.st.t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			withReceipts(t, func(r *receipts) {
				d := r.st.durable("d", packets.V5)
				d.subscribe("#", packets.QoS2)
				r.publish(tracked("two", "t", packets.QoS2))
				id := d.want(packets.TypePublish)[0].(*packets.Publish).PacketID
				d.send(ack(packets.TypePubrec, id))
				d.want(packets.TypePubrel)
				r.wants("two: d has it")
				d.nc.Close()
				synctest.Wait()
				r.st.crash()
				require.Empty(t, r.st.b.PendingReceipts("d"))
				end(r)
				r.wants()
			})
		})
	}
}

// The QoS of a receipt is that of the delivery, also if there was none.
func TestAReceiptHasTheQoSOfItsDelivery(t *testing.T) {
	onStage(t, func(st *stage) {
		var got []hooks.Settled
		st.restart(func(c *Config) {
			c.Observer = &hooks.Observer{Settled: func(e hooks.Settled) { got = append(got, e) }}
		})
		c := st.dial("c", packets.V5, true, 0, func(p *packets.Connect) {
			p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, 100)
		})
		c.want(packets.TypeConnack)
		c.subscribe("#", packets.QoS0)
		m := tracked("large", "t", packets.QoS1)
		m.Payload = make([]byte, 200)
		require.NoError(t, st.b.Publish(t.Context(), m))
		synctest.Wait()
		require.Len(t, got, 1)
		require.Equal(t, hooks.DropTooLarge, got[0].Reason)
		require.Equal(t, packets.QoS0, got[0].QoS)
	})
}

// A client that gets a message by a shared subscription as well has two deliveries of it. One that is
// away has none at QoS 0.
func TestEachDeliveryIsSettled(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		c := r.st.clean("c")
		c.subscribe("t", packets.QoS1)
		c.subscribe("$share/g/t", packets.QoS1)
		d := r.st.durable("d", packets.V5)
		d.subscribe("t", packets.QoS0)
		d.nc.Close()
		synctest.Wait()
		r.publish(tracked("one", "t", packets.QoS1))
		for _, p := range c.want(packets.TypePublish, packets.TypePublish) {
			c.send(ack(packets.TypePuback, p.(*packets.Publish).PacketID))
		}
		r.wants("one: c has it", "one: c has it")
	})
}

// What a client has not acknowledged is counted with its receipt, also if it is not sent again.
func TestReceiptsInFlightAreCounted(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		c := r.st.clean("c")
		c.subscribe("#", packets.QoS1)
		inFlight := func() int64 { return r.st.b.memory.Of(budget.InFlight) }
		name := strings.Repeat("x", maxReceipt)
		before := inFlight()
		for i := range 2 {
			r.publish(tracked(name, "t", packets.QoS1))
			got := c.want(packets.TypePublish)[0].(*packets.Publish)
			require.Equal(t, r.st.b.holding(), r.st.b.counted())
			require.GreaterOrEqual(t, inFlight()-before, int64(receiptCost+maxReceipt))
			if i == 0 {
				c.send(ack(packets.TypePuback, got.PacketID))
			} else {
				c.nc.Close()
			}
			synctest.Wait()
			require.Equal(t, before, inFlight())
		}
	})
}

// PublishWait and the Observer are told of the same message.
func TestAReceiptThatSomebodyWaitsFor(t *testing.T) {
	withReceipts(t, func(r *receipts) {
		c := r.st.clean("c")
		c.subscribe("#", packets.QoS1)
		done := make(chan Outcome)
		go func() {
			o, _ := r.st.b.PublishWait(r.st.t.Context(), tracked("w", "t", packets.QoS1))
			done <- o
		}()
		id := c.want(packets.TypePublish)[0].(*packets.Publish).PacketID
		c.send(ack(packets.TypePuback, id))
		require.Equal(t, Outcome{Matched: 1, Acknowledged: 1}, <-done)
		r.wants("w: c has it")
		synctest.Wait()
		require.NotPanics(t, func() { r.st.b.holding() }, "what is held is counted rightly")
	})
}
