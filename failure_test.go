package dunlin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// failures are the two kinds of errors that Commit has.
var failures = []struct {
	name string
	err  error
	code packets.ReasonCode
}{
	{"no room", fmt.Errorf("test: %w", store.ErrFull), packets.QuotaExceeded},
	{"a broken disk", errors.New("input/output error"), packets.ImplementationSpecificError},
}

func TestAFailedCommitAcknowledgesNothing(t *testing.T) {
	for _, f := range failures {
		t.Run(f.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				s := st.durable("s", packets.V5)
				s.subscribe("t/#", packets.QoS2)
				s.nc.Close()
				p, old, q := st.durable("p", packets.V5), st.durable("old", packets.V311),
					st.clean("q")
				q.subscribe("q", packets.QoS0)
				time.Sleep(time.Second)
				require.NoError(t, st.b.Healthy())
				release := st.store.hold()
				st.store.fail(f.err)
				p.send(message2("t/1", "a", packets.QoS1, 1), message2("t/1", "b", packets.QoS2, 2))
				old.send(message2("t/1", "c", packets.QoS2, 1))
				release()
				got := p.want(packets.TypePuback, packets.TypePubrec)
				require.Equal(t, f.code, got[0].(*packets.Ack).Code)
				require.Equal(t, f.code, got[1].(*packets.Ack).Code)
				old.wantNothing("3.1.1 has no way to refuse")
				require.True(t, old.ended(), "so the connection ends")
				require.ErrorIs(t, st.b.Healthy(), f.err)
				synctest.Wait()
				require.Equal(t, []error{f.err}, st.failed)
				info, _ := st.b.Session("s")
				require.Zero(t, info.Queued, "messages that were refused")
				require.Empty(t, st.b.sessionAt("p").in.ids,
					"an identifier that was refused is free")

				// At the door, while it lasts.
				p.send(message2("t/1", "a", packets.QoS1, 3))
				require.Equal(t, f.code, p.want(packets.TypePuback)[0].(*packets.Ack).Code)
				p.send(subscribeTo("x", packets.QoS1))
				require.Equal(t, f.code, p.want(packets.TypeSuback)[0].(*packets.Suback).Codes[0])
				n := st.dial("new", packets.V5, true, 60)
				require.Equal(t, f.code, n.want(packets.TypeConnack)[0].(*packets.Connack).Code)
				require.True(t, n.ended())
				_, ok := st.b.Session("new")
				require.False(t, ok, "a Session that was refused")

				// What needs no store goes on.
				p.send(message2("q", "x", packets.QoS0, 0), message2("q", "y", packets.QoS1, 4))
				p.want(packets.TypePuback)
				q.want(packets.TypePublish, packets.TypePublish)
			})
		})
	}
}

func TestServiceIsBackWhenThereIsRoom(t *testing.T) {
	onStage(t, func(st *stage) {
		s := st.durable("s", packets.V5)
		s.subscribe("t", packets.QoS2)
		p := st.durable("p", packets.V5)
		p.send(message2("t", "first", packets.QoS2, 1))
		p.want(packets.TypePubrec)
		s.want(packets.TypePublish)
		time.Sleep(time.Second)
		st.store.fail(store.ErrFull)
		// What follows from what has happened waits: for the PUBREC of the subscriber, and the
		// PUBREL of the publisher.
		s.send(ack(packets.TypePubrec, 1))
		p.send(ack(packets.TypePubrel, 1), message2("t", "refused", packets.QoS2, 2))
		require.Equal(t, packets.QuotaExceeded, p.want(packets.TypePubrec)[0].(*packets.Ack).Code)
		s.wantNothing("PUBREL before its PUBREC is durable")
		time.Sleep(5 * time.Second)
		p.send(message2("t", "refused", packets.QoS2, 3))
		require.Equal(t, packets.QuotaExceeded, p.want(packets.TypePubrec)[0].(*packets.Ack).Code)
		synctest.Wait()
		require.Len(t, st.failed, 1, "told once")

		st.store.fail(nil)
		time.Sleep(time.Second)
		require.NoError(t, st.b.Healthy())
		synctest.Wait()
		require.Equal(t, 1, st.works)
		s.want(packets.TypePubrel)
		p.want(packets.TypePubcomp)
		p.send(message2("t", "second", packets.QoS2, 4))
		require.Equal(t, packets.Success, p.want(packets.TypePubrec)[0].(*packets.Ack).Code)
		require.Equal(t, "second",
			string(s.want(packets.TypePublish)[0].(*packets.Publish).Payload))

		st.crash()
		s = st.dial("s", packets.V5, false, 3600)
		got := s.want(packets.TypeConnack, packets.TypePubrel, packets.TypePublish)
		require.Equal(t, uint16(1), got[1].(*packets.Ack).PacketID,
			"what followed is durable after all")
		require.Equal(t, "second", string(got[2].(*packets.Publish).Payload))
	})
}

