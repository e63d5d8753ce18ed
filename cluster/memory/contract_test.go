package memory_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/cluster/clustertest"
	"github.com/dunlin-mqtt/dunlin/cluster/memory"
)

func TestContract(t *testing.T) {
	for _, o := range []memory.Options{
		{Seed: 1},
		{Seed: 2, Partitions: 3, Delay: 20 * time.Millisecond, Election: 6 * time.Second},
	} {
		clustertest.Run(t, func(t *testing.T, check func(clustertest.Engine)) {
			synctest.Test(t, func(t *testing.T) {
				e, err := memory.New(o)
				require.NoError(t, err)
				check(clustertest.Memory(e, max(o.Election, 2*time.Second)))
			})
		})
	}
}
