package dunlin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// signs is an interceptor that puts the name of the reader in front of each payload.
func signs(_ context.Context, c *hooks.Client, m *Message) (*Message, error) {
	out := *m
	out.Payload = fmt.Appendf(nil, "%s gets %s", c.ID, m.Payload)
	return &out, nil
}

// withShows is an edit of a Config that has an interceptor of deliveries.
func withShows(x hooks.DeliveryInterceptorFunc) func(*Config) {
	return func(c *Config) { c.DeliveryInterceptor = x }
}

// gets wants a PUBLISH with a payload, and acknowledges it.
func (c *testClient) gets(payload string) *packets.Publish {
	c.t.Helper()
	p, ok := c.recv().(*packets.Publish)
	require.True(c.t, ok, "PUBLISH")
	require.Equal(c.t, payload, string(p.Payload))
	switch p.QoS {
	case packets.QoS1:
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
	case packets.QoS2:
		c.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: p.PacketID})
		require.IsType(c.t, &packets.Ack{}, c.recv(), "PUBREL")
		c.send(&packets.Ack{Kind: packets.TypePubcomp, PacketID: p.PacketID})
	}
	return p
}

func TestEachReaderGetsItsOwnMessage(t *testing.T) {
	inProcess(t, withShows(signs), func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		sub := mustSubscribe(t, b, "#", nil)
		var all []*testClient
		for _, id := range []string{"ann", "bob"} {
			c, _ := newTestClient(t, dial(t, l), connect(id))
			c.subscribeWithID("t/#", packets.QoS2, 7)
			all = append(all, c)
		}
		will := connect("dies")
		will.Will = &packets.Will{Topic: "t/will", Payload: []byte("will")}
		dies, _ := newTestClient(t, dial(t, l), will)
		for q := range packets.QoS(3) {
			m := &Message{Topic: "t/x", Payload: fmt.Append(nil, q), QoS: q}
			m.SetExpiry(time.Minute)
			require.NoError(t, b.Publish(t.Context(), m))
			for i, id := range []string{"ann", "bob"} {
				p := all[i].gets(fmt.Sprintf("%s gets %d", id, q))
				require.Equal(t, q, p.QoS)
				n, _ := p.Properties.Uint(packets.MessageExpiryInterval)
				require.EqualValues(t, 60, n, "properties travel")
				n, _ = p.Properties.Uint(packets.SubscriptionIdentifier)
				require.EqualValues(t, 7, n)
			}
		}
		dies.close()
		all[0].gets("ann gets will")
		all[1].gets("bob gets will")
		require.Equal(t, []string{"0", "1", "2", "will"}, unread(sub),
			"the program's own Subscription gets what was published")
		require.Zero(t, b.memory.Used()-usedBySessions(b), "nothing stays counted")
	})
}

// usedBySessions is what is counted for other things than messages.
func usedBySessions(b *Broker) int64 {
	return b.memory.Used() - b.memory.Of(budget.Queued) - b.memory.Of(budget.InFlight)
}

func TestAnInterceptorChangesRetainedAndSharedMessages(t *testing.T) {
	inProcess(t, withShows(signs), func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		const n = 100
		for i := range n {
			require.NoError(t, b.Publish(t.Context(), &Message{Topic: fmt.Sprintf("r/%03d", i),
				Payload: fmt.Append(nil, i), Retain: true, QoS: 1}))
		}
		ann, _ := newTestClient(t, dial(t, l), connect("ann"))
		require.Equal(t, packets.QoS1, packets.QoS(ann.subscribe("r/#", packets.QoS1)))
		for i := range n {
			require.True(t, ann.gets(fmt.Sprint("ann gets ", i)).Retain)
		}
		ann.nothing("each retained message comes once")
		bob, _ := newTestClient(t, dial(t, l), connect("bob"))
		bob.subscribe("$share/g/s", packets.QoS1)
		mustPublish(t, b, "s", "x", 1)
		bob.gets("bob gets x")
	})
}