func TestASubscriptionThatIsNotStoredIsUndone(t *testing.T) {
	for _, f := range failures {
		t.Run(f.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				s := st.durable("s", packets.V5)
				s.subscribe("old", packets.QoS1)
				release := st.store.hold()
				st.store.fail(f.err)
				s.send(&packets.Subscribe{PacketID: 5,
					Subscriptions: []packets.Subscription{{Filter: "new", QoS: 2},
						{Filter: "old", QoS: 2}}})
				release()
				a := s.want(packets.TypeSuback)[0].(*packets.Suback)
				require.Equal(t, []packets.ReasonCode{f.code, f.code}, a.Codes)
				info, _ := st.b.Session("s")
				require.Equal(t, []packets.Subscription{{Filter: "old", QoS: 1}},
					info.Subscriptions)

				s.send(&packets.Unsubscribe{PacketID: 6, Filters: []string{"old"}})
				require.Equal(t, packets.ImplementationSpecificError,
					s.want(packets.TypeUnsuback)[0].(*packets.Unsuback).Codes[0])
			})
		})
	}
}

func TestASessionThatIsNotStoredIsRefused(t *testing.T) {
	for _, f := range failures {
		t.Run(f.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				st.durable("known", packets.V5).nc.Close()
				time.Sleep(time.Second)
				will := func(c *packets.Connect) { c.Will = &packets.Will{Topic: "will", QoS: 1} }
				watcher := st.clean("w")
				watcher.subscribe("will", packets.QoS0)
				release := st.store.hold()
				st.store.fail(f.err)
				n, k := st.dial("new", packets.V5, false, 60, will),
					st.dial("known", packets.V5, false, 60, will)
				release()
				require.Equal(t, f.code, n.want(packets.TypeConnack)[0].(*packets.Connack).Code)
				require.Equal(t, f.code, k.want(packets.TypeConnack)[0].(*packets.Connack).Code)
				_, ok := st.b.Session("new")
				require.False(t, ok)
				info, ok := st.b.Session("known")
				require.True(t, ok, "a Session that cannot be resumed stays")
				require.Nil(t, info.Client)
				require.WithinDuration(t, time.Now().Add(time.Hour), info.ExpiresAt, time.Minute,
					"it expires as before")
				watcher.wantNothing("the Will of a client that was refused")
			})
		})
	}
}

func TestARetainedMessageThatIsNotStoredIsUndone(t *testing.T) {
	onStage(t, func(st *stage) {
		p := st.clean("p")
		p.send(toRetain(message2("t", "kept", packets.QoS1, 1)))
		p.want(packets.TypePuback)
		time.Sleep(time.Second)
		release := st.store.hold()
		st.store.fail(store.ErrFull)
		p.send(toRetain(message2("t", "a", packets.QoS1, 2)),
			toRetain(message2("t", "b", packets.QoS2, 3)),
			toRetain(message2("n", "c", packets.QoS1, 4)))
		release()
		p.want(packets.TypePuback, packets.TypePubrec, packets.TypePuback)
		require.Equal(t, "kept", string(st.b.retained.Get("t").Payload))
		require.Nil(t, st.b.retained.Get("n"))
	})
}

