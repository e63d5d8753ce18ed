package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
)

const (
	// proxyTimeout is how long a proxy may take for its header.
	proxyTimeout = 5 * time.Second
	// proxyHeaders is how many headers are awaited at a time. Further connections wait to be
	// accepted.
	proxyHeaders = 256
)

// proxy are the flags.
type proxy struct {
	version int
	from    list
}

func (p *proxy) flags(fs *flag.FlagSet) {
	fs.IntVar(&p.version, "proxy-protocol", 0, "`version`, 1 or 2, of the PROXY protocol that has "+
		"to begin every connection over TCP (default none)")
	fs.Var(&p.from, "proxy-from", "address or `prefix` of the proxies, repeatable; connections "+
		"from elsewhere are closed (default 127.0.0.0/8 and ::1)")
}

// check says what does not go together. others says that a mosquitto.conf has such listeners.
func (p *proxy) check(others bool) error {
	if p.version < 0 || p.version > 2 {
		return fmt.Errorf("-proxy-protocol %d is not 1 or 2", p.version)
	}
	if p.version == 0 && len(p.from) > 0 && !others {
		return errors.New("-proxy-from needs -proxy-protocol")
	}
	return nil
}

// A proxied is a listener for connections that come through proxies, each of which begins with a
// header that says from where (the PROXY protocol). That address is what RemoteAddr of the
// connections returns. A connection that comes from elsewhere, or has no header of the right
// version, is closed.
//
// Headers are read before Accept returns the connection, so that asking for its address never
// waits.
type proxied struct {
	net.Listener
	ready  chan net.Conn
	failed chan error // what the Listener's Accept returned
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // Close waits for it
}

// newProxied takes over l. Proxies are at the addresses of from, which hold addresses and prefixes;
// empty: on this machine.
func newProxied(l net.Listener, version byte, from []string) (net.Listener, error) {
	if len(from) == 0 {
		from = []string{"127.0.0.0/8", "::1"}
	}
	policy, err := proxyproto.PolicyFromRanges(from, proxyproto.REQUIRE, proxyproto.REJECT)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("-proxy-from: %w", err)
	}
	p := &proxied{Listener: l, ready: make(chan net.Conn), failed: make(chan error)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.work.Go(func() { p.accept(version, policy) })
	return p, nil
}

// accept accepts connections until Close.
func (p *proxied) accept(version byte, policy proxyproto.ConnPolicyFunc) {
	slots := make(chan struct{}, proxyHeaders)
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			select {
			case p.failed <- err:
				continue
			case <-p.ctx.Done():
				return
			}
		}
		with, err := policy(proxyproto.ConnPolicyOptions{Upstream: c.RemoteAddr(),
			Downstream: c.LocalAddr()})
		if err != nil || with == proxyproto.REJECT {
			c.Close()
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-p.ctx.Done():
			c.Close()
			return
		}
		p.work.Go(func() { // ends with the header, its time-out, or Close, which waits for it
			defer func() { <-slots }()
			p.header(c, version)
		})
	}
}

// header reads the header of a connection and hands it to Accept.
func (p *proxied) header(c net.Conn, version byte) {
	stop := context.AfterFunc(p.ctx, func() { c.Close() })
	defer stop()
	conn := proxyproto.NewConn(c, proxyproto.WithPolicy(proxyproto.REQUIRE),
		proxyproto.SetReadHeaderTimeout(proxyTimeout))
	if h := conn.ProxyHeader(); h == nil || h.Version != version {
		c.Close()
		return
	}
	select {
	case p.ready <- conn:
	case <-p.ctx.Done():
		c.Close()
	}
}

// Accept returns the next connection whose header has come.
func (p *proxied) Accept() (net.Conn, error) {
	select {
	case c := <-p.ready:
		return c, nil
	case err := <-p.failed:
		return nil, err
	case <-p.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close closes the listener and the connections that Accept has not returned.
func (p *proxied) Close() error {
	p.cancel()
	err := p.Listener.Close()
	p.work.Wait()
	return err
}
