package dunlin

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// This file is about subscriptions of which the store has decided, or does, while somebody else
// changes the same ones.

// refuseSubscriptions makes the store full for subscriptions.
func (st *stage) refuseSubscriptions() {
	st.store.refuse(func(op store.Op) bool {
		_, is := op.(*store.PutSubscription)
		return is
	})
}

// subscribed returns the Topic Filters of the Session of a client.
func (st *stage) subscribed(id string) (filters []string) {
	for _, s := range st.infoOf(id).Subscriptions {
		filters = append(filters, s.Filter)
	}
	return filters
}

// slowAuthorizer allows everything, but the filter "slow" only when the channel is closed. It does
// not heed the end of the connection.
func slowAuthorizer(stuck <-chan struct{}) hooks.Authorizer {
	return hooks.AuthorizerFunc(func(_ context.Context, r *hooks.AccessRequest) error {
		if r.Topic == "slow" {
			<-stuck
		}
		return nil
	})
}

// stuckAt has the Authorizer wait, for the filter "slow", until the test lets it go on.
func (st *stage) stuckAt(by map[string]string) (goOn func()) {
	stuck := make(chan struct{})
	st.restart(func(c *Config) {
		c.SubscribeInterceptor, c.Authorizer = replacing(by), slowAuthorizer(stuck)
	})
	return func() {
		close(stuck)
		synctest.Wait()
	}
}

// A SUBSCRIBE is refused by a full store, but its connection hears of that late: it waits for a
// hook. Meanwhile another connection has the Session, and the subscription.
func TestARefusedSubscribeTakesNothingFromItsSuccessor(t *testing.T) {
	for _, wrote := range []string{"a", "replaced"} {
		t.Run(wrote, func(t *testing.T) {
			onStage(t, func(st *stage) {
				goOn := st.stuckAt(map[string]string{"replaced": "a"})
				c := st.durable("s", packets.V5)
				st.refuseSubscriptions()
				c.send(&packets.Subscribe{PacketID: 1,
					Subscriptions: []packets.Subscription{{Filter: wrote}, {Filter: "slow"}}})
				st.b.journal.Rouse()
				time.Sleep(time.Second)
				st.roomAgain()
				d := st.durable("s", packets.V5)
				d.subscribe(wrote, packets.QoS1)
				goOn()
				require.Equal(st.t, []string{"a"}, st.subscribed("s"))
				st.crash()
				require.Equal(st.t, []string{"a"}, st.subscribed("s"), "after a crash")
				d = st.durable("s", packets.V5)
				d.send(&packets.Unsubscribe{PacketID: 2, Filters: []string{wrote}})
				got := d.want(packets.TypeUnsuback)[0].(*packets.Unsuback)
				require.Equal(st.t, packets.Success, got.Codes[0], "the note is stored as well")
				require.Empty(st.t, st.subscribed("s"))
			})
		})
	}
}

// Nothing is left of a refused SUBSCRIBE whose connection hears of it late, when the successor has
// ended the subscription or made another one.
func TestASuccessorEndsWhatIsNotSettledYet(t *testing.T) {
	onStage(t, func(st *stage) {
		by := map[string]string{"a": "x"}
		goOn := st.stuckAt(by)
		c := st.durable("s", packets.V5)
		c.subscribe("a", packets.QoS1)
		by["a"] = "y"
		st.refuseSubscriptions()
		c.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "a"}, {Filter: "slow"}}})
		st.b.journal.Rouse()
		time.Sleep(time.Second)
		st.roomAgain()
		d := st.durable("s", packets.V5)
		d.send(&packets.Unsubscribe{PacketID: 2, Filters: []string{"a"}})
		got := d.want(packets.TypeUnsuback)[0].(*packets.Unsuback)
		require.Equal(st.t, packets.Success, got.Codes[0])
		goOn()
		require.Empty(st.t, st.subscribed("s"))
		require.Empty(st.t, st.infoOf("s").Replaced)
		st.crash()
		require.Empty(st.t, st.subscribed("s"), "after a crash")
	})
}