// A retained QoS 2 message leaves only once the store knows that it does. A new subscription gets
// it also if there is no room for that at the moment.
func TestARetainedMessageForANewSubscriptionWaitsForRoom(t *testing.T) {
	for name, window := range map[string]int{"the store becomes full": 100, "it is full": 1} {
		t.Run(name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				p := st.clean("p")
				var want []string
				for i := range 5 {
					p.send(toRetain(message2(fmt.Sprint("t/", i), fmt.Sprint(i), packets.QoS(2-i%2),
						uint16(i+1))))
					want = append(want, fmt.Sprint(i))
				}
				p.got()
				s := st.dial("s", packets.V5, false, 3600, func(c *packets.Connect) {
					c.Properties = c.Properties.AppendUint(packets.ReceiveMaximum, uint32(window))
				})
				s.want(packets.TypeConnack)
				subscribe := func() {
					s.send(&packets.Subscribe{PacketID: 9,
						Subscriptions: []packets.Subscription{{Filter: "t/#", QoS: 2}}})
				}
				if window == 1 {
					subscribe()
				}
				st.store.refuse(func(op store.Op) bool { _, is := op.(*store.Publish); return is })
				if window > 1 {
					subscribe() // with which the broker finds out
				} else {
					p.send(toRetain(message2("full", "x", packets.QoS1, 9)))
					p.got()
				}
				time.Sleep(time.Second)
				got := s.payloads()
				st.roomAgain()
				got = append(got, s.payloads()...)
				slices.Sort(got)
				require.Equal(t, want, got)
				time.Sleep(time.Second)
				st.crash()
				require.Empty(t, st.dial("s", packets.V5, false, 3600).payloads())
			})
		})
	}
}

func TestRetainedMessagesThatAreNotStoredAreUndoneInOneBatchAndTheNext(t *testing.T) {
	onStage(t, func(st *stage) {
		st.narrow(64 << 20)
		p := st.clean("p")
		p.send(toRetain(message2("t", "kept", packets.QoS1, 1)))
		p.want(packets.TypePuback)
		time.Sleep(time.Second)
		release := st.store.hold()
		st.store.fail(store.ErrFull)
		p.send(toRetain(message2("x", "first", packets.QoS1, 3))) // this one is being committed
		synctest.Wait()
		p.send(toRetain(message2("t", "a", packets.QoS1, 4)))
		p.send(toRetain(message2("t", "b", packets.QoS1, 5)))
		synctest.Wait()
		large := strings.Repeat("x", 17<<20) // completes the batch
		st.b.journal.Add(&store.DeleteRetained{Topic: large})
		p.send(toRetain(message2("t", "c", packets.QoS1, 6)))
		synctest.Wait()
		release()
		time.Sleep(time.Second)
		require.Equal(t, "kept", string(st.b.retained.Get("t").Payload))
	})
}

func TestAQoS2MessageIsRefusedOnTheNextConnectionToo(t *testing.T) {
	onStage(t, func(st *stage) {
		p := st.durable("p", packets.V5)
		release := st.store.hold()
		st.store.fail(store.ErrFull)
		m := message2("t", "x", packets.QoS2, 1)
		p.send(m)
		p.nc.Close()
		synctest.Wait()
		st.store.fail(nil) // but the commit with the message has failed
		p2 := st.dial("p", packets.V5, false, 3600)
		m.Dup = true
		release()
		p2.want(packets.TypeConnack)
		p2.send(m)
		require.Equal(t, packets.QuotaExceeded, p2.want(packets.TypePubrec)[0].(*packets.Ack).Code,
			"the repetition of what was never stored")
		require.Empty(t, st.b.sessionAt("p").in.ids)
		time.Sleep(time.Second)
		p2.send(m)
		require.Equal(t, packets.NoMatchingSubscribers,
			p2.want(packets.TypePubrec)[0].(*packets.Ack).Code)
		require.Len(t, st.b.sessionAt("p").in.ids, 1)
	})
}

