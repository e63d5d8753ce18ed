package dunlin

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// oneForAll lets one principal have all that there is: for tests of what all share.
func oneForAll(c *Config) {
	c.MaxSessionsPerPrincipal, c.MaxSubscriptionsPerPrincipal = -1, -1
	c.MaxConnectionsPerPrincipal = -1
	c.MaxRetainedPerPrincipal, c.MaxRetainedBytesPerPrincipal, c.MaxQueuedBytesPerPrincipal = -1,
		-1, -1
	c.MaxKeptBytesPerPrincipal = -1
}

// owned counts anew, by looking at everything, what each account should say when nothing is under
// way.
func (b *Broker) owned() map[string]owners.Limits {
	all := make(map[string]owners.Limits)
	add := func(name string, k owners.Kind, n int64) {
		l := all[name]
		l[k] += n
		all[name] = l
	}
	for _, s := range slices.Collect(b.allSessions()) {
		if s.inProcess() {
			continue
		}
		name := b.ownerName(s.principal, s.named)
		add(name, owners.Sessions, 1)
		s.mu.Lock()
		n := int64(s.bytesLocked(s.client, s.will))
		add(name, owners.Kept, placesCost(cap(s.out.flight))+int64(s.cursors.Bytes()))
		if s.conn != nil {
			n += int64(s.conn.cost())
			add(name, owners.Connections, 1)
			add(name, owners.Kept, int64(s.conn.readExtra().holdingAliases()))
		}
		add(name, owners.Kept, n)
		add(name, owners.Footprints, n)
		if s.num != 0 {
			b.tree.Each(s.num, func(group, filter string, _ subs.Options) bool {
				add(name, owners.Subscriptions, owners.Weight(group, filter))
				add(name, owners.Kept, owners.Weight(group, filter)*keptSubscription)
				return true
			})
		}
		s.out.queue.All(func(d *delivery) bool {
			add(name, owners.QueuedBytes, ownerSize(d.size()))
			return true
		})
		for i := range s.out.flight {
			if d := &s.out.flight[i]; d.msg != nil {
				add(name, owners.QueuedBytes, ownerSize(d.size()))
			}
		}
		s.mu.Unlock()
	}
	for m := range b.Retained("#") {
		m := b.retained.Get(m.Topic)
		if name, ok := b.ownerOf(m); ok {
			add(name, owners.Retained, 1)
			add(name, owners.RetainedBytes, retainedBytes(m))
			add(name, owners.Kept, retainedBytes(m)+keptRetained)
		}
	}
	return all
}

// owned is what the accounts say.
func (r *guardRig) owned() map[string]owners.Limits {
	all := make(map[string]owners.Limits)
	for _, name := range []string{"=u", "=v", "=p", "=all", ""} {
		a := r.b.owners.Open(name)
		var l owners.Limits
		for k := range owners.Kinds {
			l[k] = a.Used(k)
		}
		if l != (owners.Limits{}) {
			all[name] = l
		}
		r.b.owners.Close(a)
	}
	return all
}

// Each bound, by a client of either version: what is beyond is refused, what another user does is
// not, and what makes less of it gives room again.
func TestWhatOnePrincipalMayHave(t *testing.T) {
	for _, v := range []packets.Version{packets.V5, packets.V311} {
		by := func(id, user string) *packets.Connect {
			p := as(id, user)
			if p.Version = v; v < packets.V5 {
				p.Properties = nil
			}
			return p
		}
		// says is a Reason Code as that version has it.
		says := func(v5, v311 packets.ReasonCode) packets.ReasonCode {
			if v == packets.V5 {
				return v5
			}
			return v311
		}
		for name, run := range boundsOfPrincipals {
			t.Run(fmt.Sprint(name, ", ", v), func(t *testing.T) {
				withRules(t, everything, func(c *Config) {
					c.MaxSessionsPerPrincipal, c.MaxSubscriptionsPerPrincipal = 3, 4
					c.MaxRetainedPerPrincipal, c.MaxRetainedBytesPerPrincipal = 2, 1000
					c.MaxQueuedBytesPerPrincipal = 2000
				}, func(r *guardRig) {
					run(&principalRig{r, by, says})
					synctest.Wait()
					require.Equal(t, r.b.owned(), r.owned())
				})
			})
		}
	}
}

type principalRig struct {
	*guardRig
	by   func(id, user string) *packets.Connect
	says func(v5, v311 packets.ReasonCode) packets.ReasonCode
}