func TestAnInterceptorDropsForOneReader(t *testing.T) {
	var dropped sync.Map
	hook := func(ctx context.Context, c *hooks.Client, m *Message) (*Message, error) {
		if c.ID == "ann" {
			return m, nil
		}
		switch string(m.Payload) {
		case "drop":
			return nil, hooks.ErrDrop
		case "fail":
			return nil, errors.New("the database is away")
		case "panic":
			panic("in the interceptor")
		case "nothing":
			return nil, nil
		case "topic":
			return &Message{Topic: "secret", QoS: m.QoS}, nil
		case "qos":
			return &Message{Topic: m.Topic, QoS: m.QoS + 1}, nil
		case "alias":
			return &Message{Topic: m.Topic, QoS: m.QoS,
				Properties: packets.Properties(nil).AppendUint(packets.TopicAlias, 1)}, nil
		}
		return signs(ctx, c, m)
	}
	var log syncBuffer
	inProcess(t, func(c *Config) {
		c.DeliveryInterceptor = hooks.DeliveryInterceptorFunc(hook)
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c.Observer = &hooks.Observer{Dropped: func(e hooks.Dropped) {
			dropped.Store(string(e.Message.Payload), e.Client.ID+": "+e.Reason.String())
		}}
	}, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		ann, _ := newTestClient(t, dial(t, l), connect("ann"))
		bob, _ := newTestClient(t, dial(t, l), connect("bob"))
		for _, c := range []*testClient{ann, bob} {
			c.subscribe("t", packets.QoS2)
		}
		for q := range packets.QoS(3) {
			for _, what := range []string{"drop", "fail", "panic", "nothing", "topic", "qos",
				"alias"} {
				dropped.Clear()
				mustPublish(t, b, "t", what, q)
				ann.gets(what)
				synctest.Wait()
				v, _ := dropped.Load(what)
				require.Equal(t, "bob: dropped by a hook", v, "%s at QoS %d", what, q)
			}
			mustPublish(t, b, "t", "x", q)
			ann.gets("x")
			bob.gets("bob gets x")
		}
		info, _ := b.Session("bob")
		require.EqualValues(t, 21, info.Dropped.Of(hooks.DropIntercepted))
		require.Contains(t, log.String(), "the database is away")
		require.NotContains(t, log.String(), hooks.ErrDrop.Error(), "that is no failure")
	})
}

// lettersOnly refuses to deliver "secret".
type lettersOnly struct{}

func (lettersOnly) Authorize(context.Context, *hooks.AccessRequest) error { return nil }

func (lettersOnly) AuthorizeDelivery(_ context.Context, r *hooks.AccessRequest) error {
	if r.Topic == "secret" {
		return packets.Errorf(packets.NotAuthorized, "no")
	}
	return nil
}

// What comes behind a message that the interceptor dropped is authorized as well.
func TestADroppedMessageLetsNoForbiddenOneThrough(t *testing.T) {
	inProcess(t, func(c *Config) {
		c.Authorizer = lettersOnly{}
		c.DeliveryInterceptor = hooks.DeliveryInterceptorFunc(func(
			ctx context.Context, c *hooks.Client, m *Message,
		) (*Message, error) {
			time.Sleep(time.Second)
			if m.Topic == "drop" {
				return nil, hooks.ErrDrop
			}
			return signs(ctx, c, m)
		})
	}, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		ann, _ := newTestClient(t, dial(t, l), connect("ann"))
		ann.subscribe("#", packets.QoS1)
		for _, topic := range []string{"first", "drop", "secret", "last"} {
			mustPublish(t, b, topic, topic, 1)
		}
		ann.gets("ann gets first")
		ann.gets("ann gets last")
		ann.nothing("that may come")
	})
}

func TestASlowInterceptorHoldsUpItsReaderOnly(t *testing.T) {
	var most, now atomic.Int32
	inProcess(t, func(c *Config) {
		c.DeliveryInterceptor = hooks.DeliveryInterceptorFunc(func(
			ctx context.Context, c *hooks.Client, m *Message,
		) (*Message, error) {
			if c.ID == "slow" {
				n := now.Add(1)
				defer now.Add(-1)
				most.Store(max(n, most.Load()))
				time.Sleep(time.Second)
			}
			return signs(ctx, c, m)
		})
	}, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		slow, _ := newTestClient(t, dial(t, l), connect("slow"))
		slow.subscribe("#", packets.QoS1)
		quick, _ := newTestClient(t, dial(t, l), connect("quick"))
		quick.subscribe("#", packets.QoS1)
		publisher, _ := newTestClient(t, dial(t, l), connect("publisher"))
		began := time.Now()
		for i := range 40 {
			publisher.publish(fmt.Sprint("t/", i%2), fmt.Sprint(i), false)
			quick.gets(fmt.Sprint("quick gets ", i))
		}
		require.Zero(t, time.Since(began), "nobody waits for the hook of another client")
		for i := range 40 {
			slow.nc.SetReadDeadline(time.Now().Add(time.Hour))
			p, err := slow.r.ReadPacket()
			require.NoError(t, err)
			m := p.(*packets.Publish)
			require.Equal(t, fmt.Sprint("slow gets ", i), string(m.Payload), "in order")
			slow.send(&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID})
		}
		require.EqualValues(t, 1, most.Load(), "calls at a time for one client")
	})
}