func TestALoadThatFailsFailsNew(t *testing.T) {
	st := new(memory.Store)
	require.NoError(t, st.Close())
	_, err := New(Config{Authenticator: hooks.AllowAll, Logger: quiet, Store: st})
	require.ErrorIs(t, err, memory.ErrClosed)
	require.ErrorContains(t, err, "loading the store")
}

func TestWhatComesAfterARefusalDoesNotOvertakeIt(t *testing.T) {
	onStage(t, func(st *stage) {
		s := st.durable("s", packets.V5)
		s.subscribe("t", packets.QoS2)
		s.nc.Close()
		old := st.durable("old", packets.V311)
		time.Sleep(time.Second)
		release := st.store.hold()
		st.store.refuse(func(op store.Op) bool {
			p, ok := op.(*store.Publish)
			return ok && string(p.Message.Payload) == "too large"
		})
		old.send(message2("t", "too large", packets.QoS1, 1))
		synctest.Wait()
		old.send(message2("t", "small", packets.QoS1, 2)) // is in the next batch
		synctest.Wait()
		release()
		require.True(t, old.ended(), "it has to send both again, in their order")
		info, _ := st.b.Session("s")
		require.Zero(t, info.Queued)
		time.Sleep(time.Second)
		require.NoError(t, st.b.Healthy(), "there is room for the probe")
	})
}

// A hook takes its time about the second message. Meanwhile the first one is refused, and the store
// has room again.
func TestWhatAHookHoldsBackDoesNotOvertakeARefusal(t *testing.T) {
	tests := []struct {
		name, filter string
		config       func(cfg *Config, h slowDelivery)
	}{
		{"an Interceptor", "+", func(cfg *Config, h slowDelivery) {
			cfg.Interceptor = hooks.InterceptorFunc(func(ctx context.Context, _ *hooks.Client,
				m *packets.Message) (*packets.Message, error) {
				return m, h.AuthorizeDelivery(ctx, &hooks.AccessRequest{Topic: m.Topic})
			})
		}},
		{"a DeliveryAuthorizer", "$share/g/+", func(cfg *Config, h slowDelivery) {
			cfg.Authorizer = h
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				st.stop()
				goOn := make(chan struct{})
				h := slowDelivery{make(chan struct{}), func() { <-goOn }}
				tt.config(&st.cfg, h)
				st.start()
				s := st.durable("s", packets.V5)
				s.subscribe(tt.filter, packets.QoS1)
				s.nc.Close()
				old := st.durable("old", packets.V311)
				time.Sleep(time.Second)
				release := st.store.hold()
				st.store.fail(store.ErrFull)
				old.send(message2("first", "x", packets.QoS1, 1),
					message2("slow", "x", packets.QoS1, 2))
				<-h.entered
				release()
				synctest.Wait()
				require.Error(t, st.b.Healthy())
				st.store.fail(nil)
				time.Sleep(time.Second)
				require.NoError(t, st.b.Healthy(), "there is room for the probe")
				close(goOn)
				require.True(t, old.ended(), "it has to send both again, in their order")
				info, _ := st.b.Session("s")
				require.Zero(t, info.Queued, "what came behind what was refused")
			})
		})
	}
}

