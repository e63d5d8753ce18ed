package dunlin

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// replacing is a SubscribeInterceptor that replaces filters, and leaves others as they are.
func replacing(by map[string]string) hooks.SubscribeInterceptor {
	return hooks.SubscribeInterceptorFunc(func(_ context.Context, _ *hooks.Client,
		s *packets.Subscription) (*packets.Subscription, error) {
		got, ok := by[s.Filter]
		if !ok {
			return s, nil
		}
		out := *s
		out.Filter = got
		return &out, nil
	})
}

// filters returns the Topic Filters of a client's subscriptions, in their order.
func (r *guardRig) filters(id string) []string {
	info, ok := r.b.Session(id)
	require.True(r.t, ok)
	all := []string{}
	for _, s := range info.Subscriptions {
		all = append(all, s.Filter)
	}
	slices.Sort(all)
	return all
}

func (c *testClient) unsubscribe(filter string) packets.ReasonCode {
	c.t.Helper()
	c.send(&packets.Unsubscribe{PacketID: 8, Filters: []string{filter}})
	ack, ok := c.recv().(*packets.Unsuback)
	require.True(c.t, ok, "UNSUBACK first")
	return ack.Codes[0]
}

func TestASubscribeInterceptorLowersAndReplaces(t *testing.T) {
	var asked []packets.Subscription
	hook := hooks.SubscribeInterceptorFunc(func(_ context.Context, c *hooks.Client,
		s *packets.Subscription) (*packets.Subscription, error) {
		asked = append(asked, *s)
		out := *s
		switch s.Filter {
		case "low":
			out.QoS = 0
		case "#":
			out.Filter = "of/" + c.ID + "/#"
		case "$share/g/#":
			out.Filter = "$share/g/of/" + c.ID + "/#"
		}
		return &out, nil
	})
	var subscribed, unsubscribed []string
	withRules(t, []string{"allow all of/# low", "allow publish #"}, func(c *Config) {
		c.SubscribeInterceptor = hook
		c.Observer = &hooks.Observer{
			Subscribed: func(e hooks.Subscribed) {
				subscribed = append(subscribed, e.Filter+" as "+e.MountedFilter)
			},
			Unsubscribed: func(e hooks.Unsubscribed) {
				unsubscribed = append(unsubscribed, e.Filter+" as "+e.MountedFilter)
			},
		}
	}, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.MountPoint = "m/"
			return nil
		}
		c, p := r.connect(as("c", "u")), r.connect(as("p", "u"))
		require.Equal(t, packets.ReasonCode(0), c.subscribe("low", 1), "what SUBACK grants")
		require.Equal(t, packets.GrantedQoS1, c.subscribe("#", 1),
			"the Authorizer decides about what was returned")
		require.Equal(t, packets.GrantedQoS2, c.subscribe("$share/g/#", 2))
		require.Equal(t, []packets.Subscription{{Filter: "low", QoS: 1}, {Filter: "#", QoS: 1},
			{Filter: "$share/g/#", QoS: 2}}, asked, "without the mount point, as the client wrote it")
		require.Equal(t, []string{"$share/g/m/of/c/#", "m/low", "m/of/c/#"}, r.filters("c"))
		info, _ := r.b.Session("c")
		require.Equal(t, map[string]string{"#": "of/c/#", "$share/g/#": "$share/g/of/c/#"},
			info.Replaced)
		require.Equal(t, []string{"low as m/low", "# as m/of/c/#",
			"$share/g/# as $share/g/m/of/c/#"}, subscribed)

		require.Equal(t, packets.Success, c.unsubscribe("$share/g/#"))
		p.publish("of/p/1", "not for c", false)
		p.publish("of/c/1", "for c", false)
		require.Equal(t, "for c", string(c.message("of/c/1").Payload))
		x := r.b.Explain(t.Context(), "c", "m/of/p/1")
		require.Equal(t, hooks.CauseFilterReplaced, x.Cause, "%v", x.Text)
		require.Contains(t, x.Text, `"#"`)
		require.Equal(t, "of/c/#", x.Nearest)

		require.Equal(t, packets.Success, c.unsubscribe("#"))
		require.Equal(t, packets.NoSubscriptionExisted, c.unsubscribe("#"))
		require.Equal(t, []string{"m/low"}, r.filters("c"))
		require.Equal(t, []string{"$share/g/# as $share/g/m/of/c/#", "# as m/of/c/#"}, unsubscribed)
		info, _ = r.b.Session("c")
		require.Empty(t, info.Replaced)
		c.close()
		p.close()
	})
}

