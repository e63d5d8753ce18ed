package given

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// sessions is a handler whose Sessions are names. A name is its place, and the principal is "p".
type sessions struct {
	last uint64
	ops  []store.Op
	has  map[string]map[string]hooks.Subscription
	told []string
}

func (h *sessions) Next() uint64 {
	h.last++
	return h.last
}

func (h *sessions) Add(ops ...store.Op) int {
	h.ops = append(h.ops, ops...)
	return len(h.ops)
}

func (h *sessions) Keys(m string) []Key {
	return []Key{{ToSession, m}, {ToClient, m}, {ToPrincipal, "p"}}
}

func (h *sessions) Lifetime(string) Lifetime { return Lasting }

func (h *sessions) Give(m, filter string, s *hooks.Subscription, _ Retained) {
	if h.has[m] == nil {
		h.has[m] = map[string]hooks.Subscription{}
	}
	if s == nil {
		delete(h.has[m], filter)
	} else {
		h.has[m][filter] = *s
	}
}

func (h *sessions) Changed(Key, []string) {}

func (h *sessions) Tell(m string, s *hooks.Subscription) { h.told = append(h.told, m+" "+s.Filter) }

func sub(filter string, q packets.QoS) hooks.Subscription {
	return hooks.Subscription{Subscription: packets.Subscription{Filter: filter, QoS: q}}
}

// What several Keys give to one Session comes together, and goes one by one.
func TestSubscriptionsOfSeveralKeys(t *testing.T) {
	h := &sessions{has: map[string]map[string]hooks.Subscription{}}
	x := New(h)
	x.Put(Key{ToPrincipal, "p"}, Lasting, sub("a", 0), sub("b", 1))
	x.Put(Key{ToClient, "m"}, Lasting, sub("a", 2))
	require.True(t, x.Follow())
	require.False(t, x.Follow())
	x.Begin("m", []hooks.Subscription{sub("c", 1)})
	x.Begin("other", nil)
	want := map[string]hooks.Subscription{"a": sub("a", 2), "b": sub("b", 1), "c": sub("c", 1)}
	require.Equal(t, want, h.has["m"])
	require.ElementsMatch(t, []string{"m", "other"}, x.Members("p"))

	removed, _ := x.Remove(Key{ToClient, "m"}, "a", "none")
	require.Equal(t, []string{"a"}, removed)
	x.Update("m", "a", RetainedSkipped)
	require.Equal(t, packets.QoS0, h.has["m"]["a"].QoS, "that of the principal is left")
	x.Resume("m", nil)
	require.Contains(t, h.has["m"], "c")
	x.Resume("m", []hooks.Subscription{sub("d", 1)})
	require.NotContains(t, h.has["m"], "c")
	require.Contains(t, h.has["m"], "d")
	x.Announce("m", false, nil)
	require.Equal(t, []string{"m a", "m b", "m d"}, h.told)

	x.End("m")
	require.Equal(t, []string{"other"}, x.Members("p"))
	require.Empty(t, x.Get(Key{ToSession, "m"}))
	x.End("other")
	require.Empty(t, x.members, "nobody is left")
}

// A Table that reads what another one has told the store is like that one.
func TestWhatWasStoredIsLoaded(t *testing.T) {
	h := &sessions{has: map[string]map[string]hooks.Subscription{}}
	x := New(h)
	free := sub("free", 1)
	free.ClientMayRemove = true
	x.Put(Key{ToClient, "m"}, Lasting, sub("a", 1), free, sub("b", 0))
	x.Put(Key{ToClient, "m"}, Lasting, sub("a", 2))
	x.Put(Key{ToPrincipal, "p"}, Lasting, sub("a", 1))
	x.Put(Key{ToClient, "gone"}, Lasting, sub("a", 1))
	x.Put(Key{ToClient, "passing"}, Passing, sub("a", 1))
	x.Remove(Key{ToClient, "gone"}, "a")
	x.Remove(Key{ToClient, "m"}, "b")
	n := len(h.ops)
	x.Put(Key{ToClient, "m"}, Lasting, sub("a", 2))
	require.Len(t, h.ops, n, "what is the same already is not written")

	y := New(&sessions{})
	other := &store.PutSession{Session: 77, ClientID: "m"}
	for _, op := range append(h.ops, other, &store.DeleteSession{Session: 77}) {
		mine := op != store.Op(other)
		if d, ok := op.(*store.DeleteSession); ok && d.Session == 77 {
			mine = false
		}
		require.Equal(t, mine, y.Load(op), "%#v", op)
	}
	last, principals, stale := y.Loaded(func(k Key, _ uint64) bool { return k.Name != "p" })
	require.Equal(t, uint64(2), last)
	require.False(t, principals)
	require.Equal(t, []store.Op{&store.DeleteSession{Session: 2}}, stale)
	require.Equal(t, []hooks.Subscription{sub("a", 2), free}, y.Get(Key{ToClient, "m"}))
	require.Equal(t, x.Get(Key{ToClient, "m"}), y.Get(Key{ToClient, "m"}))
}

// A long list is put about as quickly backwards as in its order. Of two with the same filter the
// later one counts.
func TestALongList(t *testing.T) {
	const n = 40_000
	var list []hooks.Subscription
	for i := range n {
		list = append(list, sub(fmt.Sprint(n+1+i), 1))
	}
	put := func(list []hooks.Subscription) (best time.Duration) {
		for range 3 { // the machine may do something else meanwhile
			x, began := New(&sessions{}), time.Now()
			x.Put(Key{ToClient, "m"}, Lasting, list...)
			if took := time.Since(began); best == 0 || took < best {
				best = took
			}
			require.Len(t, x.Get(Key{ToClient, "m"}), n)
		}
		return best
	}
	inOrder := put(list)
	slices.Reverse(list)
	// 40 times as long if each subscription moves all others
	require.Less(t, put(list), 10*inOrder)

	x := New(&sessions{})
	x.Put(Key{ToClient, "m"}, Lasting, sub("b", 1), sub("a", 1), sub("b", 2))
	require.Equal(t, []hooks.Subscription{sub("a", 1), sub("b", 2)}, x.Get(Key{ToClient, "m"}))
}

// What the store did not take is as it was, unless somebody has changed it meanwhile.
func TestWhatWasNotStoredIsTakenBack(t *testing.T) {
	x := New(&sessions{})
	k, old := Key{ToClient, "m"}, sub("a", 1)
	x.Put(k, Lasting, sub("a", 2), sub("b", 2), sub("c", 1))
	x.Restore(k, sub("a", 2), &old)
	x.Restore(k, sub("b", 2), nil)
	x.Restore(k, sub("c", 2), nil)
	require.Equal(t, []hooks.Subscription{old, sub("c", 1)}, x.Get(k))
}