var boundsOfPrincipals = map[string]func(r *principalRig){
	"sessions": func(r *principalRig) {
		a, b, c := r.connect(r.by("a", "u")), r.connect(r.by("b", "u")), r.connect(r.by("c", "u"))
		c.close()
		full := r.says(packets.QuotaExceeded, packets.ServerUnavailable)
		r.refused(r.by("d", "u"), full)
		r.connect(r.by("d", "v")).close()
		a2 := r.connect(r.by("a", "u")) // takes its own over
		fresh := r.by("b", "u")
		fresh.CleanStart = true
		b2 := r.connect(fresh) // and begins its own anew
		r.refused(r.by("e", "u"), full)
		require.True(r.t, deletes(r.t, r.b, "c"))
		c = r.connect(r.by("e", "u"))
		r.refused(r.by("f", "u"), full)
		for _, x := range []*testClient{a, b, a2, b2, c} {
			x.close()
		}
	},
	"connections": func(r *principalRig) {
		_, err := r.b.Reconfigure(Config{MaxSessionsPerPrincipal: -1,
			MaxConnectionsPerPrincipal: 2})
		require.NoError(r.t, err)
		a, b := r.connect(r.by("a", "u")), r.connect(r.by("b", "u"))
		full := r.says(packets.QuotaExceeded, packets.ServerUnavailable)
		r.refused(r.by("c", "u"), full)
		r.connect(r.by("x", "v")).close()
		a2 := r.connect(r.by("a", "u")) // takes its own over
		fresh := r.by("b", "u")
		fresh.CleanStart = true
		b2 := r.connect(fresh) // and begins its own anew
		r.refused(r.by("c", "u"), full)
		a2.close() // the Session stays, the connection is free
		c := r.connect(r.by("d", "u"))
		r.refused(r.by("a", "u"), full)
		require.True(r.t, deletes(r.t, r.b, "d"))
		a3 := r.connect(r.by("a", "u"))
		r.refused(r.by("d", "u"), full)
		for _, x := range []*testClient{a, b, a2, b2, c, a3} {
			x.close()
		}
	},
	"a Session that ends with its connection gives its place back": func(r *principalRig) {
		for i := range 5 {
			p := r.by(fmt.Sprint(i), "u")
			p.CleanStart, p.Properties = true, nil
			c := r.connect(p)
			require.False(r.t, c.subscribe("a/#", 1).Failed())
			c.send(&packets.Disconnect{})
			c.close()
		}
	},
	"subscriptions": func(r *principalRig) {
		a, b := r.connect(r.by("a", "u")), r.connect(r.by("b", "u"))
		for i := range 2 {
			require.False(r.t, a.subscribe(fmt.Sprint(i), 1).Failed())
			require.False(r.t, b.subscribe(fmt.Sprint(i), 1).Failed())
		}
		full := r.says(packets.QuotaExceeded, packets.UnspecifiedError) // Failure
		require.Equal(r.t, full, a.subscribe("new", 1))
		require.Equal(r.t, full, b.subscribe("$share/g/new", 1))
		require.Equal(r.t, packets.GrantedQoS2, a.subscribe("1", 2), "it is there already")
		require.False(r.t, r.connect(r.by("c", "v")).subscribe("new", 1).Failed(),
			"of another user")
		b.send(&packets.Unsubscribe{PacketID: 5, Filters: []string{"0"}})
		require.IsType(r.t, &packets.Unsuback{}, b.recv())
		long := strings.Repeat("x", 150)
		require.Equal(r.t, full, a.subscribe(long, 1), "it counts as two")
		require.Equal(r.t, full, a.subscribe("$share/"+long+"/x", 1), "so does that")
		require.False(r.t, a.subscribe("new", 1).Failed())
		require.True(r.t, deletes(r.t, r.b, "b"))
		require.Equal(r.t, full, a.subscribe(long, 1), "there is room for one")
		require.False(r.t, a.subscribe("another", 1).Failed())
		a.close()
		b.nc.Close()
	},
	"retained messages": func(r *principalRig) {
		a, other := r.connect(r.by("a", "u")), r.connect(r.by("o", "v"))
		for i := range 2 {
			require.False(r.t, a.publish(fmt.Sprint(i), "x", true).Failed())
		}
		r.unretained(a, "new", "x")
		a = r.connect(r.by("a", "u"))
		require.False(r.t, a.publish("1", "a longer one", true).Failed(), "in its place")
		require.False(r.t, other.publish("1", "of another user", true).Failed())
		require.False(r.t, a.publish("new", "x", true).Failed(), "the place is free")
		r.unretained(a, "1", "y")
		a = r.connect(r.by("a", "u"))
		require.False(r.t, a.publish("0", "", true).Failed(), "a removal")
		require.False(r.t, a.publish("1", "y", true).Failed())
		a.close()
		other.close()
	},
	"bytes of retained messages": func(r *principalRig) {
		a, other := r.connect(r.by("a", "u")), r.connect(r.by("o", "v"))
		require.False(r.t, a.publish("0", strings.Repeat("x", 900), true).Failed())
		r.unretained(a, "1", strings.Repeat("x", 100))
		a = r.connect(r.by("a", "u"))
		require.False(r.t, other.publish("1", strings.Repeat("x", 900), true).Failed(),
			"of another user")
		require.False(r.t, a.publish("0", strings.Repeat("x", 899), true).Failed(), "a smaller one")
		r.unretained(a, "1", strings.Repeat("x", 800))
		a = r.connect(r.by("a", "u"))
		require.False(r.t, a.publish("2", strings.Repeat("x", 99), true).Failed(), "the last bytes")
		a.close()
		other.close()
	},
	"retained Wills": func(r *principalRig) {
		sub := r.connect(r.by("o", "v"))
		require.False(r.t, sub.subscribe("#", 0).Failed())
		for i := range 3 {
			p := r.by("a", "u")
			p.CleanStart, p.Properties = true, nil
			p.Will = &packets.Will{Topic: fmt.Sprint("w/", i), Payload: []byte("x"), Retain: true}
			r.connect(p).close()
			sub.message(p.Will.Topic)
		}
		require.Equal(r.t, 2, r.b.Stats().Retained, "the third was only delivered")
		sub.close()
	},
	"queued bytes": func(r *principalRig) {
		a, b := r.connect(r.by("a", "u")), r.connect(r.by("b", "u"))
		a.subscribe("a", 1)
		b.subscribe("b", 1)
		other, p := r.connect(r.by("o", "v")), r.connect(r.by("p", "p"))
		other.subscribe("b", 1)
		other.close()
		a.close()
		b.close()
		payload := strings.Repeat("x", 800) // 993 with its place
		p.publish("a", payload, false)
		p.publish("b", payload, false)
		p.publish("b", "2", false)
		r.told("dropped b b: queue full")
		b = r.connect(r.by("b", "u"))
		require.Equal(r.t, "2", string(b.message("b").Payload), "the oldest has made room")
		a = r.connect(r.by("a", "u"))
		require.Len(r.t, a.message("a").Payload, 800, "of the same queue alone")
		other = r.connect(r.by("o", "v"))
		require.Len(r.t, other.message("b").Payload, 800, "nor of another user")
		other.message("b")
		for _, c := range []*testClient{a, b, other, p} {
			c.close()
		}
	},
	"what is not acknowledged counts as queued": func(r *principalRig) {
		a, p := r.connect(r.by("a", "u")), r.connect(r.by("p", "p"))
		a.subscribe("a", 1)
		for i := range 3 {
			p.publish("a", strings.Repeat("x", 800)+fmt.Sprint(i), false)
		}
		r.told("dropped a a: queue full")
		first, second := a.recv().(*packets.Publish), a.recv().(*packets.Publish)
		a.nothing("the third")
		a.send(&packets.Ack{Kind: packets.TypePuback, PacketID: first.PacketID})
		a.send(&packets.Ack{Kind: packets.TypePuback, PacketID: second.PacketID})
		a.nothing("there is nothing else")
		p.publish("a", strings.Repeat("x", 800)+"4", false)
		a.message("a")
		a.close()
		p.close()
	},
}