func TestASubscriptionEndsWithTheLastFilterThatWasReplacedByIt(t *testing.T) {
	by := map[string]string{"a": "x", "b": "x"}
	withRules(t, everything, func(c *Config) { c.SubscribeInterceptor = replacing(by) },
		func(r *guardRig) {
			c := r.connect(as("c", "u"))
			for _, f := range []string{"a", "b", "a"} {
				c.subscribe(f, 0)
			}
			require.Equal(t, packets.Success, c.unsubscribe("a"))
			require.Equal(t, []string{"x"}, r.filters("c"), "b is left")
			require.Equal(t, packets.Success, c.unsubscribe("b"))
			require.Empty(t, r.filters("c"))

			for _, first := range []string{"x", "a"} { // the client has it in both ways
				c.subscribe(first, 0)
				c.subscribe("x", 0)
				c.subscribe("a", 0)
				require.Equal(t, packets.Success, c.unsubscribe("a"))
				require.Equal(t, []string{"x"}, r.filters("c"), "the client wrote x, too")
				require.Equal(t, packets.Success, c.unsubscribe("x"))
				require.Empty(t, r.filters("c"))
			}

			c.subscribe("a", 0)
			require.Equal(t, packets.Success, c.unsubscribe("x"), "what it has, not what it wrote")
			require.Equal(t, packets.NoSubscriptionExisted, c.unsubscribe("a"))

			c.subscribe("a", 0)
			by["a"] = "y"
			c.subscribe("a", 0)
			require.Equal(t, []string{"y"}, r.filters("c"), "a later SUBSCRIBE takes its place")
			delete(by, "a")
			c.subscribe("a", 0)
			require.Equal(t, []string{"a"}, r.filters("c"))
			require.Equal(t, packets.Success, c.unsubscribe("a"))
			s := r.b.ofClient("c")[0]
			require.Zero(t, s.writtenLocked().Len(), "nothing is left")
			c.close()
			synctest.Wait()
			require.Equal(t, r.b.holding(), r.b.counted())
		})
}

// A hook replaces a filter that the client has subscribed to before, when the hook did not: with a
// Store, before the program had the hook. Then the client must not keep what it had.
func TestAFilterThatAHookReplacesLaterIsLeft(t *testing.T) {
	by := map[string]string{}
	withRules(t, everything, func(c *Config) { c.SubscribeInterceptor = replacing(by) },
		func(r *guardRig) {
			c := r.connect(as("c", "u"))
			for _, f := range []string{"#", "$share/g/a"} {
				by[f] = f
				c.subscribe(f, 0)
			}
			by["#"], by["$share/g/a"] = "x", "$share/g/y"
			c.subscribe("#", 0)
			c.subscribe("$share/g/a", 0)
			require.Equal(t, []string{"$share/g/y", "x"}, r.filters("c"))
			require.Equal(t, packets.Success, c.unsubscribe("#"))
			require.Equal(t, packets.Success, c.unsubscribe("$share/g/a"))
			require.Empty(t, r.filters("c"))

			by["a"], by["x"] = "x", "y" // the client has x only in the place of a
			c.subscribe("a", 0)
			c.subscribe("x", 0)
			require.Equal(t, []string{"x", "y"}, r.filters("c"))
			c.close()
		})
}

func TestAReplacedSubscriptionIsRevokedAndDecidedAsWhatItIs(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.SubscribeInterceptor = replacing(map[string]string{"#": "secret/#", "ok": "open"})
	}, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		c.subscribe("#", 0)
		c.subscribe("ok", 0)
		r.rules.Set(rulesOf(t, "deny all secret/#", "allow all #"))
		synctest.Wait()
		require.Equal(t, []string{"open"}, r.filters("c"))
		r.told("revoked c secret/#")
		info, _ := r.b.Session("c")
		require.Equal(t, map[string]string{"ok": "open"}, info.Replaced)
		require.Equal(t, packets.NotAuthorized, c.subscribe("#", 0))
		require.Equal(t, []string{"open"}, r.filters("c"))
		c.close()
	})
}

