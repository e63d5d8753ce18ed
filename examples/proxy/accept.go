package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// An acceptor takes connections from a listener and has each served by a goroutine.
type acceptor struct {
	serve   func(context.Context, net.Conn) error
	out     io.Writer
	most    int // connections at a time; others are closed
	mostPer int // of one address

	mu    sync.Mutex
	conns int                // guarded by mu, as is the next
	of    map[netip.Addr]int // by address
}

// run serves until ctx ends or the listener is closed. It returns when all connections have ended.
// An Accept that fails otherwise, because there are no descriptors left for instance, is tried
// again after a pause.
func (a *acceptor) run(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	var pause time.Duration
	for {
		c, err := l.Accept()
		if err == nil {
			pause = 0
			serving.Go(func() { a.one(ctx, c) }) // ends with ctx
			continue
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		fmt.Fprintf(a.out, "%v; trying again in %v\n", err, pause)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// one serves a connection, if there is room for it.
func (a *acceptor) one(ctx context.Context, c net.Conn) {
	defer c.Close()
	ap, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // zero if it is something else
	ip := ap.Addr().Unmap()
	if !a.enter(ip) {
		return
	}
	defer a.leave(ip)
	if err := a.serve(ctx, c); err != nil && ctx.Err() == nil {
		fmt.Fprintf(a.out, "%v: %v\n", c.RemoteAddr(), err)
	}
}

// enter counts a connection, and says whether there is room for it.
func (a *acceptor) enter(ip netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns >= a.most || a.of[ip] >= a.mostPer {
		return false
	}
	if a.of == nil {
		a.of = make(map[netip.Addr]int)
	}
	a.conns++
	a.of[ip]++
	return true
}

func (a *acceptor) leave(ip netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns--
	if a.of[ip]--; a.of[ip] == 0 {
		delete(a.of, ip)
	}
}
