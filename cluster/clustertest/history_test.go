package clustertest

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/cluster/memory"
)

// inMemory plays histories with package memory.
func inMemory(t *testing.T, seed uint64, check func(Engine)) {
	synctest.Test(t, func(t *testing.T) {
		o := memory.Options{Seed: seed, Partitions: 1 + int(seed%3)}
		if seed%5 == 0 {
			o.Delay, o.Election = 50*time.Millisecond, 8*time.Second
		}
		e, err := memory.New(o)
		require.NoError(t, err)
		check(Memory(e, max(o.Election, 2*time.Second)))
	})
}

func TestHistories(t *testing.T) {
	n := 1500
	if raceDetector || testing.Short() {
		n = 150
	}
	Histories(t, n, inMemory)
}

// Seeds that have found errors of package memory. 13265476448255103580: a lease ended again before
// the answer to a node that joined again had come, and the node stayed out.
func TestHistoriesThatFoundErrors(t *testing.T) {
	for _, seed := range []uint64{13265476448255103580} {
		inMemory(t, seed, func(e Engine) { require.NoError(t, play(e, seed)) })
	}
}

// Faults that histories find within the number of seeds that the test plays.
var foundByHistories = []string{
	"a batch comes twice", "the order of a batch", "a hole in the log", "a hole", "a record twice",
	"another order", "a batch is lost", "no Once", "Once of each node", "no Forget",
	"a position too far", "a topic is missing", "what was refused comes later",
	"a stale read that decides",
}

func TestHistoriesFindFaults(t *testing.T) {
	for _, f := range faults {
		if !slices.Contains(foundByHistories, f.name) {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			var err error
			for seed := uint64(1); seed <= 40 && err == nil; seed++ {
				synctest.Test(t, func(t *testing.T) {
					err = play(brokenEngine(t, f), seed)
				})
			}
			require.Error(t, err)
			t.Log(err)
		})
	}
}
