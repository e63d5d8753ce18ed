package fifo

import (
	"math/rand/v2"
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