func TestWhatASubscribeInterceptorMustNotReturn(t *testing.T) {
	long := strings.Repeat("x", 70_000)
	for name, s := range map[string]*packets.Subscription{
		"nothing":                     nil,
		"no filter":                   {},
		"no valid filter":             {Filter: "a/#/b"},
		"a filter that is not UTF-8":  {Filter: "a\xff"},
		"a filter with U+0000":        {Filter: "a\x00b"},
		"a filter that is too long":   {Filter: long},
		"too many levels":             {Filter: strings.Repeat("+/", 200) + "#"},
		"no valid shared filter":      {Filter: "$share/g"},
		"a ShareName with U+0000":     {Filter: "$share/a\x00b/c"},
		"a ShareName that is not UTF": {Filter: "$share/\xff/c"},
		"a higher QoS":                {Filter: "a", QoS: 2},
		"no Retain Handling":          {Filter: "a", RetainHandling: 3},
		"No Local of a shared filter": {Filter: "$share/g/a", NoLocal: true},
	} {
		t.Run(name, func(t *testing.T) {
			hook := hooks.SubscribeInterceptorFunc(func(context.Context, *hooks.Client,
				*packets.Subscription) (*packets.Subscription, error) {
				return s, nil
			})
			withRules(t, everything, func(c *Config) { c.SubscribeInterceptor = hook },
				func(r *guardRig) {
					c := r.connect(as("c", "u"))
					require.Equal(t, packets.NotAuthorized, c.subscribe("mine", 1))
					require.Empty(t, r.filters("c"))
					r.told("denied c subscribe mine")
					c.close()
				})
		})
	}
	t.Run("an error", func(t *testing.T) {
		said := error(packets.Errorf(packets.QuotaExceeded, "enough"))
		hook := hooks.SubscribeInterceptorFunc(func(_ context.Context, _ *hooks.Client,
			s *packets.Subscription) (*packets.Subscription, error) {
			if s.Filter == "fine" {
				return s, nil
			}
			return nil, said
		})
		withRules(t, everything, func(c *Config) { c.SubscribeInterceptor = hook },
			func(r *guardRig) {
				c := r.connect(as("c", "u"))
				c.send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{
					{Filter: "a"}, {Filter: "fine"}}})
				require.Equal(t, []packets.ReasonCode{packets.QuotaExceeded, 0},
					c.recv().(*packets.Suback).Codes, "each is decided by itself")
				said = errors.New("the database is down")
				require.Equal(t, packets.NotAuthorized, c.subscribe("a", 0))
				require.Equal(t, []string{"fine"}, r.filters("c"))
				c.close()
			})
	})
	t.Run("a panic ends the connection", func(t *testing.T) {
		hook := hooks.SubscribeInterceptorFunc(func(context.Context, *hooks.Client,
			*packets.Subscription) (*packets.Subscription, error) {
			panic("hook")
		})
		withRules(t, everything, func(c *Config) { c.SubscribeInterceptor = hook },
			func(r *guardRig) {
				c := r.connect(as("c", "u"))
				c.send(&packets.Subscribe{PacketID: 1,
					Subscriptions: []packets.Subscription{{Filter: "a"}}})
				require.IsType(t, &packets.Disconnect{}, c.recv())
				require.EqualValues(t, 1, r.b.Stats().Panics)
				g, client := new(hooks.Grant), &hooks.Client{ID: "v"}
				require.Error(t, r.b.MayRead(t.Context(), client, g, "a"), "a panic refuses a visitor")
				c.nc.Close()
			})
	})
}

func TestAVisitorMayReadWhatTheSubscribeInterceptorLeaves(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.SubscribeInterceptor = replacing(map[string]string{"#": "open/#"})
	}, func(r *guardRig) {
		g, client := new(hooks.Grant), &hooks.Client{ID: "v"}
		require.NoError(t, r.b.MayRead(t.Context(), client, g, "open/#"))
		err := r.b.MayRead(t.Context(), client, g, "#")
		require.Equal(t, packets.NotAuthorized, packets.CodeOf(err))
		require.ErrorContains(t, err, `"open/#" is allowed instead`)
	})
}

func TestReplacedFiltersAreBounded(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.MaxSubscriptions = 3
		c.SubscribeInterceptor = replacing(map[string]string{"a": "x", "b": "x", "c": "x", "d": "x"})
	}, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		for _, f := range []string{"a", "b", "c", "b"} {
			require.Equal(t, packets.GrantedQoS0, c.subscribe(f, 0))
		}
		require.Equal(t, packets.QuotaExceeded, c.subscribe("d", 0), "they are one subscription")
		require.Equal(t, packets.Success, c.unsubscribe("a"))
		require.Equal(t, packets.GrantedQoS0, c.subscribe("d", 0))
		c.close()
	})
}

