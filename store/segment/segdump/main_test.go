package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/segment"
)

func TestShowsAndVerifies(t *testing.T) {
	dir := t.TempDir()
	s, err := segment.Open(dir, segment.Options{})
	require.NoError(t, err)
	require.NoError(t, s.Commit(context.Background(),
		[]store.Op{&store.PutSession{Session: 1, ClientID: "sensor-1"}}))
	require.NoError(t, s.Close())
	var out strings.Builder
	require.NoError(t, run(&out, dir, true))
	require.Regexp(t, `^whole: 1 segments, 1 records, 1 operations, \d+ bytes, last commit 1, 0 bytes torn off at the end\n$`, out.String())
	out.Reset()
	require.NoError(t, run(&out, dir, false))
	require.Contains(t, out.String(), `PutSession session 1 client "sensor-1"`)
	name := filepath.Join(dir, "00000001.log")
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	b[100] ^= 1
	require.NoError(t, os.WriteFile(name, b, 0o600))
	require.ErrorContains(t, run(&out, dir, true), "00000001.log is damaged at offset 64")
}
