package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// once runs the server until use returns.
func once(t *testing.T, use func(addr string), args ...string) {
	t.Helper()
	o, err := parse(append(args, "-listen", "127.0.0.1:0"))
	require.NoError(t, err)
	o.logTo(new(log))
	up := make(chan string, 1)
	o.listening = func(a net.Addr) { up <- a.String() }
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- o.serve(ctx) }() // waited for below
	select {
	case addr := <-up:
		use(addr)
		stop()
		require.NoError(t, <-ended)
	case err := <-ended:
		t.Fatalf("the server has not started: %v", err)
	}
}

func TestStateIsKept(t *testing.T) {
	for _, kind := range []string{"segment", "bbolt"} {
		for _, durability := range []string{"synced", "buffered", "none"} {
			t.Run(kind+" "+durability, func(t *testing.T) {
				args := []string{"-data", filepath.Join(t.TempDir(), "data"), "-store", kind,
					"-durability", durability}
				once(t, func(addr string) {
					c := login{"writer", "-", "-"}.at(t, dial(t, addr))
					c.send(&packets.Publish{QoS: packets.QoS1, PacketID: 9, Retain: true,
						Topic: []byte("kept"), Payload: []byte("yes")})
					c.want(packets.TypePuback)
				}, args...)
				once(t, func(addr string) {
					c := login{"reader", "-", "-"}.at(t, dial(t, addr))
					c.subscribe("kept")
					c.want(packets.TypePublish)
					require.Equal(t, "yes", c.got["kept"])
				}, args...)
			})
		}
	}
}

func TestFlagsOfTheStore(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"a store that there is not", []string{"-data", "x", "-store", "redis"},
			`-store "redis" is not segment or bbolt`},
		{"a durability that there is not", []string{"-durability", "fsync"},
			`-durability "fsync" is not synced, buffered or none`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(c.args)
			require.ErrorContains(t, err, c.want)
		})
	}
	t.Run("a file is no directory", func(t *testing.T) {
		data := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(data, nil, 0o600))
		for _, kind := range []string{"segment", "bbolt"} {
			o, err := parse([]string{"-data", data, "-store", kind, "-listen", "127.0.0.1:0"})
			require.NoError(t, err)
			require.ErrorContains(t, o.serve(context.Background()), "not a directory")
		}
	})
	t.Run("a directory of the other kind is left alone", func(t *testing.T) {
		for _, kinds := range [][2]string{{"segment", "bbolt"}, {"bbolt", "segment"}} {
			data := t.TempDir()
			once(t, func(string) {}, "-data", data, "-store", kinds[0])
			o, err := parse([]string{"-data", data, "-store", kinds[1], "-listen", "127.0.0.1:0"})
			require.NoError(t, err)
			require.Error(t, o.serve(context.Background()))
		}
	})
}