func TestReplacedFiltersAfterARestart(t *testing.T) {
	st := new(memory.Store)
	by := map[string]string{"a": "x", "b": "x", "c": "y"}
	with := func(c *Config) { c.Store, c.SubscribeInterceptor = st, replacing(by) }
	withRules(t, everything, with, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		for _, f := range []string{"a", "b", "c"} {
			c.subscribe(f, 1)
		}
		c.unsubscribe("b")
		c.close()
	})
	by = nil // the rules have changed: what the Session has stays
	require.NoError(t, st.Open())
	withRules(t, everything, with, func(r *guardRig) {
		info, ok := r.b.Session("c")
		require.True(t, ok)
		require.Equal(t, map[string]string{"a": "x", "c": "y"}, info.Replaced)
		require.Equal(t, r.b.holding(), r.b.counted())
		c, p := r.connect(as("c", "u")), r.connect(as("p", "u"))
		p.publish("x", "", false)
		c.message("x")
		require.Equal(t, packets.Success, c.unsubscribe("a"))
		require.Equal(t, packets.GrantedQoS1, c.subscribe("c", 1))
		require.Equal(t, []string{"c"}, r.filters("c"))
		c.close()
		p.close()
	})
	require.NoError(t, st.Open())
	withRules(t, everything, with, func(r *guardRig) {
		require.Equal(t, []string{"c"}, r.filters("c"))
		info, _ := r.b.Session("c")
		require.Empty(t, maps.Clone(info.Replaced))
	})
}

func TestAReplacedFilterIsTakenBackIfTheStoreFails(t *testing.T) {
	var full atomic.Bool
	st := &faultStore{Store: new(memory.Store), before: func([]store.Op) error {
		if full.Load() {
			return store.ErrFull
		}
		return nil
	}}
	by := map[string]string{"a": "x", "plain": "plain"}
	with := func(c *Config) { c.Store, c.SubscribeInterceptor = st, replacing(by) }
	want := map[string]string{"a": "x"}
	withRules(t, everything, with, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		require.Equal(r.t, packets.GrantedQoS1, c.subscribe("a", 1))
		require.Equal(r.t, packets.GrantedQoS1, c.subscribe("plain", 1))
		by["a"], by["b"], by["c"], by["plain"] = "y", "z", "x", "w"
		for _, f := range []string{"a", "b", "c", "plain"} {
			full.Store(true)
			require.True(r.t, c.subscribe(f, 1).Failed(), f)
			full.Store(false)
			time.Sleep(time.Minute) // the journal tries again
			info, _ := r.b.Session("c")
			require.Equal(r.t, want, info.Replaced, f)
			require.Equal(r.t, []string{"plain", "x"}, r.filters("c"))
		}
		c.close()
	})
}

// refusesAdditions is a store that is full: it takes what makes room.
func refusesAdditions(ops []store.Op) error {
	if store.Adds(ops) {
		return store.ErrFull
	}
	return nil
}