// unretained publishes a retained message that is refused, which ends the connection of a client
// before 5.0.
func (r *principalRig) unretained(c *testClient, topic, payload string) {
	r.t.Helper()
	if c.v == packets.V5 {
		require.Equal(r.t, packets.QuotaExceeded, c.publish(topic, payload, true))
	} else {
		c.send(&packets.Publish{QoS: 1, PacketID: 7, Topic: []byte(topic), Payload: []byte(payload),
			Retain: true})
		_, err := c.r.ReadPacket()
		require.Error(r.t, err)
	}
	c.close()
}

// With default settings one user takes all that it can get of everything. Another one still
// connects, subscribes, publishes, has messages retained and finds what was queued for it.
func TestOneUserDoesNotLockTheOthersOut(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.MaxMemory, c.MaxSessions, c.MaxRetained = 2<<20, 40, 40 // the rest follows from these
	}, func(r *guardRig) {
		before := r.connect(as("before", "v"))
		require.False(t, before.subscribe("v/#", 1).Failed())
		before.close()
		p := r.connect(as("p", "v"))
		require.False(t, p.publish("v/before", "x", false).Failed())

		var greedy []*testClient
		for {
			c, ack := newTestClient(t, dial(t, r.l), as(fmt.Sprint("c", len(greedy)), "u"))
			greedy = append(greedy, c)
			if ack.Code == packets.QuotaExceeded {
				break
			}
			require.Equal(t, packets.Success, ack.Code)
		}
		require.Len(t, greedy, 31, "three quarters, and the one that was refused")
		taken := 0
		for _, c := range greedy[:30] {
			for !c.subscribe(fmt.Sprint("u/", taken), 1).Failed() {
				taken++
			}
		}
		require.Positive(t, taken)
		require.True(t, deletes(r.t, r.b, "c0"))
		require.False(t, greedy[1].subscribe("all/#", 1).Failed())
		for i := range 60 {
			greedy[2].publish(fmt.Sprint("r/", i), strings.Repeat("x", 20_000), true)
		}
		for _, c := range greedy {
			c.close()
		}
		for i := range 200 {
			p.publish(fmt.Sprint("all/", i), strings.Repeat("x", 20_000), false)
		}

		c := r.connect(as("c", "v"))
		require.False(t, c.subscribe("w", 1).Failed())
		require.False(t, p.publish("w", "x", true).Failed())
		c.message("w")
		before = r.connect(as("before", "v"))
		before.message("v/before")
		for _, c := range []*testClient{c, p, before} {
			c.close()
		}
	})
}

