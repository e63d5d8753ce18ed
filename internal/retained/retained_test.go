package retained

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

func message(topic, payload string) *Message {
	return &Message{Message: packets.Message{Topic: topic, Payload: []byte(payload)}}
}

func unlimited() *Store { return New(Options{Limits: Limits{math.MaxInt, math.MaxInt64}}) }

func (s *Store) must(tb testing.TB, m *Message) *Message {
	old, err := s.Set(m, 0)
	require.NoError(tb, err)
	return old
}

// scanAll walks to the end and returns the topics that were found, how often it scanned, and how
// much work that was.
func (s *Store) scanAll(tb testing.TB, filter string, limit, look int) (all []string, scans,
	looked int) {
	from := ""
	for {
		f := s.Scan(filter, from, limit, look, nil)
		require.LessOrEqual(tb, len(f.Messages), limit)
		for _, m := range f.Messages {
			all = append(all, m.Topic)
		}
		scans++
		looked += f.Looked
		if f.Next == "" {
			return all, scans, looked
		}
		require.Greater(tb, f.Next, from, "a scan that is not over comes further")
		from = f.Next
	}
}

// check verifies what the tree promises itself.
func (t *tree) check(tb testing.TB) {
	depth, count, leaves, last := -1, 0, 0, ""
	var visit func(n *node, d int) (s summary)
	visit = func(n *node, d int) (s summary) {
		if n.leaf() {
			require.True(tb, depth < 0 || depth == d, "all leaves have the same depth")
			depth, count, leaves = d, count+len(n.items), leaves+1
			for _, it := range n.items {
				if it.topic <= last || it.topic != it.msg.Topic {
					tb.Errorf("%q comes behind %q, and has the message of %q", it.topic, last,
						it.msg.Topic)
				}
				last = it.topic
				x := summarize(it.topic)
				s.merge(&x)
			}
		}
		for _, k := range n.kids {
			require.NotZero(tb, k.n.size())
			require.Equal(tb, k.n.first(), k.first)
			x := visit(k.n, d+1)
			s.merge(&x)
		}
		require.LessOrEqual(tb, n.size(), fanout)
		has := n.topics
		has.merge(&s)
		require.Equal(tb, n.topics, has, "a summary leaves nothing out")
		return s
	}
	visit(t.root, 0)
	require.Equal(tb, t.count, count)
	require.LessOrEqual(tb, leaves, count/(fanout/8)+2, "leaves are not left nearly empty")
}

func TestStore(t *testing.T) {
	s := unlimited()
	require.Nil(t, s.Get("a"))
	require.Nil(t, s.Remove("a"))
	m := message("a", "123")
	m.Properties = packets.Properties{1, 1}
	require.Nil(t, s.must(t, m))
	require.Nil(t, s.must(t, message("b/c", "")))
	require.Same(t, m, s.Get("a"))
	require.Equal(t, 2, s.Len())
	require.EqualValues(t, 1+3+2+3, s.Bytes(), "topics, payloads and properties count")
	m2 := message("a", "12345")
	require.Same(t, m, s.must(t, m2), "Set returns what it replaces")
	require.EqualValues(t, 1+5+3, s.Bytes())
	require.False(t, s.RemoveExactly(m),
		"a message that was replaced does not take its successor along")
	require.Same(t, m2, s.Get("a"))
	require.True(t, s.RemoveExactly(m2))
	require.False(t, s.RemoveExactly(m2), "it is gone already")
	require.Same(t, s.Get("b/c"), s.Remove("b/c"))
	require.Zero(t, s.Len())
	require.Zero(t, s.Bytes())
}

func TestWhatMakesTheStoreSmallerIsAlwaysTaken(t *testing.T) {
	full := false
	errFull := errors.New("no room for that")
	s := New(Options{Limits: Limits{2, 20}, Admit: func(m, old *Message) error {
		if full && (old == nil || Size(m) > Size(old)) {
			return errFull
		}
		return nil
	}})
	s.must(t, message("a", "1234"))
	s.must(t, message("b", "1234"))
	refused := func(m *Message, want error) {
		t.Helper()
		before := s.Get(m.Topic)
		old, err := s.Set(m, 0)
		require.ErrorIs(t, err, want)
		require.Nil(t, old)
		require.Same(t, before, s.Get(m.Topic), "a message that is refused changes nothing")
	}
	refused(message("c", "1"), ErrMessages)
	refused(message("a", strings.Repeat("x", 15)), ErrBytes)
	s.must(t, message("a", strings.Repeat("x", 13)))
	full = true
	refused(message("b", "12345"), errFull)
	s.must(t, message("b", "4321"))
	s.must(t, message("b", "123"))
	s.Restore(message("c", strings.Repeat("x", 100))) // from before a restart
	require.EqualValues(t, 14+4+101, s.Bytes())
	s.must(t, message("c", strings.Repeat("x", 99)))
	refused(message("b", "1234"), ErrBytes)
	require.NotNil(t, s.Remove("c"))
	refused(message("c", "1"), ErrMessages)

	require.True(t, s.Shrinks("b", 0, 0), "a removal")
	require.True(t, s.Shrinks("b", 1, 1))
	require.False(t, s.Shrinks("b", 2, 1), "as much")
	require.False(t, s.Shrinks("c", 0, 0), "there is nothing to remove")
}

