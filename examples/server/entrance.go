package main

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// This file bounds the connections of -http and -pprof.

// An entrance is a listener with a bounded number of connections, in all and from one address. When
// it is full, a new connection takes the place of the one that has waited longest for a request. If
// all others are busy, the new one is closed.
type entrance struct {
	net.Listener
	most, perHost int

	mu    sync.Mutex
	open  map[*visit]bool // guarded by mu
	hosts map[string]int  // guarded by mu; connections by address
}

// A visit is a connection of an entrance.
type visit struct {
	net.Conn
	of      *entrance
	host    string
	resting time.Time // guarded by entrance.mu; since when it waits for a request; zero: it does not
}

func newEntrance(l net.Listener, most, perHost int) *entrance {
	return &entrance{Listener: l, most: most, perHost: perHost, open: map[*visit]bool{},
		hosts: map[string]int{}}
}

// Accept returns the next connection that there is room for.
func (g *entrance) Accept() (net.Conn, error) {
	for {
		nc, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &visit{Conn: nc, of: g, host: nc.RemoteAddr().String(), resting: time.Now()}
		if host, _, err := net.SplitHostPort(c.host); err == nil {
			c.host = host
		}
		over, ok := g.enter(c)
		if over != nil {
			over.Conn.Close()
		}
		if ok {
			return c, nil
		}
		nc.Close()
	}
}

// enter counts c, if there is room for it. The connection over, if any, has to go for that.
func (g *entrance) enter(c *visit) (over *visit, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.hosts[c.host] >= g.perHost:
		over = g.longestLocked(c.host)
	case len(g.open) >= g.most:
		over = g.longestLocked("")
	default:
		g.open[c] = true
		g.hosts[c.host]++
		return nil, true
	}
	if over == nil {
		return nil, false
	}
	g.leaveLocked(over)
	g.open[c] = true
	g.hosts[c.host]++
	return over, true
}

// longestLocked returns the connection that has waited longest for a request, of a host if one is
// given; nil if there is none. g.mu is held.
func (g *entrance) longestLocked(host string) (longest *visit) {
	for c := range g.open {
		if c.resting.IsZero() || host != "" && c.host != host {
			continue
		}
		if longest == nil || c.resting.Before(longest.resting) {
			longest = c
		}
	}
	return longest
}

// leaveLocked gives the place of c back. g.mu is held.
func (g *entrance) leaveLocked(c *visit) {
	if !g.open[c] {
		return
	}
	delete(g.open, c)
	if g.hosts[c.host]--; g.hosts[c.host] == 0 {
		delete(g.hosts, c.host)
	}
}

// Close gives the place back.
func (c *visit) Close() error {
	c.of.mu.Lock()
	c.of.leaveLocked(c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// state is the ConnState of an http.Server.
func (g *entrance) state(nc net.Conn, to http.ConnState) {
	c, ok := nc.(*visit)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch to {
	case http.StateNew, http.StateIdle:
		c.resting = time.Now()
	default:
		c.resting = time.Time{}
	}
}
