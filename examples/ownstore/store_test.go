package main

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// TestContract is all that it takes to know that a store is right.
func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() (store.Store, error) {
		file := filepath.Join(t.TempDir(), "broker.db")
		return func() (store.Store, error) { return OpenStore(file) }
	})
}

func TestSecondOpenIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "broker.db")
	s, err := OpenStore(file)
	require.NoError(t, err)
	_, err = OpenStore(file)
	require.ErrorContains(t, err, "locked")
	require.NoError(t, s.Close())
}

func TestNothingIsLeftOfWhatIsGone(t *testing.T) {
	s, err := OpenStore(filepath.Join(t.TempDir(), "broker.db"))
	require.NoError(t, err)
	h := storetest.NewHistory(3)
	for range 100 {
		require.NoError(t, s.Commit(context.Background(), h.Batch()))
	}
	var ops []store.Op
	for id := range h.State.Sessions {
		ops = append(ops, &store.DeleteSession{Session: id})
	}
	for topic := range h.State.Retained {
		ops = append(ops, &store.DeleteRetained{Topic: topic})
	}
	require.NoError(t, s.Commit(context.Background(), ops))
	for _, table := range []string{"sessions", "subscriptions", "received", "messages", "queue",
		"retained"} {
		var n int
		require.NoError(t, s.db.QueryRow("SELECT count(*) FROM "+table).Scan(&n))
		require.Zero(t, n, table)
	}
	require.NoError(t, s.Close())
}
