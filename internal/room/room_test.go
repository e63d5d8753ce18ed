package room

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// A large message does not wait for ever behind small ones that come later.
func TestRoomIsGivenInTurn(t *testing.T) {
	r := &Room{Most: 100}
	require.True(t, r.Take(60))
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		note := func(name string) { mu.Lock(); order = append(order, name); mu.Unlock() }
		want := func(name string, n int64) {
			wg.Go(func() {
				require.NoError(t, r.Await(context.Background(), n, nil))
				note(name)
			})
			synctest.Wait()
		}
		want("large", 80)
		require.False(t, r.Take(10), "it would overtake")
		want("small", 10)
		require.False(t, r.Open(10, func() { note("retry") }))
		want("last", 1)
		require.Empty(t, order)
		r.Give(60)
		synctest.Wait()
		require.ElementsMatch(t, []string{"large", "small", "retry", "last"}, order)
		wg.Wait()
		require.EqualValues(t, 91, r.Used())

		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() { require.ErrorIs(t, r.Await(ctx, 50, nil), context.Canceled) })
		synctest.Wait()
		want("behind", 5)
		require.Len(t, order, 4)
		cancel()
		wg.Wait()
		require.Len(t, order, 5, "those behind one that gives up go on")
		require.Zero(t, r.waiting.Load())
	})
}