// One user fills memory with all that stays: retained messages, subscriptions that take a lot,
// Topic Aliases and long names. Another one has room for each of them.
func TestWhatStaysOfOneUserLeavesRoomForOthers(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxMemory = 2 << 20 }, func(r *guardRig) {
		all := []*testClient{r.connect(as("first", "u"))}
		u := all[0]
		retain := func(c *testClient, topic string) packets.ReasonCode {
			return c.publish(topic, strings.Repeat("x", 10_000), true)
		}
		deep := func(i int) string { return fmt.Sprint(i, strings.Repeat("/+", 30)) }
		alias := func(c *testClient) (refused bool) {
			c.send(&packets.Publish{Topic: []byte(strings.Repeat("x", 60_000)),
				Properties: packets.Properties(nil).AppendUint(packets.TopicAlias, 1)})
			c.send(&packets.Pingreq{})
			p, err := c.r.ReadPacket()
			return err != nil || p.Type() != packets.TypePingresp
		}
		long := func(i int) string { return fmt.Sprint(i, strings.Repeat("c", 5000)) }
		n := 0
		for ; n < 20 && !retain(u, fmt.Sprint("r/", n)).Failed(); n++ {
		}
		for n = 0; !u.subscribe(deep(n), 0).Failed(); n++ {
			require.Less(t, n, 500)
		}
		for range 50 {
			c, ack := newTestClient(t, dial(t, r.l), as(long(len(all)), "u"))
			all = append(all, c)
			if ack.Code.Failed() || alias(c) {
				break
			}
		}
		require.Less(t, len(all), 50, "in the end one is refused")
		synctest.Wait()

		v := r.connect(as(long(0), "v"))
		require.False(t, retain(v, "v").Failed())
		require.False(t, v.subscribe(deep(0), 0).Failed())
		require.False(t, alias(v))
		back := r.connect(as("first", "u"))
		require.False(t, back.publish("r/0", "", true).Failed(), "who has too much can give it up")
		synctest.Wait()
		require.Equal(t, r.b.owned(), r.owned())
		for _, c := range append(all, v, back) {
			c.close()
		}
	})
}

// withWill is as, with a Session that stays and a Will of n bytes that waits for its end.
func withWill(id, user string, n int) *packets.Connect {
	p := as(id, user)
	p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 7*86_400)
	p.Will = &packets.Will{Topic: "w", Payload: make([]byte, n),
		Properties: packets.Properties(nil).AppendUint(packets.WillDelayInterval, 7*86_400)}
	return p
}

