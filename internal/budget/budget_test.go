package budget

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// A thing that several places hold counts once, for the first of: retained, queued, in flight.
func TestWhatPlacesShareCountsOnce(t *testing.T) {
	b := New(1000)
	var h Holders
	const size, place = 100, 7
	counts := func(queued, inFlight, retained int64, what string) {
		t.Helper()
		require.Equal(t, [3]int64{queued, inFlight, retained},
			[3]int64{b.Of(Queued), b.Of(InFlight), b.Of(Retained)}, what)
		require.Equal(t, queued+inFlight+retained, b.Used())
	}
	b.Hold(&h, Queued, size, place)
	counts(107, 0, 0, "in one queue")
	b.Hold(&h, Queued, size, place)
	counts(114, 0, 0, "in two queues")
	b.Hold(&h, Retained, size, place)
	counts(14, 0, 107, "and retained")
	b.Hold(&h, InFlight, size, place)
	b.Release(&h, Queued, size, place)
	counts(7, 7, 107, "and one of the two sent")
	b.Hold(&h, Retained, size, place)
	b.Release(&h, Retained, size, place)
	counts(7, 7, 107, "and retained anew")
	b.Release(&h, Retained, size, place)
	counts(107, 7, 0, "and no longer retained")
	b.Release(&h, Queued, size, place)
	counts(0, 107, 0, "and in no queue")
	b.Release(&h, InFlight, size, place)
	counts(0, 0, 0, "and acknowledged")
	require.Zero(t, h.Load())
}

// However places come and go at the same time, nothing is left when all have gone.
func TestPlacesThatComeAndGoAtOnce(t *testing.T) {
	b := New(1000)
	var h Holders
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var over sync.WaitGroup
	for i := range 8 {
		over.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			var held []Kind
			for range 20_000 {
				if n := len(held); n > 0 && (n == 4 || r.IntN(2) == 0) {
					b.Release(&h, held[n-1], 100, 3)
					held = held[:n-1]
					continue
				}
				k := Kind(r.IntN(2))
				if i == 0 && len(held) == 0 {
					k = Retained
				}
				b.Hold(&h, k, 100, 3)
				held = append(held, k)
			}
			for _, k := range held {
				b.Release(&h, k, 100, 3)
			}
		})
	}
	over.Wait()
	require.Zero(t, h.Load())
	for k := range Kinds {
		require.Zero(t, b.Of(k), k.String())
	}
	require.Zero(t, b.Used())
}

func TestWhatStaysLeavesRoomForMessages(t *testing.T) {
	b := New(1000)
	require.True(t, b.Fits(Retained, 500))
	require.False(t, b.Fits(Retained, 501), "one kind has half of the limit")
	b.Add(Retained, 500)
	require.True(t, b.Fits(Subscriptions, 250))
	require.False(t, b.Fits(Subscriptions, 251), "and all kinds three quarters")
	b.Add(Queued, 900)
	require.True(t, b.Fits(Subscriptions, 250), "messages on their way make room by themselves")
	require.True(t, b.Fits(Retained, 0), "what makes it smaller is always possible")
	require.False(t, b.Over(140))
	require.True(t, b.Over(139))
	require.True(t, (*Budget)(nil).Fits(Retained, 1<<40))
	b.Add(Subscriptions, 250)
	require.True(t, b.Fits(Sessions, 60), "clients can always come to remove something")
	require.True(t, b.Fits(Connections, 60))
	require.False(t, b.Fits(Connections, 61))
	b.Add(Sessions, 60)
	require.False(t, b.Fits(Sessions, 1))
	require.True(t, b.FitsBriefly(Sessions, 20), "those that go with their connections have more")
	require.False(t, b.FitsBriefly(Sessions, 21))
}

func TestRecountCountsDifferences(t *testing.T) {
	b := New(1 << 40)
	var counted int32
	b.Recount(Output, &counted, 70)
	b.Recount(Output, &counted, 30)
	require.EqualValues(t, 30, b.Of(Output))
	b.Recount(Output, &counted, math.MaxInt)
	require.EqualValues(t, 1<<31-1, b.Of(Output))
	b.Recount(Output, &counted, 0)
	require.Zero(t, b.Used())
}

func TestPlacesAreAddedUp(t *testing.T) {
	b := New(1000)
	var over sync.WaitGroup
	for i := range 40 {
		over.Go(func() {
			for range 100 {
				b.AddQueued(Stripe(i), 2, 30)
				b.AddQueued(Stripe(i), -1, -10)
				b.AddInFlight(Stripe(i), 1)
			}
		})
	}
	over.Wait()
	require.Equal(t, Places{Queued: 4000, QueuedBytes: 80_000, InFlight: 4000}, b.Places())
	require.Zero(t, b.Used(), "places are no bytes")
	(*Budget)(nil).AddQueued(1, 1, 1)
	(*Budget)(nil).AddInFlight(1, 1)
}
