package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/listeners"
)

// failing is a listener whose Accept fails with each of some errors before it works.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) == 0 {
		return f.Listener.Accept()
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: err}
}

func TestAnAcceptThatFailsForAWhileDoesNotEndTheProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := os.NewSyscallError("accept", syscall.EMFILE)
		mem := listeners.NewMemory()
		l := &failing{mem, []error{full, full, os.NewSyscallError("accept", syscall.ECONNABORTED),
			full}}
		ctx, cancel := context.WithCancel(t.Context())
		a := &acceptor{out: io.Discard, most: 10, mostPer: 10,
			serve: func(_ context.Context, c net.Conn) error {
				_, err := c.Write([]byte("served"))
				return err
			}}
		ended := make(chan error, 1)
		go func() { ended <- a.run(ctx, l) }()
		start := time.Now()
		c, err := mem.Dial()
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "served" {
			t.Fatalf("got %q, %v", b, err)
		}
		if d := time.Since(start); d != (5+10+20+40)*time.Millisecond {
			t.Fatalf("it has waited %v between attempts", d)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	})
}

func TestAListenerThatIsClosedEndsTheProxy(t *testing.T) {
	l := listeners.NewMemory()
	l.Close()
	if err := (&acceptor{out: io.Discard}).run(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("it ends with %v", err)
	}
}

func TestOneAddressCannotTakeAllConnections(t *testing.T) {
	a := &acceptor{most: 3, mostPer: 2}
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i, want := range []bool{true, true, false} {
		if a.enter(one) != want {
			t.Fatalf("connection %d of one address: want %v", i+1, want)
		}
	}
	if !a.enter(two) || a.enter(two) {
		t.Fatal("there is room for one of another address")
	}
	a.leave(one)
	if !a.enter(two) {
		t.Fatal("a connection that has ended gives its place back")
	}
}