// One user opens Sessions with large Wills until it is refused, and leaves them behind. Others
// still have room for everything, and the user cannot make its Sessions larger in any other way.
func TestSessionsWithLargeWillsOfOneUserLeaveRoomForOthers(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxMemory = 4 << 20 }, func(r *guardRig) {
		come := func(p *packets.Connect) bool {
			c, ack := newTestClient(t, dial(t, r.l), p)
			require.Contains(t, []packets.ReasonCode{packets.Success, packets.QuotaExceeded},
				ack.Code)
			c.close()
			synctest.Wait()
			return ack.Code == packets.Success
		}
		id := func(i int) string { return fmt.Sprint("c", i) }
		for i := range 20 {
			require.True(t, come(withWill(id(i), "u", 1)))
		}
		n := 20
		for ; come(withWill(id(n), "u", 7000)); n++ {
			require.Less(t, n, 1000)
		}
		u := r.b.owners.Open("=u")
		defer r.b.owners.Close(u)
		require.Greater(t, n, 100)
		require.LessOrEqual(t, u.Used(owners.Kept), int64(4<<20)/100*37)
		synctest.Wait()
		require.Equal(t, r.b.owned(), r.owned())
		for i := range 20 {
			anew := withWill(id(i), "u", 7000)
			anew.CleanStart = i%2 == 0
			come(anew)
		}
		require.LessOrEqual(t, u.Used(owners.Kept), int64(4<<20)/100*37, "larger Wills of the same")
		require.True(t, come(withWill(id(30), "u", 7000)), "no larger than it was")

		v := r.connect(withWill("v", "v", 7000))
		require.False(t, v.subscribe("v/#", 1).Failed())
		p := r.connect(as("p", "v"))
		require.False(t, p.publish("v/1", strings.Repeat("x", 10_000), true).Failed())
		v.message("v/1")
		p.close()
		synctest.Wait()
		require.Equal(t, r.b.owned(), r.owned())
		require.Equal(t, r.b.holding(), r.b.counted())
		v.close()
	})
}

// One account for all is no reason to drop messages while there is memory: a message that is in a
// thousand queues takes memory once.
func TestOneAccountForAllKeepsWhatHasRoom(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxMemory = 1 << 20 }, func(r *guardRig) {
		p := r.connect(as("p", "all"))
		for i := range 40 {
			c := r.connect(as(fmt.Sprint("c", i), "all"))
			require.False(t, c.subscribe("t", 1).Failed())
			c.close()
		}
		for range 20 {
			require.False(t, p.publish("t", strings.Repeat("x", 1000), false).Failed())
		}
		require.EqualValues(t, 40*20*(1000+1+64+messageCost), r.owned()["=all"][owners.QueuedBytes])
		require.Less(t, r.b.memory.Used(), int64(200_000))
		for i := range 40 {
			c := r.connect(as(fmt.Sprint("c", i), "all"))
			for range 20 {
				c.message("t")
			}
			c.close()
		}
		p.close()
	})
}

