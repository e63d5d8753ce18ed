package acl_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/stretchr/testify/require"
)

func TestReloadIsAllOrNothing(t *testing.T) {
	name := filepath.Join(t.TempDir(), "rules")
	write := func(s string) { require.NoError(t, os.WriteFile(name, []byte(s), 0o600)) }
	_, err := acl.Open(name, acl.Parse)
	require.ErrorIs(t, err, os.ErrNotExist)
	write("allow all a\nallow\n")
	_, err = acl.Open(name, acl.Parse)
	require.ErrorContains(t, err, name+":2: expected publish, subscribe or all")

	write("allow all a\n")
	f, err := acl.Open(name, acl.Parse)
	require.NoError(t, err)
	told := 0
	f.OnReload(func() { told++ })
	allowed := func(q string) bool {
		return f.Authorize(t.Context(), asked(client("c", "-"), q)) == nil
	}

	write("allow all b\nallow all a/#/\n")
	err = f.Reload()
	e, ok := errors.AsType[*hooks.ParseError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, 2, e.Line)
	require.True(t, allowed("pub a"), "the rules in force stay")
	require.False(t, allowed("pub b"), "no rule of a bad file is taken")
	require.NoError(t, os.Remove(name))
	require.ErrorIs(t, f.Reload(), os.ErrNotExist)
	require.True(t, allowed("pub a"), "the rules in force stay when the file is gone")
	require.Zero(t, told, "nothing has changed")

	write("allow all b\n")
	require.NoError(t, f.Reload())
	require.Equal(t, 1, told)
	require.False(t, allowed("pub a"))
	require.True(t, allowed("pub b"))

	write("")
	require.NoError(t, f.Reload())
	require.False(t, allowed("pub b"), "an empty file allows nothing")
}

func TestWatch(t *testing.T) {
	name := filepath.Join(t.TempDir(), "acl")
	require.NoError(t, os.WriteFile(name, []byte("topic a\n"), 0o600))
	synctest.Test(t, func(t *testing.T) {
		f, err := acl.Open(name, acl.ParseMosquitto)
		require.NoError(t, err)
		var reports []error
		ctx, cancel := context.WithCancel(t.Context())
		go f.Watch(ctx, time.Second, func(err error) {
			reports = append(reports, err)
		}) // the bubble waits for it
		require.NoError(t, os.WriteFile(name, []byte("topic bb\n"), 0o600))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Equal(t, []error{nil}, reports)
		require.NoError(t, f.Authorize(t.Context(), asked(client("c", "-"), "pub bb")))
		cancel()
	})
}