func TestHoldAndReleaseCountWhatIsThere(t *testing.T) {
	held := map[*Message]int{}
	s := New(Options{Limits: Limits{2, 100},
		Hold: func(m *Message) { held[m]++ }, Release: func(m *Message) { held[m]-- }})
	a, b := message("a", "1"), message("a", "2")
	s.must(t, a)
	s.must(t, b)
	s.Restore(message("c", "3"))
	_, err := s.Set(message("d", "4"), 0)
	require.Error(t, err)
	require.True(t, s.RemoveExactly(b))
	s.Remove("c")
	require.Len(t, held, 3)
	for m, n := range held {
		require.Zero(t, n, m.Topic)
	}
}

func TestExpired(t *testing.T) {
	s := unlimited()
	at := func(n int64) time.Time { return time.Unix(0, n) }
	expiring := func(topic string, n int64) *Message {
		m := message(topic, "x")
		m.Expires = n
		return m
	}
	s.must(t, expiring("early", 30))
	var told []int64
	s.OnExpiry(func(at time.Time) { told = append(told, at.UnixNano()) })
	require.Equal(t, []int64{30}, told, "what is there already counts")
	s.must(t, expiring("late", 50))
	s.must(t, message("never", "x"))
	require.Len(t, told, 1, "nothing expires earlier now")
	s.must(t, expiring("early", 20))
	require.Equal(t, []int64{30, 20}, told)
	first := s.must(t, expiring("early", 40))
	require.Empty(t, s.Expired(at(20), 10), "the one that would have expired was replaced")
	require.Equal(t, []int64{30, 20, 40}, told, "the next one is told")
	require.False(t, s.RemoveExactly(first))
	due := s.Expired(at(50), 1)
	require.Len(t, due, 1)
	require.Equal(t, "early", due[0].Topic)
	require.True(t, s.RemoveExactly(due[0]))
	due = s.Expired(at(50), 1)
	require.Equal(t, "late", due[0].Topic)
	s.must(t, message("late", "x"))
	require.Empty(t, s.Expired(at(90), 1), "it does not expire any more")
	require.Len(t, told, 3)
	s.must(t, expiring("x", 100))
	require.Equal(t, int64(100), told[3])
	s.Remove("x")
	require.Empty(t, s.Expired(at(100), 1))
}