// Otherwise a crash in between would have the publisher send the refused message again, behind the
// one that was taken.
func TestARefusalIsToldBeforeALaterMessageIsTaken(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		h := slowDelivery{make(chan struct{}), func() { time.Sleep(time.Second) }}
		st.cfg.Interceptor = hooks.InterceptorFunc(func(ctx context.Context, _ *hooks.Client,
			m *packets.Message) (*packets.Message, error) {
			return m, h.AuthorizeDelivery(ctx, &hooks.AccessRequest{Topic: m.Topic})
		})
		var p *peerConn
		told := make(chan int, 1)
		st.cfg.Observer.Published = func(e hooks.Published) {
			if e.Topic() == "slow" {
				time.Sleep(time.Second)
				p.mu.Lock()
				told <- len(p.in)
				p.mu.Unlock()
			}
		}
		st.start()
		st.durable("s", packets.V5).subscribe("+", packets.QoS1)
		p = st.durable("p", packets.V5)
		time.Sleep(time.Second)
		st.store.fail(store.ErrFull)
		p.send(message2("other", "x", packets.QoS1, 9))
		p.want(packets.TypePuback)
		require.Error(t, st.b.Healthy())
		first, _ := message2("first", "x", packets.QoS1, 1).Append(nil, p.v)
		both, _ := message2("slow", "x", packets.QoS1, 2).Append(first, p.v)
		p.nc.Write(both) // one turn reads both
		<-h.entered
		st.store.fail(nil)
		require.NotZero(t, <-told, "the refusal had come when the second message was published")
		acks := p.want(packets.TypePuback, packets.TypePuback)
		require.Equal(t, packets.QuotaExceeded, acks[0].(*packets.Ack).Code)
		require.Equal(t, packets.Success, acks[1].(*packets.Ack).Code)
	})
}

func TestWhatIsCarriedDoesNotGrowWithTime(t *testing.T) {
	onStage(t, func(st *stage) {
		st.durable("s", packets.V5).nc.Close()
		time.Sleep(time.Second)
		most := 0
		st.store.mu.Lock()
		st.store.before = func(ops []store.Op) error {
			most = max(most, len(ops))
			return store.ErrFull
		}
		st.store.mu.Unlock()
		for range 100 {
			n := st.dial("s", packets.V5, false, 3600)
			require.Equal(t, packets.QuotaExceeded,
				n.want(packets.TypeConnack)[0].(*packets.Connack).Code)
			require.True(t, n.ended())
			st.clean("c").send(toRetain(message2("r", "", packets.QoS0, 0)))
			// a Will that is not stored
			w := st.dial("w", packets.V5, true, 0, willTo("will", "x", 0))
			require.Equal(t, packets.Success,
				w.want(packets.TypeConnack)[0].(*packets.Connack).Code)
			time.Sleep(time.Second)
		}
		st.store.fail(nil)
		time.Sleep(time.Second)
		require.NoError(t, st.b.Healthy())
		require.Less(t, most, 10, "operations at once")
	})
}

// A Subscribe that fails leaves a named Session, and what waits in it, as it was.
func TestASubscribeThatFailsKeepsTheNamedSession(t *testing.T) {
	ctx := context.Background()
	o := &SubscribeOptions{Name: "n", QoS: packets.QoS1}
	leave := func(st *stage) {
		sub, err := st.b.Subscribe(ctx, "t", o)
		require.NoError(st.t, err)
		require.NoError(st.t, sub.Close())
		require.NoError(st.t, st.b.Publish(ctx,
			&Message{Topic: "t", Payload: []byte("kept"), QoS: packets.QoS1}))
	}
	find := func(st *stage) {
		sub, err := st.b.Subscribe(ctx, "t", o)
		require.NoError(st.t, err)
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		m, err := sub.Next(ctx)
		require.NoError(st.t, err, "the message that waited for the reader is lost")
		require.Equal(st.t, "kept", string(m.Payload))
	}
	t.Run("the store is full", func(t *testing.T) {
		onStage(t, func(st *stage) {
			leave(st)
			st.store.refuse(func(op store.Op) bool {
				_,
					adds := op.(*store.PutSubscription)
				return adds
			})
			_, err := st.b.Subscribe(ctx, "other", o)
			require.ErrorIs(t, err, store.ErrFull)
			st.store.fail(nil)
			time.Sleep(time.Second)
			find(st)
		})
	})
	t.Run("too many subscriptions", func(t *testing.T) {
		onStage(t, func(st *stage) {
			st.stop()
			st.cfg.MaxSubscriptions = 1
			st.start()
			leave(st)
			_, err := st.b.Subscribe(ctx, "other", o)
			require.Equal(t, packets.QuotaExceeded, packets.CodeOf(err))
			find(st)
		})
	})
	t.Run("the Broker is closed meanwhile", func(t *testing.T) {
		onStage(t, func(st *stage) {
			leave(st)
			gate := make(chan struct{})
			st.store.mu.Lock()
			st.store.before = func(ops []store.Op) error {
				for _, op := range ops {
					if _, adds := op.(*store.PutSubscription); adds {
						<-gate
					}
				}
				return nil
			}
			st.store.mu.Unlock()
			done, closed := make(chan error, 1), make(chan error, 1)
			go func() { _, err := st.b.Subscribe(ctx, "other", o); done <- err }()
			synctest.Wait()
			require.Empty(t, done)
			go func() { closed <- st.b.Close() }()
			synctest.Wait()
			close(gate)
			require.Error(t, <-done)
			require.NoError(t, <-closed)
			<-st.served
			st.store.fail(nil)
			st.start()
			find(st)
		})
	})
}

