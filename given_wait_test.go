package dunlin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/given"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what waits until a subscription that the server makes is durable.

// givenIn says whether operations put a subscription of the server to filter.
func givenIn(ops []store.Op, filter string) bool {
	for _, op := range ops {
		if s, ok := op.(*store.PutSubscription); ok && s.Filter == filter {
			return true
		}
	}
	return false
}

// fillBatch has the next operation complete the batch that is pending.
func (st *stage) fillBatch() {
	const batchBytes = 16 << 20 // of package journal
	op := &store.Publish{Message: &store.Message{Message: packets.Message{Topic: "t"}}}
	op.Message.Payload = make([]byte, batchBytes-journal.Weigh(op))
	st.b.journal.Add(op)
}

// A CONNACK waits for the record of its Grant, also where that is not in the batch of the Session.
func TestAConnackWaitsForItsGrant(t *testing.T) {
	onStage(t, func(st *stage) {
		st.cfg.Authenticator = users(map[string][]hooks.Subscription{"s": {served("granted", 1)}})
		st.restart(func(c *Config) { c.MaxUncommittedBytes = 64 << 20 })
		gate, apart := make(chan struct{}), atomic.Bool{}
		st.store.mu.Lock()
		st.store.before = func(ops []store.Op) error {
			if givenIn(ops, "granted") {
				<-gate
				return nil
			}
			for _, op := range ops {
				s, ok := op.(*store.PutSession)
				if ok && !strings.HasPrefix(s.ClientID, given.Prefix) {
					apart.Store(true)
				}
			}
			return nil
		}
		st.store.mu.Unlock()
		st.fillBatch()
		p := st.dial("s", packets.V5, false, 3600, named("u"))
		synctest.Wait()
		early := p.got()
		close(gate)
		require.True(t, apart.Load(), "the Session was durable")
		require.Empty(t, early, "the Grant was not")
		synctest.Wait()
		p.want(packets.TypeConnack)
	})
}

// The store had no room for a Grant, and refused the client. The same Grant is written when the
// client comes again.
func TestAGrantThatWasNotStoredIsWrittenAgain(t *testing.T) {
	onStage(t, func(st *stage) {
		grants := map[string][]hooks.Subscription{}
		st.cfg.Authenticator = users(grants)
		st.restart(func(*Config) {})
		p, _ := st.comes("s", "u", packets.V5)
		p.goes()
		grants["s"] = []hooks.Subscription{served("a", 1), served("b", 1)}
		st.store.refuse(func(op store.Op) bool { return givenIn([]store.Op{op}, "a") })
		p = st.dial("s", packets.V5, false, 3600, named("u"))
		for _, x := range p.got() {
			a, ok := x.(*packets.Connack)
			require.False(t, ok && a.Code == packets.Success, "nothing is durable")
		}
		p.goes()
		st.roomAgain()
		p, _ = st.comes("s", "u", packets.V5)
		p.goes()
		st.crash()
		st.publish("a", "1")
		st.publish("b", "2")
		_, got := st.comes("s", "u", packets.V5)
		require.Equal(t, []string{"1", "2"}, got)
	})
}

// The store refuses a client that would have resumed its Session with another Grant. The Session
// has what the client had before, in memory, too.
func TestAResumeThatIsRefusedChangesNoGrant(t *testing.T) {
	onStage(t, func(st *stage) {
		grants := map[string][]hooks.Subscription{"s": {served("a", 1)}}
		st.cfg.Authenticator = users(grants)
		st.restart(func(*Config) {})
		p, _ := st.comes("s", "u", packets.V5)
		p.goes()
		grants["s"] = []hooks.Subscription{served("b", 1)}
		st.store.refuse(func(op store.Op) bool { return givenIn([]store.Op{op}, "b") })
		p = st.dial("s", packets.V5, false, 3600, named("u"))
		p.got()
		p.goes()
		info, _ := st.b.Session("s")
		require.Len(t, info.Given, 1)
		require.Equal(t, "a", info.Given[0].Filter)
		st.roomAgain()
		st.publish("a", "1")
		st.publish("b", "2")
		grants["s"] = []hooks.Subscription{served("a", 1)} // which is written anew
		_, got := st.comes("s", "u", packets.V5)
		require.Equal(t, []string{"1"}, got)
		require.NoError(t, st.b.journal.Sync(st.t.Context()))
		st.crash()
		st.publish("b", "3")
		st.publish("a", "4")
		_, got = st.comes("s", "u", packets.V5)
		require.Equal(t, []string{"4"}, got)
	})
}

// The store is full, and the process ends before the client comes again: the Session has what the
// last Grant brought that was durable, and nothing else.
func TestACrashAfterARefusedResumeLeavesTheGrantOfBefore(t *testing.T) {
	for name, grant := range map[string][]hooks.Subscription{
		"another":          {served("b", 1)},
		"one more":         {served("a", 1), served("b", 1)},
		"more, and less":   {served("b", 1), served("c", 1)},
		"of a higher QoS":  {served("a", 2)},
		"one, twice asked": {served("b", 1), served("b", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				grants := map[string][]hooks.Subscription{"s": {served("a", 1)}}
				st.cfg.Authenticator = users(grants)
				st.restart(func(*Config) {})
				p, _ := st.comes("s", "u", packets.V5)
				p.goes()
				before := grants["s"]
				for range 2 { // the second time what was loaded
					grants["s"] = grant
					st.fullFor("no room for what adds")
					p = st.dial("s", packets.V5, false, 3600, named("u"))
					for _, x := range p.got() {
						a, ok := x.(*packets.Connack)
						require.False(st.t, ok && a.Code == packets.Success)
					}
					p.goes()
					st.roomAgain()
					st.crash()
					grants["s"] = nil // what there is stays
					info, _ := st.b.Session("s")
					require.Equal(st.t, []packets.Subscription{before[0].Subscription}, info.Given)
					st.publish("a", "1")
					st.publish("b", "2")
					p, got := st.comes("s", "u", packets.V5)
					require.Equal(st.t, []string{"1"}, got)
					p.goes()
				}
			})
		})
	}
}

