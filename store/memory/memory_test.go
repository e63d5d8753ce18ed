package memory_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// reopenable returns a function that opens the same Store again and again.
func reopenable() func() (store.Store, error) {
	s := new(memory.Store)
	opened := false
	return func() (store.Store, error) {
		if opened {
			return s, s.Open()
		}
		opened = true
		return s, nil
	}
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(*testing.T) func() (store.Store, error) { return reopenable() })
}

func TestStoreIsOpenOrClosed(t *testing.T) {
	s := new(memory.Store)
	require.Error(t, s.Open(), "the zero value is open")
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Close(), memory.ErrClosed)
	require.ErrorIs(t, s.Checkpoint(context.Background()), memory.ErrClosed)
	require.ErrorIs(t, s.Commit(context.Background(), nil), memory.ErrClosed)
	_, err := storetest.Fold(s.Load(context.Background()))
	require.ErrorIs(t, err, memory.ErrClosed)
	require.NoError(t, s.Open())
	require.NoError(t, s.Commit(context.Background(), nil))
}

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(*testing.B) func() (store.Store, error) { return reopenable() })
}
