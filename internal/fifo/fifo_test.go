package fifo

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestFifoKeepsOrderAndMemory(t *testing.T) {
	var q Queue[int]
	rnd := rand.New(rand.NewPCG(1, 2))
	in, out := 0, 0
	for range 100_000 {
		if rnd.IntN(2) == 0 || q.Len() == 0 {
			q.PushAt(in, uint32(in+7))
			in++
		} else {
			if got := *q.Front(); got != out {
				t.Fatalf("front is %d, want %d", got, out)
			}
			if got := q.FrontAt(); got != uint32(out+7) {
				t.Fatalf("front is of %d, want %d", got, out+7)
			}
			if got := q.Pop(); got != out {
				t.Fatalf("popped %d, want %d", got, out)
			}
			out++
		}
		if int(q.Len()) != in-out {
			t.Fatalf("n is %d, want %d", q.Len(), in-out)
		}
	}
	want := out
	q.AllAt(func(v *int, at uint32) bool {
		if *v != want || at != uint32(want+7) {
			t.Fatalf("all yields %d, want %d", *v, want)
		}
		want++
		return true
	})
	if want != in {
		t.Fatalf("all ended at %d, want %d", want, in)
	}
}

func TestFilterKeepsTheOthersInTheirOrder(t *testing.T) {
	for seed := range uint64(500) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var q Queue[int]
		var want []int
		for i := range 200 {
			switch k := rnd.IntN(20); {
			case k < 12:
				q.PushAt(i, uint32(i+7))
				want = append(want, i)
			case k < 18 && len(want) > 0:
				if got := q.Pop(); got != want[0] {
					t.Fatalf("seed %d: popped %d, want %d", seed, got, want[0])
				}
				want = want[1:]
			default:
				m := 1 + rnd.IntN(4) // 1: all go
				q.Filter(func(v *int) bool { return *v%m != 0 })
				want = slices.DeleteFunc(want, func(v int) bool { return v%m == 0 })
			}
			var all []int
			q.AllAt(func(v *int, at uint32) bool {
				if at != uint32(*v+7) {
					t.Fatalf("seed %d: %d is of %d", seed, *v, at)
				}
				all = append(all, *v)
				return true
			})
			if !slices.Equal(all, want) || int(q.Len()) != len(want) {
				t.Fatalf("seed %d: there are %v, want %v", seed, all, want)
			}
		}
	}
}
