//go:build lockcheck

package lock

import (
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

type (
	first  struct{}
	second struct{}
	third  struct{}
	fourth struct{}
	many   struct{}
)

func (first) Rank() Rank  { return Rank{Order: 1, Name: "the first"} }
func (second) Rank() Rank { return Rank{Order: 2, Name: "the second"} }
func (third) Rank() Rank  { return Rank{Order: Leaf, Name: "a leaf"} }
func (fourth) Rank() Rank { return Rank{Order: Leaf, Name: "another leaf"} }
func (many) Rank() Rank   { return Rank{Order: 2, Name: "one of many", Several: true} }

// violations returns what f violates: the first line of each report.
func violations(t *testing.T, f func()) (found []string) {
	t.Helper()
	var mu sync.Mutex
	defer Report(func(v string) {
		mu.Lock()
		defer mu.Unlock()
		line, rest, _ := strings.Cut(strings.TrimPrefix(v, "lock: "), "\n")
		found = append(found, line)
		if !strings.Contains(rest, "here:\n\t") || !strings.Contains(rest, "check_test.go:") {
			t.Errorf("a report without a stack: %s", v)
		}
		if strings.Contains(line, " held") && strings.Count(rest, "check_test.go:") < 2 {
			t.Errorf("a report without the other stack: %s", v)
		}
	})()
	f()
	require.Empty(t, holding(current()), "what is held in the end")
	return found
}

func TestWhatIsInOrderIsNotReported(t *testing.T) {
	var a Mutex[first]
	var b RWMutex[second]
	var c Mutex[third]
	var several [3]RWMutex[many]
	require.Empty(t, violations(t, func() {
		a.Lock()
		b.RLock()
		c.Lock()
		a.Unlock() // the order of Unlock does not matter
		b.RUnlock()
		c.Unlock()
		NoneHeld("a call")
		b.Lock()
		c.Lock()
		c.Unlock()
		b.Unlock()
		a.Lock()
		for i := range several {
			several[i].Lock()
		}
		for i := range several {
			several[i].Unlock()
		}
		a.Unlock()
		c.Lock()
		var others sync.WaitGroup
		others.Go(func() { // what one goroutine holds is no matter to another one
			NoneHeld("a call")
			a.Lock()
			a.Unlock()
		})
		others.Wait()
		require.False(t, c.TryLock())
		c.Unlock()
		b.Lock()
		require.True(t, a.TryLock(), "it never waits, so it may come in any order")
		a.Unlock()
		b.Unlock()
		Inside[third]()()
	}))
}

func TestWhatIsReported(t *testing.T) {
	var a Mutex[first]
	var b RWMutex[second]
	var c, e Mutex[third]
	var d Mutex[fourth]
	var several [2]RWMutex[many]
	for _, tt := range []struct {
		name, want string
		do         func()
	}{
		{"an inversion", "the first is taken while the second is held: the first comes first",
			func() {
				b.Lock()
				a.Lock()
				a.Unlock()
				b.Unlock()
			}},
		{"an inversion of a reader",
			"the first is taken while the second is held: the first comes first", func() {
				b.RLock()
				a.Lock()
				a.Unlock()
				b.RUnlock()
			}},
		{"an inversion behind a lock that was free",
			"the first is taken while the second is held: the first comes first", func() {
				var other Mutex[first]
				b.Lock()
				other.TryLock() // the one taken last
				a.Lock()
				a.Unlock()
				other.Unlock()
				b.Unlock()
			}},
		{"two locks of one kind", "a leaf is taken while a leaf is held: only one of them may be",
			func() {
				c.Lock()
				e.Lock()
				e.Unlock()
				c.Unlock()
			}},
		{"two leaves", "another leaf is taken while a leaf is held: only one of them may be",
			func() {
				c.Lock()
				d.Lock()
				d.Unlock()
				c.Unlock()
			}},
		{"a reader twice", "the second is taken while the second is held: only one of them may be",
			func() {
				b.RLock()
				b.RLock()
				b.RUnlock()
				b.RUnlock()
			}},
		{"several in the wrong order",
			"one of many is taken while one of many is held: only one of them may be", func() {
				several[1].Lock()
				several[0].Lock()
				several[0].Unlock()
				several[1].Unlock()
			}},
		{"a call with a lock held", "a call while the first is held", func() {
			a.Lock()
			NoneHeld("a call")
			a.Unlock()
		}},
		{"a call with a lock held for reading", "a call while the second is held", func() {
			b.RLock()
			NoneHeld("a call")
			b.RUnlock()
		}},
		{"a call with a lock held that was free", "a call while the first is held", func() {
			a.TryLock()
			NoneHeld("a call")
			a.Unlock()
		}},
		{"a call with a lock of somebody else's", "a call while a leaf is held", func() {
			defer Inside[third]()()
			NoneHeld("a call")
		}},
		{"a lock under one of somebody else's",
			"another leaf is taken while a leaf is held: only one of them may be", func() {
				defer Inside[third]()()
				d.Lock()
				d.Unlock()
			}},
		{"a line of the log", "a line of the log while the first is held", func() {
			a.Lock()
			slog.New(Handler(slog.DiscardHandler)).With("k",
				1).WithGroup("g").Debug("not even wanted")
			a.Unlock()
		}},
		{"an Unlock of what another goroutine holds",
			"the first is unlocked by a goroutine that does not hold it", func() {
				a.Lock()
				var other sync.WaitGroup
				other.Go(func() { a.Unlock() })
				other.Wait()
				forget(current(), holding(current())[0].lock, first{}.Rank())
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, []string{tt.want}, violations(t, tt.do))
		})
	}
}

// Many goroutines at a time are told apart.
func TestManyGoroutinesAreToldApart(t *testing.T) {
	require.Empty(t, violations(t, func() {
		var all sync.WaitGroup
		var a Mutex[first]
		var c Mutex[third]
		for range 500 {
			all.Go(func() {
				for range 20 {
					NoneHeld("a call")
					a.Lock()
					c.Lock()
					c.Unlock()
					a.Unlock()
				}
			})
		}
		all.Wait()
		for i := range shards {
			require.Empty(t, shards[i].of)
		}
	}))
}