func TestScan(t *testing.T) {
	topics := []string{"$SYS/a", "$a", "/", "/x", "a", "a!", "a!/b", "a-b", "a-b/c", "a/", "a/b",
		"a/b-c", "a/b-c/d", "a/b/c", "a/b/c/d", "a0", "a0/b", "b", "b/b", "b/b/c", "b/b0", "b/c",
		"b/c/b", "c/b", "~/b", "ä/b"}
	s := unlimited()
	for _, i := range rand.Perm(len(topics)) {
		s.must(t, message(topics[i], "x"))
	}
	for _, tt := range []struct{ name, filter, want string }{
		{"a filter without wildcards finds its topic", "a/b", "a/b"},
		{"a filter without wildcards may find nothing", "a/x", ""},
		{"# finds all but those that begin with $ [MQTT-4.7.2-1]", "#",
			strings.Join(topics[2:], " ")},
		{"a/# finds a and what is below, and not what only sorts between", "a/#",
			"a a/ a/b a/b-c a/b-c/d a/b/c a/b/c/d"},
		{"a/+ finds one level, and steps over what is below", "a/+", "a/ a/b a/b-c"},
		{"+ finds single levels", "+", "a a! a-b a0 b"},
		{"+/b steps from one first level to the next", "+/b", "a!/b a/b a0/b b/b c/b ~/b ä/b"},
		{"+/b/# finds the parents, too", "+/b/#",
			"a!/b a/b a/b/c a/b/c/d a0/b b/b b/b/c c/b ~/b ä/b"},
		{"+/+/c finds the third level", "+/+/c", "a/b/c b/b/c"},
		{"+/b/+ finds what is below some", "+/b/+", "a/b/c b/b/c"},
		{"/+ has an empty first level", "/+", "/ /x"},
		{"+/+ also finds empty levels", "+/+",
			"/ /x a!/b a-b/c a/ a/b a/b-c a0/b b/b b/b0 b/c c/b ~/b ä/b"},
		{"a named $ level is found", "$SYS/#", "$SYS/a"},
		{"+/a finds nothing below $SYS", "+/a", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, limit := range []int{1, 2, 3, 100} {
				for _, look := range []int{1, 2, 1000} {
					got, _, _ := s.scanAll(t, tt.filter, limit, look)
					require.Empty(t, cmp.Diff(strings.Fields(tt.want), append([]string{}, got...)),
						"in steps of %d, looking at %d", limit, look)
				}
			}
		})
	}
	t.Run("dst is appended to", func(t *testing.T) {
		first := message("first", "")
		f := s.Scan("a/b", "", 10, 10, []*Message{first})
		require.Len(t, f.Messages, 2)
		require.Same(t, first, f.Messages[0])
	})
	t.Run("from leaves out a topic that the filter names", func(t *testing.T) {
		require.Len(t, s.Scan("a/b", "a/b", 1, 10, nil).Messages, 1)
		require.Empty(t, s.Scan("a/b", "a/b\x00", 1, 10, nil).Messages)
	})
}