func TestARedeliveredMessageIsInterceptedAgain(t *testing.T) {
	for _, dies := range []bool{false, true} {
		t.Run(fmt.Sprint("the process dies: ", dies), func(t *testing.T) {
			onStage(t, func(st *stage) {
				var hangs atomic.Bool
				var times atomic.Int32
				hook := func(ctx context.Context, c *hooks.Client, m *Message) (*Message, error) {
					if hangs.Load() {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					m, err := signs(ctx, c, m)
					m.Payload = fmt.Appendf(m.Payload, " (%d)", times.Add(1))
					return m, err
				}
				st.restart(func(c *Config) {
					c.DeliveryInterceptor = hooks.DeliveryInterceptorFunc(hook)
				})
				a := st.durable("a", packets.V5)
				a.subscribe("t", packets.QoS2)
				require.NoError(t, st.b.Publish(context.Background(),
					&Message{Topic: "t", Payload: []byte("sent"), QoS: 2}))
				synctest.Wait()
				first := a.want(packets.TypePublish)[0].(*packets.Publish)
				require.Equal(t, "a gets sent (1)", string(first.Payload))
				hangs.Store(true)
				require.NoError(t, st.b.Publish(context.Background(),
					&Message{Topic: "t", Payload: []byte("asked about"), QoS: 1}))
				synctest.Wait()
				a.nc.Close()
				synctest.Wait()
				hangs.Store(false)
				if dies {
					st.crash()
				}
				a = st.dial("a", packets.V5, false, 3600)
				synctest.Wait()
				got := strings.Join(a.payloads(), ", ")
				require.Equal(t, "a gets sent (2), a gets asked about (3)", got,
					"nothing is dropped because the connection has ended")
			})
		})
	}
}

func TestAReceiptSaysThatAnInterceptorDropped(t *testing.T) {
	onStage(t, func(st *stage) {
		var settled []string
		st.restart(func(c *Config) {
			c.DeliveryInterceptor = hooks.DeliveryInterceptorFunc(
				func(context.Context, *hooks.Client, *Message) (*Message, error) {
					return nil, hooks.ErrDrop
				})
			c.Observer = &hooks.Observer{Settled: func(e hooks.Settled) {
				settled = append(settled, e.Receipt+": "+e.Reason.String())
			}}
		})
		c := st.clean("c")
		c.subscribe("#", packets.QoS2)
		var want []string
		for q := range packets.QoS(3) {
			name := fmt.Sprint(q)
			require.NoError(st.t, st.b.Publish(context.Background(), tracked(name, "t", q)))
			synctest.Wait()
			want = append(want, name+": dropped by a hook")
		}
		require.Equal(st.t, want, settled)
	})
}

func TestMessagesBecomeLargerOneByOneWhileMemoryIsScarce(t *testing.T) {
	const limit, clients, size = 4 << 20, 40, 100 << 10
	var most, now atomic.Int64
	inProcess(t, func(c *Config) {
		c.MaxMemory = limit
		c.DeliveryInterceptor = hooks.DeliveryInterceptorFunc(func(
			_ context.Context, _ *hooks.Client, m *Message,
		) (*Message, error) {
			most.Store(max(now.Add(1), most.Load()))
			defer now.Add(-1)
			time.Sleep(time.Second)
			out := *m
			out.Payload = append([]byte("x"), m.Payload...)
			return &out, nil
		})
	}, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		var all []*testClient
		for i := range clients {
			c, _ := newTestClient(t, dial(t, l), connect(fmt.Sprint("c", i)))
			c.subscribe("t", packets.QoS1)
			all = append(all, c)
		}
		require.NoError(t, b.Publish(t.Context(),
			&Message{Topic: "t", Payload: make([]byte, size), QoS: 1}))
		synctest.Wait()
		require.LessOrEqual(t, b.memory.Used(), int64(limit))
		for _, c := range all {
			c.nc.SetReadDeadline(time.Now().Add(time.Hour))
			p, err := c.r.ReadPacket()
			require.NoError(t, err)
			require.Len(t, p.(*packets.Publish).Payload, size+1)
		}
		require.Less(t, most.Load(), int64(limit/size), "calls at a time")
		require.Greater(t, most.Load(), int64(4), "but not one by one while there is room")
	})
}
