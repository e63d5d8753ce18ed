package dunlin

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

func retainedMessage(topic, payload string) *message {
	return &message{Message: packets.Message{Topic: topic, Payload: []byte(payload)}}
}

// scanAll walks to the end in steps of limit and returns the topics found and the number of steps.
func (r *retainedStore) scanAll(tb testing.TB, filter string, limit int) (topics []string, steps int) {
	after, done := "", false
	for !done {
		var out []*message
		last := after
		out, after, done = r.scan(filter, after, limit, nil)
		require.LessOrEqual(tb, len(out), limit)
		require.True(tb, done || after > last, "a scan that is not done gets on")
		for _, m := range out {
			topics = append(topics, m.Topic)
		}
		steps++
	}
	return topics, steps
}

func TestRetainedStore(t *testing.T) {
	r := newRetainedStore()
	require.Nil(t, r.get("a"))
	require.Nil(t, r.remove("a"))
	m := retainedMessage("a", "123")
	m.Properties = packets.Properties{1, 1}
	require.Nil(t, r.set(m))
	require.Nil(t, r.set(retainedMessage("b/c", "")))
	require.Same(t, m, r.get("a"))
	require.Equal(t, 2, r.len())
	require.EqualValues(t, 1+3+2+3, r.bytes(), "topics, payloads and properties count")
	m2 := retainedMessage("a", "12345")
	require.Same(t, m, r.set(m2), "set returns what it replaces")
	require.EqualValues(t, 1+5+3, r.bytes())
	require.False(t, r.removeExactly(m), "a message that was replaced does not take its successor along")
	require.Same(t, m2, r.get("a"))
	require.True(t, r.removeExactly(m2))
	require.False(t, r.removeExactly(m2), "it is gone already")
	require.Same(t, r.get("b/c"), r.remove("b/c"))
	require.Zero(t, r.len())
	require.Zero(t, r.bytes())
}

func TestRetainedScan(t *testing.T) {
	topics := []string{"$SYS/a", "$a", "/", "/x", "a", "a!", "a!/b", "a-b", "a-b/c", "a/", "a/b", "a/b-c", "a/b-c/d", "a/b/c", "a/b/c/d",
		"a0", "a0/b", "b", "b/b", "b/b/c", "b/b0", "b/c", "b/c/b", "c/b", "~/b", "ä/b"}
	r := newRetainedStore()
	for _, i := range rand.Perm(len(topics)) {
		r.set(retainedMessage(topics[i], "x"))
	}
	for _, tt := range []struct{ name, filter, want string }{
		{"a filter without wildcards finds its topic", "a/b", "a/b"},
		{"a filter without wildcards may find nothing", "a/x", ""},
		{"# finds all but those that begin with $ [MQTT-4.7.2-1]", "#", strings.Join(topics[2:], " ")},
		{"a/# finds a and what is below, and not what only sorts between", "a/#", "a a/ a/b a/b-c a/b-c/d a/b/c a/b/c/d"},
		{"a/+ finds one level, and steps over what is below", "a/+", "a/ a/b a/b-c"},
		{"+ finds single levels", "+", "a a! a-b a0 b"},
		{"+/b steps from one first level to the next", "+/b", "a!/b a/b a0/b b/b c/b ~/b ä/b"},
		{"+/b/# finds the parents, too", "+/b/#", "a!/b a/b a/b/c a/b/c/d a0/b b/b b/b/c c/b ~/b ä/b"},
		{"+/+/c finds the third level", "+/+/c", "a/b/c b/b/c"},
		{"+/b/+ finds what is below some", "+/b/+", "a/b/c b/b/c"},
		{"/+ has an empty first level", "/+", "/ /x"},
		{"+/+ also finds empty levels", "+/+", "/ /x a!/b a-b/c a/ a/b a/b-c a0/b b/b b/b0 b/c c/b ~/b ä/b"},
		{"a named $ level is found", "$SYS/#", "$SYS/a"},
		{"+/a finds nothing below $SYS", "+/a", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var want []string
			if tt.want != "" {
				want = strings.Fields(tt.want)
			}
			for _, limit := range []int{1, 2, 3, 100} {
				got, _ := r.scanAll(t, tt.filter, limit)
				require.Empty(t, cmp.Diff(want, got), "in steps of %d", limit)
			}
		})
	}
	t.Run("dst is appended to", func(t *testing.T) {
		first := retainedMessage("first", "")
		out, _, _ := r.scan("a/b", "", 10, []*message{first})
		require.Len(t, out, 2)
		require.Same(t, first, out[0])
	})
	t.Run("a scan that has filled its limit with the last topic may be done", func(t *testing.T) {
		out, next, done := r.scan("ä/+", "", 1, nil)
		require.Len(t, out, 1)
		require.True(t, done)
		require.Equal(t, "ä/b", next)
	})
	t.Run("after leaves out a topic that the filter names", func(t *testing.T) {
		out, _, done := r.scan("a/b", "a/b", 1, nil)
		require.Empty(t, out)
		require.True(t, done)
	})
}

