package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
)

func TestRun(t *testing.T) {
	dir, err := os.MkdirTemp("", "dunlin") // short: a socket's path has a limit
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	left, err := net.Listen("unix", path) // as a killed process leaves it
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()

	p := try.Start(t, run, "-listen", path)
	addr := p.Line("listening on ")
	sub, pub := try.Connect(t, addr, "sub"), try.Connect(t, addr, "pub")
	sub.Subscribe("a", 0)
	pub.Publish("a", "by way of a file")
	sub.Want("a", "by way of a file")
	if err := run(t.Context(), []string{"-listen", path}, os.Stderr); err == nil {
		t.Fatal("a second broker took the socket of the first")
	}
	p.Stop()
}
