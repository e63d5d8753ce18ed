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
			q.Push(in)
			in++
		} else {
			if got := *q.Front(); got != out {
				t.Fatalf("front is %d, want %d", got, out)
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
	q.All(func(v *int) bool {
		if *v != want {
			t.Fatalf("all yields %d, want %d", *v, want)
		}
		want++
		return true
	})
	if want != in {
		t.Fatalf("all ended at %d, want %d", want, in)
	}
}