func TestRetainedScanAgainstReference(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	levels := []string{"", "a", "a-", "a0", "b", "b!", "c", "$x"}
	random := func(wild bool) string {
		var s []string
		for n := 1 + rnd.IntN(4); n > 0; n-- {
			switch x := rnd.IntN(12); {
			case wild && x < 3:
				s = append(s, "+")
			case wild && x == 3:
				return strings.Join(append(s, "#"), "/")
			default:
				s = append(s, levels[rnd.IntN(len(levels))])
			}
		}
		if s := strings.Join(s, "/"); s != "" {
			return s
		}
		return "a"
	}
	for range 40 {
		r, model := newRetainedStore(), map[string]*message{}
		bytes := 0
		for range 300 {
			topic := random(false)
			if rnd.IntN(4) == 0 {
				require.Same(t, model[topic], r.remove(topic))
				delete(model, topic)
			} else {
				m := retainedMessage(topic, topic)
				require.Same(t, model[topic], r.set(m))
				model[topic] = m
			}
		}
		for topic := range model {
			bytes += 2 * len(topic)
		}
		require.Equal(t, len(model), r.len())
		require.EqualValues(t, bytes, r.bytes())
		for range 100 {
			filter := random(true)
			var want []string
			for topic := range model {
				if packets.MatchTopic(filter, topic) {
					want = append(want, topic)
				}
			}
			slices.Sort(want)
			got, _ := r.scanAll(t, filter, 1+rnd.IntN(20))
			require.Empty(t, cmp.Diff(want, got), "scan of %q", filter)
		}
	}
}

func TestRetainedScanIsBounded(t *testing.T) {
	r := newRetainedStore()
	for i := range 50_000 {
		r.set(retainedMessage(fmt.Sprintf("d/%05d/x/%d", i/10, i%10), ""))
	}
	for _, tt := range []struct {
		name, filter string
		limit, found int
		steps        int // at most
	}{
		{"a filter that finds everything takes a step for each batch", "#", 100, 50_000, 501},
		{"a subtree is found at once", "d/00077/#", 100, 10, 1},
		{"a subtree that is not there is not looked for among the others", "d/00077x/#", 100, 0, 1},
		{"other subtrees are stepped over", "d/+/y/#", 100, 0, 2*5000/464 + 1},
		{"deep subtrees are stepped over", "d/+", 100, 0, 2*5000/464 + 1},
		{"what a filter picks from each subtree is found with few looks", "d/+/x/3", 100, 5000, 3*5000/464 + 60},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, steps := r.scanAll(t, tt.filter, tt.limit)
			require.Len(t, got, tt.found)
			require.LessOrEqual(t, steps, tt.steps)
		})
	}
}

func TestRetainedStoreWithWriters(t *testing.T) {
	r := newRetainedStore()
	for i := range 100 {
		r.set(retainedMessage(fmt.Sprintf("fixed/%d", i), ""))
	}
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Add(1)
		go func() { // waited for below
			defer wg.Done()
			for i := range 2000 {
				topic := fmt.Sprintf("fixed/%d/%d", i%100, w)
				r.set(retainedMessage(topic, "x"))
				r.remove(topic)
			}
		}()
	}
	for range 100 {
		got, _ := r.scanAll(t, "fixed/+", 7)
		require.Len(t, got, 100, "what nobody touches is found, whatever happens around it")
	}
	wg.Wait()
	require.Equal(t, 100, r.len())
}

// Who subscribes between the moment that a publisher knows who gets its message and the one in which that becomes the retained one finds the
// retained message before it, and has to get this one.
func TestASubscribeDoesNotMissWhatBecomesRetained(t *testing.T) {
	for _, stored := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newTestBroker(t, func(c *Config) {
				if stored {
					c.Store = new(memory.Store)
				}
			})
			l, done := serveMemory(t, b)
			c, _ := newTestClient(t, dial(t, l), connect("c"))
			publisher := b.getTurn()
			publisher.now = time.Now()
			publisher.route.fill(publisher, []byte("t"), 0)
			c.subscribe("t", packets.QoS0)
			publisher.own = packets.Publish{Retain: true, Topic: []byte("t"), Payload: []byte("new")}
			publisher.out.reset(&publisher.own, "", publisher.now, 0)
			matched, err := publisher.publish(&publisher.out, &publisher.route)
			require.NoError(t, err)
			require.Equal(t, 1, matched)
			publisher.clear()
			publisher.end()
			require.Equal(t, "new", string(c.message("t").Payload))
			b.putTurn(publisher)
			c.nc.Close()
			done()
		})
	}
}
