package queue

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func add(q *Queue[uint64], peer string, bytes int) bool {
	return q.Add(peer, bytes, func(n uint64) uint64 { return n })
}

func TestItemsComeInOrderAndTheirNumbersTellWhatIsMissing(t *testing.T) {
	q := New[uint64](4, 100)
	require.Empty(t, q.Take(10, 10))
	require.True(t, add(q, "a", 60))
	require.False(t, add(q, "a", 60))
	require.True(t, add(q, "b", 10))
	require.Equal(t, []uint64{1, 3}, q.Take(10, 1000))
	items, bytes, closed := q.Load()
	require.Zero(t, items)
	require.Zero(t, bytes)
	require.False(t, closed)
	require.Empty(t, q.peers)

	require.True(t, add(q, "a", 60))
	q.Close()
	require.False(t, add(q, "b", 1))
	require.Equal(t, []uint64{4}, q.Take(1, 1), "one comes, however large it is")
	_, _, closed = q.Load()
	require.True(t, closed)
}

func TestTakeIsBounded(t *testing.T) {
	q := New[uint64](100, 1000)
	for i := range 10 {
		require.True(t, add(q, fmt.Sprint(i), 10))
	}
	require.Equal(t, []uint64{1, 2, 3}, q.Take(3, 1000))
	require.Equal(t, []uint64{4, 5}, q.Take(100, 29))
	require.Equal(t, []uint64{6}, q.Take(100, 0))
	require.Len(t, q.Take(100, 1000), 4)
}

func TestOnePeerDoesNotFillTheQueue(t *testing.T) {
	for _, tt := range []struct {
		name            string
		most, mostBytes int
		bytes           int
	}{{"by number", 80, 1 << 20, 1}, {"by bytes", 1 << 20, 80_000, 1000}} {
		t.Run(tt.name, func(t *testing.T) {
			q := New[uint64](tt.most, tt.mostBytes)
			adds := func(peer string) (n int) {
				for range 1000 {
					if add(q, peer, tt.bytes) {
						n++
					}
				}
				return n
			}
			require.Equal(t, 60, adds("a"))
			require.Equal(t, 10, adds("b"))
			require.Equal(t, 10, adds("c"))
			require.Zero(t, adds("d"))
			q.Take(30, 1<<20)
			require.Equal(t, 10, adds("a"), "again three quarters")
			require.Equal(t, 10, adds("d"))
		})
	}
}

func TestConcurrentAdds(t *testing.T) {
	q := New[uint64](1000, 1<<20)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() { // waited for below
			for range 100 {
				require.True(t, add(q, fmt.Sprint(i), 1))
			}
		})
	}
	all.Go(func() {
		next := uint64(1)
		for next <= 800 {
			<-q.Ready()
			for _, n := range q.Take(1000, 1<<20) {
				require.Equal(t, next, n)
				next++
			}
		}
	})
	all.Wait()
}
