package dunlin

import (
	"context"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// explosive is an Authorizer by rules, but for one topic.
type explosive struct{ *acl.ACL }

func (e explosive) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	if r.Topic == "panic" {
		panic("on purpose")
	}
	return e.ACL.Authorize(ctx, r)
}

// A tally is an Observer that counts what it is told, function by function, one of which panics.
type tally struct {
	mu    sync.Mutex
	calls map[string]int
}

func (x *tally) observer(panics string) *hooks.Observer {
	x.calls = make(map[string]int)
	var o hooks.Observer
	for field, f := range reflect.ValueOf(&o).Elem().Fields() {
		f.Set(reflect.MakeFunc(field.Type, func([]reflect.Value) []reflect.Value {
			x.mu.Lock()
			x.calls[field.Name]++
			x.mu.Unlock()
			if field.Name == panics {
				panic("the Observer, on purpose")
			}
			return nil
		}))
	}
	return &o
}

// Whatever function of the Observer panics, and wherever it is called: nothing else happens than
// that it is counted and told.
func TestAPanicInTheObserverChangesNothing(t *testing.T) {
	for field := range reflect.TypeFor[hooks.Observer]().Fields() {
		t.Run(field.Name, func(t *testing.T) {
			var x tally
			st := &faultStore{Store: new(memory.Store)}
			withRules(t, []string{"allow all on t/#", "allow all on x", "allow all on panic"},
				func(c *Config) {
					c.Authorizer = explosive{c.Authorizer.(*acl.ACL)}
					c.Observer, c.Store = x.observer(field.Name), st
				}, func(r *guardRig) {
					observeEverything(r.t, r, st)
					x.mu.Lock()
					defer x.mu.Unlock()
					n := x.calls[field.Name]
					require.NotZero(t, n, "it was called")
					require.EqualValues(t, n+1, r.b.Stats().Panics,
						"each panic counts, and that of the hook")
					if field.Name != "Panicked" {
						require.Equal(t, n+1, x.calls["Panicked"], "each is told")
					} else {
						require.Equal(t, 1, n, "its own is not told to itself")
					}
				})
		})
	}
}

// observeEverything makes everything happen that an Observer is told, with clients who must not
// notice who is told.
func observeEverything(t *testing.T, r *guardRig, st *faultStore) {
	r.refused(as(localPrefix+"c", "u"), packets.ClientIdentifierNotValid)
	p, bad := r.connect(as("p", "u")), r.connect(as("bad", "u"))
	small := as("s", "u")
	small.Properties = small.Properties.AppendUint(packets.MaximumPacketSize, 200)
	s := r.connect(small)
	require.Equal(t, packets.GrantedQoS1, s.subscribe("t/#", 1))
	require.Equal(t, packets.GrantedQoS1, s.subscribe("x", 1))
	require.NoError(t, r.b.Publish(t.Context(), tracked("a", "t/1", packets.QoS1)))
	s.message("t/1")
	require.Equal(t, packets.NotAuthorized, p.publish("forbidden", "a", false))
	// dropped: too large
	require.Equal(t, packets.Success, p.publish("t/1", string(make([]byte, 500)), false))
	s.send(&packets.Unsubscribe{PacketID: 3, Filters: []string{"x"}})
	require.Equal(t, []packets.ReasonCode{packets.Success}, s.recv().(*packets.Unsuback).Codes)

	bad.send(&packets.Publish{Topic: []byte("panic")})
	require.Equal(t, packets.UnspecifiedError, bad.recv().(*packets.Disconnect).Code,
		"a hook that decides ends the connection")
	bad.close()

	st.fail(store.ErrFull)
	require.Equal(t, packets.QuotaExceeded, p.publish("x", "not stored", true))
	st.fail(nil)
	time.Sleep(10 * time.Second)
	require.Equal(t, packets.Success, p.publish("t/1", "b", false), "the store works again")
	s.message("t/1")

	r.reload("allow all on x")
	info, _ := r.b.Session("s")
	require.Empty(t, info.Subscriptions, "revoked")
	require.NoError(t, r.b.Ban(Ban{Kind: BanClient, Value: "p"}))
	require.Equal(t, packets.AdministrativeAction, p.recv().(*packets.Disconnect).Code)
	p.close()
	s.nothing("is still there")
	require.True(t, deletes(t, r.b, "s"))
	require.Equal(t, packets.AdministrativeAction, s.recv().(*packets.Disconnect).Code)
	s.close()
	synctest.Wait()
}

// What an Observer costs is its own work: making it safe allocates nothing.
func TestAnObserverCostsNoAllocation(t *testing.T) {
	b := newTestBroker(t, func(c *Config) {
		c.Observer = &hooks.Observer{
			Published: func(hooks.Published) {}, Delivered: func(hooks.Delivered) {},
			Acknowledged: func(hooks.Acknowledged) {}, Dropped: func(hooks.Dropped) {},
		}
	})
	defer b.Close()
	c, m := new(hooks.Client), new(packets.Message)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		b.obs.Published(hooks.Published{Client: c, Message: m, Matched: 1})
		b.obs.Delivered(hooks.Delivered{Client: c, Message: m})
		b.obs.Acknowledged(hooks.Acknowledged{Client: c, PacketID: 1})
		b.obs.Dropped(hooks.Dropped{Client: c, Message: m, Reason: hooks.DropQueueFull})
	}))
	require.Nil(t, b.obs.Connected, "what is nil stays nil, and costs one compare")
}