// What is loaded from the Store counts as before, for the principal that it was of.
func TestWhatPrincipalsHaveCountsAfterARestart(t *testing.T) {
	st := new(memory.Store)
	limits := func(c *Config) {
		c.Store = st
		c.MaxSessionsPerPrincipal, c.MaxSubscriptionsPerPrincipal, c.MaxRetainedPerPrincipal = 2, 2,
			2
		c.MaxQueuedBytesPerPrincipal = 2000
	}
	var want map[string]owners.Limits
	withRules(t, everything, limits, func(r *guardRig) {
		a, b := r.connect(as("a", "u")), r.connect(as("b", "u"))
		anonymous, other := r.connect(as("n", "-")), r.connect(as("o", "v"))
		a.subscribe("a", 1)
		b.subscribe("$share/g/b", 1)
		anonymous.subscribe("#", 1)
		require.False(t, a.publish("ra", "x", true).Failed())
		require.False(t, b.publish("rb", "x", true).Failed())
		anonymous.message("ra")
		anonymous.message("rb")
		b.close()
		anonymous.close()
		for i := range 3 {
			require.False(t, other.publish([]string{"a", "b", "ro"}[i], "x", i == 2).Failed())
		}
		a.recv() // in flight
		a.close()
		other.close()
		want = r.b.owned()
		require.Equal(t, want, r.owned())
		require.NotZero(t, want["=u"][owners.QueuedBytes])
		for name, l := range want { // what is loaded has neither User Name nor properties
			n := int64(len(strings.TrimPrefix(name, "=")) + len(as("", "-").Properties))
			l[owners.Kept] -= n * l[owners.Sessions]
			l[owners.Footprints] -= n * l[owners.Sessions]
			want[name] = l
		}
	})
	require.NoError(t, st.Open())
	withRules(t, everything, limits, func(r *guardRig) {
		require.Equal(t, want, r.b.owned())
		require.Equal(t, want, r.owned())
		r.refused(as("c", "u"), packets.QuotaExceeded)
		a := r.connect(as("a", "u"))
		a.message("a")
		require.Equal(t, packets.QuotaExceeded, a.subscribe("new", 1))
		require.Equal(t, packets.QuotaExceeded, a.publish("new", "x", true))
		require.False(t, a.publish("ra", "", true).Failed())
		require.False(t, a.publish("new", "x", true).Failed())
		a.close()
		for _, id := range []string{"a", "b", "n", "o"} {
			require.True(t, deletes(r.t, r.b, id))
		}
		for _, topic := range []string{"rb", "new", "ro"} {
			require.NoError(t, r.b.Publish(r.t.Context(), &Message{Topic: topic, Retain: true}))
		}
		require.Empty(t, r.owned())
		require.Zero(t, r.b.owners.Len())
	})
}

// What an Authenticator grants holds for the principal, until another connection of it brings
// something else.
func TestAnAuthenticatorLowersWhatAPrincipalMayHave(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			if q.Client.Username == "u" {
				q.Grant.Limits.Sessions, q.Grant.Limits.Subscriptions, q.Grant.Limits.Retained = 1,
					1, 1
			}
			return nil
		}
		a := r.connect(as("a", "u"))
		r.refused(as("b", "u"), packets.QuotaExceeded)
		require.False(t, a.subscribe("1", 1).Failed())
		require.Equal(t, packets.QuotaExceeded, a.subscribe("2", 1))
		require.False(t, a.publish("r1", "x", true).Failed())
		require.Equal(t, packets.QuotaExceeded, a.publish("r2", "x", true))
		a.close()
		r.grant = nil
		a = r.connect(as("a", "u"))
		require.False(t, a.subscribe("2", 1).Failed())
		require.False(t, a.publish("r2", "x", true).Failed())
		r.connect(as("b", "u")).close()
		a.close()
		time.Sleep(2000 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, r.b.owners.Len(),
			"the Sessions have ended, the retained messages have not")
		require.EqualValues(t, 0, r.owned()["=u"][owners.Sessions])
	})
}

// With AllowAll a name is what a client likes it to be: nothing is counted unless Config says so,
// and then for all clients together.
func TestWithAllowAllAllClientsAreOnePrincipal(t *testing.T) {
	b := newTestBroker(t, nil)
	require.Nil(t, b.owners)
	require.NoError(t, b.Close())
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, func(c *Config) { c.MaxSessionsPerPrincipal = 2 })
		l, done := serveMemory(t, b)
		r := &guardRig{t: t, b: b, l: l}
		x, y := r.connect(as("x", "u")), r.connect(as("y", "v"))
		r.refused(as("z", "w"), packets.QuotaExceeded)
		x2 := r.connect(as("x", "somebody else"))
		r.refused(as("z", "w"), packets.QuotaExceeded)
		for _, c := range []*testClient{x, y, x2} {
			c.close()
		}
		done()
	})
}

// A client that resumed its Session was refused, because the store had no room. Its connection is
// not counted any more.
func TestARefusedConnectionIsNotCounted(t *testing.T) {
	onStage(t, func(st *stage) {
		st.cfg.Authenticator = users(nil)
		st.restart(func(c *Config) { c.MaxConnectionsPerPrincipal = 1 })
		p, _ := st.comes("a", "u", packets.V5)
		p.goes()
		st.store.refuse(func(op store.Op) bool { _, is := op.(*store.PutSession); return is })
		p = st.dial("a", packets.V5, false, 7200, named("u"))
		for _, x := range p.got() {
			a, ok := x.(*packets.Connack)
			require.False(t, ok && a.Code == packets.Success)
		}
		p.goes()
		st.roomAgain()
		a := st.b.owners.Open("=u")
		require.Zero(t, a.Used(owners.Connections))
		st.b.owners.Close(a)
	})
}