// A Grant that only takes away needs no room: the client gets in while the store is full, and what
// was taken away stays so.
func TestAGrantThatTakesAwayNeedsNoRoom(t *testing.T) {
	for name, full := range map[string]func(op store.Op) bool{
		"no room for what adds": func(op store.Op) bool { return store.Adds([]store.Op{op}) },
		"no room for anything":  fullKinds["no room for anything"],
	} {
		t.Run(name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				grants := map[string][]hooks.Subscription{"s": {served("a", 1), served("b", 1)}}
				st.cfg.Authenticator = users(grants)
				st.restart(func(*Config) {})
				p, _ := st.comes("s", "u", packets.V5)
				p.goes()
				grants["s"] = []hooks.Subscription{served("a", 1)}
				st.store.refuse(full)
				require.Error(st.t, st.b.SubscribeClient(st.t.Context(), "x", served("x", 1)))
				p = st.dial("s", packets.V5, false, 3600, named("u"))
				accepted := false
				for _, x := range p.got() {
					a, ok := x.(*packets.Connack)
					accepted = accepted || ok && a.Code == packets.Success
				}
				require.Equal(st.t, !full(&store.PutSession{}), accepted)
				p.goes()
				info, _ := st.b.Session("s")
				require.Equal(st.t, []packets.Subscription{served("a", 1).Subscription}, info.Given)
				st.roomAgain()
				st.publish("b", "2")
				st.publish("a", "1")
				_, got := st.comes("s", "u", packets.V5)
				require.Equal(st.t, []string{"1"}, got)
			})
		})
	}
}

// Somebody who asks for what another call is just making, or ending, waits for that as well.
func TestASecondCallWaitsForTheFirst(t *testing.T) {
	onStage(t, func(st *stage) {
		ctx := st.t.Context()
		calls := map[string]func() error{
			"subscribe": func() error { return st.b.SubscribeClient(ctx, "s", served("a", 1)) },
			"unsubscribe": func() error {
				_, err := st.b.UnsubscribeClient(ctx, "s", "a")
				return err
			},
		}
		for _, name := range []string{"subscribe", "unsubscribe"} {
			release := st.store.hold()
			var done atomic.Int32
			for range 2 {
				go func() { // until the store is released
					if calls[name]() == nil {
						done.Add(1)
					}
				}()
				synctest.Wait()
			}
			require.Zero(t, done.Load(), name)
			release()
			synctest.Wait()
			require.EqualValues(t, 2, done.Load(), name)
		}
		gone, cancel := context.WithCancelCause(ctx)
		release := st.store.hold()
		cause := errors.New("no patience")
		time.AfterFunc(time.Second, func() { cancel(cause) })
		require.ErrorIs(t, st.b.SubscribeClient(gone, "s", served("a", 1)), cause)
		release()
	})
}

// Two first calls for principals come at once. Neither returns before all Sessions are known as
// those of their principals.
func TestFirstSubscriptionsOfPrincipalsAtOnce(t *testing.T) {
	onStage(t, func(st *stage) {
		st.cfg.Authenticator = users(nil)
		st.restart(func(*Config) {})
		for i := range 1000 {
			p := st.dial(fmt.Sprint(i), packets.V5, false, 3600, named("u"))
			p.want(packets.TypeConnack)
		}
		filters := []string{"a", "b", "c", "d"}
		errs := make(chan error)
		for _, f := range filters {
			go func() { errs <- st.b.SubscribePrincipal(st.t.Context(), "u", served(f, 1)) }()
		}
		for range filters {
			require.NoError(t, <-errs)
		}
		for s := range st.b.allSessions() {
			info, _ := st.b.Session(s.id)
			require.Len(t, info.Given, len(filters), "%v of Session %s", info.Given, s.id)
		}
	})
}

// A client whose Session is not stored ends a subscription that is. Its UNSUBACK waits for that.
func TestAnUnsubackWaitsForTheSubscriptionOfTheServer(t *testing.T) {
	onStage(t, func(st *stage) {
		st.cfg.Authenticator = users(nil)
		st.restart(func(*Config) {})
		p := st.dial("s", packets.V5, true, 0, named("u"))
		p.want(packets.TypeConnack)
		require.NoError(t, st.b.SubscribeClient(st.t.Context(), "s", served("a", 1, mayRemove)))
		release := st.store.hold()
		p.send(&packets.Unsubscribe{PacketID: 1, Filters: []string{"a"}})
		synctest.Wait()
		early := p.got()
		release()
		require.Empty(t, early, "it would be back after a crash")
		p.want(packets.TypeUnsuback)
	})
}