// Whatever was set and removed, the tree is in order, and a scan finds what matches and nothing
// else.
func TestAgainstAModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	levels := []string{"", "a", "a-", "a0", "b", "b!", "c", "$x"}
	random := func(wild bool, most int) string {
		var s []string
		for n := 1 + rnd.IntN(most); n > 0; n-- {
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
	for round := range 8 {
		s, model := unlimited(), map[string]*Message{}
		most := []int{4, 12}[round%2]
		for _, removes := range []int{1, 3} { // of four: it grows, and then gets smaller
			for range 3000 {
				topic := random(false, most)
				if rnd.IntN(4) < removes {
					if rnd.IntN(2) == 0 { // one that is there
						for topic = range model {
							break
						}
					}
					require.Same(t, model[topic], s.Remove(topic))
					delete(model, topic)
				} else {
					m := message(topic, topic)
					require.Same(t, model[topic], s.must(t, m))
					model[topic] = m
				}
			}
			s.tree.check(t)
			bytes := 0
			for topic := range model {
				bytes += 2 * len(topic)
			}
			require.Equal(t, len(model), s.Len())
			require.EqualValues(t, bytes, s.Bytes())
			for range 50 {
				filter := random(true, most)
				var want []string
				for topic := range model {
					if packets.MatchTopic(filter, topic) {
						want = append(want, topic)
					}
				}
				slices.Sort(want)
				got, _, _ := s.scanAll(t, filter, 1+rnd.IntN(20), 1+rnd.IntN(50))
				require.Empty(t, cmp.Diff(want, got), "scan of %q", filter)
			}
		}
		for topic := range model {
			s.Remove(topic)
		}
		require.Zero(t, s.Len())
		s.tree.check(t)
	}
}

// shapes are ways in which topics are named, with filters of which few or no topics are.
var shapes = []struct {
	name    string
	topic   func(i, n int) string
	filters []string
	most    int // work for each filter
}{
	{"topics with fewer levels than the filter",
		func(i, n int) string { return fmt.Sprintf("dev%d/state", i) },
		[]string{"+/+/+/x", "+/+/+/+/x", "+/+/+/#"}, 64},
	{"topics with more levels than the filter",
		func(i, n int) string { return fmt.Sprintf("site/%d/line/%d/temp", i/100, i%100) },
		[]string{"+/+/+/x", "+/+", "+"}, 64},
	{"topics whose last level has another name",
		func(i, n int) string { return fmt.Sprintf("site/%d/line/%d", i/100, i%100) },
		[]string{"+/+/x/+", "x/+/#", "+/+/line/x/#", "+/+/x/+/#"}, 10_000},
	{"one level with all topics",
		func(i, n int) string { return fmt.Sprintf("%d/y", i) },
		[]string{"+/x", "+/x/#", "+/y/x"}, 64},
	{"one topic among all others has the name",
		func(i, n int) string {
			if i == n/2 {
				return fmt.Sprintf("%d/b/c/d/x", i)
			}
			return fmt.Sprintf("%d/b/c/d/y", i)
		},
		[]string{"+/+/+/+/x", "+/b/+/d/x"}, 400},
	{"levels down to the limit",
		func(i, n int) string { return fmt.Sprint(i) + strings.Repeat("/a", 127) },
		[]string{"+" + strings.Repeat("/+", 126) + "/x", "+" + strings.Repeat("/a", 126) + "/x"},
		64},
	{"subtrees of which the filter wants one level",
		func(i, n int) string { return fmt.Sprintf("d/%d/x/%d", i/100, i%100) },
		[]string{"d/+", "d/+/y/#", "d/777/y/#", "d/777x/#"}, 10_000},
}

// A filter that no topic is of is not compared with all topics.
func TestAScanLooksAtFewTopics(t *testing.T) {
	const n = 20_000
	for _, tt := range shapes {
		t.Run(tt.name, func(t *testing.T) {
			s := unlimited()
			for _, i := range rand.Perm(n) {
				s.must(t, message(tt.topic(i, n), ""))
			}
			s.tree.check(t)
			for _, filter := range tt.filters {
				found, _, looked := s.scanAll(t, filter, 100, 512)
				require.LessOrEqual(t, looked, tt.most, "work for %q", filter)
				require.LessOrEqual(t, len(found), 1)
			}
		})
	}
}

// One scan is a bounded piece of work, however long topics and filters are.
func TestAScanIsBounded(t *testing.T) {
	const look = 512
	s := unlimited()
	long := strings.Repeat("/", 60_000)
	for i := range 2000 {
		s.must(t, message(fmt.Sprintf("d/%d/x", i), ""))
		if i < 100 {
			s.must(t, message(fmt.Sprintf("l%s%d", long, i), ""))
		}
	}
	for _, filter := range []string{"#", "d/+/x", "+/+/#", "l" + long + "+",
		"l" + strings.Repeat("/+", 59_999) + "/+"} {
		for from, more := "", true; more; {
			f := s.Scan(filter, from, 1<<20, look, nil)
			require.LessOrEqual(t, f.Looked, look+4*cost(long), "%.20q", filter)
			require.LessOrEqual(t, len(f.Messages), look)
			from, more = f.Next, f.Next != ""
		}
	}
}

// Topics that were there once do not make a scan look where they were.
func TestRemovedTopicsAreForgotten(t *testing.T) {
	s := unlimited()
	for i := range 8_000 {
		s.must(t, message(fmt.Sprintf("d/%d/y", i), ""))
	}
	for i := range 8_000 {
		for k := range 2 {
			s.must(t, message(fmt.Sprintf("d/%d/x%d", i, k), ""))
		}
	}
	for i := range 8_000 {
		for k := range 2 {
			s.Remove(fmt.Sprintf("d/%d/x%d", i, k))
		}
	}
	s.tree.check(t)
	_, _, looked := s.scanAll(t, "+/+/x1", 100, 512)
	require.Less(t, looked, 2000, "of 8,000 topics")
}

func TestScansWithWriters(t *testing.T) {
	s := unlimited()
	for i := range 100 {
		s.must(t, message(fmt.Sprintf("fixed/%d", i), ""))
	}
	var over sync.WaitGroup
	for w := range 2 {
		over.Go(func() {
			for i := range 3000 {
				topic := fmt.Sprintf("fixed/%d/%d", i%100, w)
				s.Set(message(topic, "x"), 0)
				s.Set(message(fmt.Sprintf("fixed/%d", i%100), "y"), 0)
				s.Remove(topic)
			}
		})
	}
	for range 100 {
		got, _, _ := s.scanAll(t, "fixed/+", 7, 20)
		require.Len(t, got, 100, "what nobody removes is found once, whatever happens around it")
	}
	over.Wait()
	require.Equal(t, 100, s.Len())
	s.tree.check(t)
}

func TestCurrent(t *testing.T) {
	s := unlimited()
	m := message("a", "1")
	s.must(t, m)
	f := s.Scan("#", "", 1, 10, nil)
	require.Same(t, m, s.Current(m, f.Version))
	n := message("a", "2")
	s.must(t, n)
	require.Same(t, n, s.Current(m, f.Version), "it was replaced")
	s.Remove("a")
	require.Nil(t, s.Current(m, f.Version))
}