// A removal that has found no room is tried again, and is no success before.
func TestARemovalThatIsNotStoredIsNoSuccess(t *testing.T) {
	onStage(t, func(st *stage) {
		p := st.clean("p")
		p.send(toRetain(message2("t", "kept", packets.QoS1, 1)))
		p.want(packets.TypePuback)
		time.Sleep(time.Second)
		st.store.fail(store.ErrFull)
		p.send(toRetain(message2("t", "", packets.QoS1, 2)))
		got := p.got()
		acked := len(got) == 1 && !got[0].(*packets.Ack).Code.Failed()
		st.crash()
		require.False(t, acked && st.b.retained.Get("t") != nil,
			"acknowledged: the removal of a retained message that is there again")
	})
}

func TestAPublishThatRemovesWaitsForTheStore(t *testing.T) {
	onStage(t, func(st *stage) {
		ctx := context.Background()
		require.NoError(t, st.b.Publish(ctx,
			&Message{Topic: "t", Payload: []byte("x"), Retain: true}))
		time.Sleep(time.Second)
		st.store.fail(store.ErrFull)
		err := st.b.Publish(ctx, &Message{Topic: "t", Retain: true, QoS: 1})
		require.ErrorIs(t, err, store.ErrFull)
	})
}

// A batch that the store finds too large is refused, and not the end of the store.
func TestABatchThatIsTooLargeDoesNotEndTheStore(t *testing.T) {
	onStage(t, func(st *stage) {
		p := st.clean("p")
		st.store.fail(fmt.Errorf("test: %w", store.ErrTooLarge))
		p.send(toRetain(message2("t", "x", packets.QoS1, 1)))
		require.Equal(t, packets.QuotaExceeded, p.want(packets.TypePuback)[0].(*packets.Ack).Code)
		st.store.fail(nil)
		time.Sleep(time.Second)
		require.NoError(t, st.b.Healthy())
		p.send(toRetain(message2("t", "x", packets.QoS1, 2)))
		require.False(t, p.want(packets.TypePuback)[0].(*packets.Ack).Code.Failed())
	})
}

// A client that has sent DISCONNECT is answered when that is durable. What is refused meanwhile
// does not reach it.
func TestARefusedQoS2MessageDoesNotReachAClientThatLeaves(t *testing.T) {
	onStage(t, func(st *stage) {
		s, p := st.durable("s", packets.V5), st.clean("p")
		s.subscribe("t", packets.QoS2)
		release := st.store.hold()
		st.store.refuse(adds)
		p.send(message2("t", "x", packets.QoS2, 1))
		synctest.Wait()
		s.send(&packets.Disconnect{})
		synctest.Wait()
		release()
		require.Equal(t, packets.QuotaExceeded, p.want(packets.TypePubrec)[0].(*packets.Ack).Code)
		s.wantNothing("a message that was refused")
		require.True(t, s.ended())
	})
}