// A hook replaces a filter by another one than before. The connection ends the earlier subscription
// late, when its successor has subscribed to it anew.
func TestWhatASubscribeReplacedIsNotTakenFromItsSuccessor(t *testing.T) {
	for name, st := range map[string]store.Store{"stored": new(memory.Store), "in memory": nil} {
		t.Run(name, func(t *testing.T) {
			by := map[string]string{}
			var stuck chan struct{}
			withRules(t, everything, func(c *Config) {
				c.Store, c.SubscribeInterceptor = st, replacing(by)
				stuck = make(chan struct{})
				c.Authorizer = slowAuthorizer(stuck)
			}, func(r *guardRig) {
				c := r.connect(as("c", "u"))
				require.Equal(r.t, packets.GrantedQoS1, c.subscribe("a", 1))
				by["a"] = "y"
				c.send(&packets.Subscribe{PacketID: 7, Subscriptions: []packets.Subscription{
					{Filter: "a"}, {Filter: "slow"}}})
				synctest.Wait()
				d := r.connect(as("c", "u"))
				delete(by, "a")
				require.Equal(r.t, packets.GrantedQoS1, d.subscribe("a", 1))
				close(stuck)
				synctest.Wait()
				require.Contains(r.t, r.filters("c"), "a")
				d.close()
				c.nc.Close()
			})
		})
	}
}

// A filter that a hook does not replace any more, and in the same SUBSCRIBE the one that it was
// replaced by: the client has asked for both.
func TestASubscribeKeepsWhatItAsksForItself(t *testing.T) {
	for _, order := range [][]string{{"a", "x"}, {"x", "a"}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			by := map[string]string{"a": "x"}
			with := func(c *Config) { c.SubscribeInterceptor = replacing(by) }
			withRules(t, everything, with, func(r *guardRig) {
				c := r.connect(as("c", "u"))
				require.Equal(r.t, packets.GrantedQoS1, c.subscribe("a", 1))
				by["a"] = "y"
				c.send(&packets.Subscribe{PacketID: 7, Subscriptions: []packets.Subscription{
					{Filter: order[0]}, {Filter: order[1]}}})
				require.Equal(r.t, []packets.ReasonCode{0, 0}, c.recv().(*packets.Suback).Codes)
				require.Equal(r.t, []string{"x", "y"}, r.filters("c"))
				require.Equal(r.t, packets.Success, c.unsubscribe("a"))
				require.Equal(r.t, []string{"x"}, r.filters("c"))
				require.Equal(r.t, packets.Success, c.unsubscribe("x"))
				c.close()
			})
		})
	}
}

// Two calls ask for the same. The store refuses what the first one has put, and the second call
// must not say that it is there.
func TestASecondCallIsNotToldOfWhatIsTakenBack(t *testing.T) {
	onStage(t, func(st *stage) {
		release := st.store.hold()
		st.refuseSubscriptions()
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- st.b.SubscribeClient(st.t.Context(), "s", served("a", 1)) }()
			synctest.Wait()
		}
		release()
		synctest.Wait()
		require.Error(st.t, <-errs)
		require.Error(st.t, <-errs)
		require.Empty(st.t, st.b.ClientSubscriptions("s"))
		st.roomAgain()
		require.NoError(st.t, st.b.SubscribeClient(st.t.Context(), "s", served("a", 1)))
		st.crash()
		require.Len(st.t, st.b.ClientSubscriptions("s"), 1)
	})
}

// A call gives up before the store does not take what it has put. Later calls store all of it.
func TestACallThatGaveUpLeavesNoHalfRecord(t *testing.T) {
	for _, then := range []string{"a", "b"} {
		t.Run(then, func(t *testing.T) {
			onStage(t, func(st *stage) {
				gone, cancel := context.WithCancelCause(st.t.Context())
				cause := errors.New("no patience")
				time.AfterFunc(time.Second, func() { cancel(cause) })
				release := st.store.hold()
				st.refuseSubscriptions()
				require.ErrorIs(st.t, st.b.SubscribeClient(gone, "s", served("a", 1)), cause)
				release()
				synctest.Wait()
				st.roomAgain()
				require.NoError(st.t, st.b.SubscribeClient(st.t.Context(), "s", served(then, 1)))
				before := st.b.ClientSubscriptions("s")
				st.crash()
				require.Equal(st.t, before, st.b.ClientSubscriptions("s"), "after a crash")
			})
		})
	}
}