// A full store takes operations that remove and refuses those that add. The note of the old filter
// must not be removed while that of the new one is refused.
func TestWhatAFullStoreRefusesOfAReplacedFilterIsThereAfterACrash(t *testing.T) {
	for name, x := range map[string]struct {
		first, then []string          // what the client writes before the store is full, and then
		by          map[string]string // what the hook makes of it then
		last        []string          // what the client writes when there is room again
		want        map[string]string // wrote -> what it has at the end, a second crash later
		left        []string          // what is left when each of first is unsubscribed but the last
	}{
		"another filter": {first: []string{"b", "a"}, then: []string{"a"},
			by: map[string]string{"a": "y"}, want: map[string]string{"a": "x", "b": "x"},
			left: []string{"x"}},
		"another filter, twice": {first: []string{"b", "a"}, then: []string{"a", "a"},
			by: map[string]string{"a": "y"}, want: map[string]string{"a": "x", "b": "x"},
			left: []string{"x"}},
		"no other filter any more": {first: []string{"b", "a"}, then: []string{"a"},
			by: map[string]string{"a": "a"}, want: map[string]string{"a": "x", "b": "x"},
			left: []string{"x"}},
		"a filter that the client also wrote": {first: []string{"x"}, then: []string{"a"},
			by: map[string]string{"a": "x"}, last: []string{"a"},
			want: map[string]string{"a": "x"}, left: []string{"x"}},
	} {
		t.Run(name, func(t *testing.T) {
			st := &faultStore{Store: new(memory.Store)}
			by := map[string]string{"a": "x", "b": "x"}
			with := func(c *Config) { c.Store, c.SubscribeInterceptor = st, replacing(by) }
			withRules(t, everything, with, func(r *guardRig) {
				c := r.connect(as("c", "u"))
				for _, f := range x.first {
					require.Equal(r.t, packets.GrantedQoS1, c.subscribe(f, 1))
				}
				maps.Copy(by, x.by)
				st.mu.Lock()
				st.before = refusesAdditions
				st.mu.Unlock()
				for _, f := range x.then {
					require.True(r.t, c.subscribe(f, 1).Failed())
				}
				st.fail(nil)
				time.Sleep(time.Minute) // the journal tries again
				for _, f := range x.last {
					require.Equal(r.t, packets.GrantedQoS1, c.subscribe(f, 1))
				}
				info, _ := r.b.Session("c")
				require.Equal(r.t, x.want, info.Replaced, "in memory")
				require.NoError(r.t, r.b.journal.Sync(t.Context()))
				st = st.kill()
			})
			withRules(t, everything, with, func(r *guardRig) {
				info, _ := r.b.Session("c")
				require.Equal(r.t, x.want, info.Replaced, "after the crash")
				c := r.connect(as("c", "u"))
				require.Equal(r.t, packets.Success, c.unsubscribe("a"))
				require.Equal(r.t, x.left, r.filters("c"))
				c.close()
			})
		})
	}
}

// The same filter twice in one SUBSCRIBE that the store refuses: the subscription is what it was.
func TestARefusedSubscribeWithAFilterTwiceLeavesTheSubscription(t *testing.T) {
	st := &faultStore{Store: new(memory.Store)}
	by := map[string]string{"a": "x"}
	with := func(c *Config) { c.Store, c.SubscribeInterceptor = st, replacing(by) }
	withRules(t, everything, with, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		require.Equal(r.t, packets.GrantedQoS2, c.subscribe("f", 2))
		require.Equal(r.t, packets.GrantedQoS2, c.subscribe("a", 2))
		by["a"] = "y"
		st.mu.Lock()
		st.before = refusesAdditions
		st.mu.Unlock()
		c.send(&packets.Subscribe{PacketID: 7, Subscriptions: []packets.Subscription{
			{Filter: "f"}, {Filter: "f", QoS: 1}, {Filter: "a"}, {Filter: "a"}, {Filter: "x"}}})
		for _, code := range c.recv().(*packets.Suback).Codes {
			require.True(r.t, code.Failed())
		}
		info, _ := r.b.Session("c")
		require.Equal(r.t, map[string]string{"a": "x"}, info.Replaced)
		require.Equal(r.t, []string{"f", "x"}, r.filters("c"))
		for _, s := range info.Subscriptions {
			require.Equal(r.t, packets.QoS2, s.QoS, s.Filter)
		}
		c.close()
	})
}

// What an UNSUBSCRIBE removes of many notes is more than one batch takes. A crash between two
// batches must not leave the subscription without its notes: the client could not end it.
func TestACrashDuringUnsubscribeLeavesNoSubscriptionWithoutItsNotes(t *testing.T) {
	const notes = 600
	st := &faultStore{Store: new(memory.Store)}
	by := map[string]string{}
	wrote := make([]string, notes)
	for i := range wrote {
		wrote[i] = strings.Repeat("w", 60_000) + string(rune('a'+i%26)) + string(rune('a'+i/26))
		by[wrote[i]] = "x"
	}
	with := func(c *Config) { c.Store, c.SubscribeInterceptor = st, replacing(by) }
	withRules(t, everything, with, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		for _, f := range wrote {
			require.Equal(r.t, packets.GrantedQoS1, c.subscribe(f, 1))
		}
		var done atomic.Bool // the first batch
		st.mu.Lock()
		st.before = func(ops []store.Op) error {
			if done.Load() {
				return errKilled
			}
			done.Store(len(ops) > 0)
			return nil
		}
		st.mu.Unlock()
		c.send(&packets.Unsubscribe{PacketID: 8, Filters: []string{"x"}})
		time.Sleep(time.Second)
		require.True(r.t, done.Load())
		c.nc.Close()
		st = st.kill()
	})
	withRules(t, everything, with, func(r *guardRig) {
		require.Empty(r.t, r.filters("c"))
	})
}
