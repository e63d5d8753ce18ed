package admin

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// This file is Basic: names and passwords in each request.

const (
	basicKept     = time.Minute // how long a right password needs no new check
	basicFailures = 20          // from one network in a basicWindow
	basicWindow   = time.Minute
	basicEntries  = 1024 // of each of the two tables
	basicChecks   = 2    // at a time
)

// Basic returns an Options.Authorize that takes the name and password of HTTP Basic authentication
// to check, which returns the role; RoleNone and an error refuse. A right password is not checked
// again for a minute, because a check should be slow, and each request has a password. So somebody
// whose password was changed is out after a minute. After 20 failures in a minute from one network
// Basic refuses all requests from there with 429 for the rest of the minute.
func Basic(check func(ctx context.Context, user, password string) (Role, error)) func(
	*http.Request) (Identity, error) {
	b := &basic{check: check, right: map[[32]byte]rightPassword{}, wrong: map[netip.Addr]failures{},
		checks: make(chan struct{}, basicChecks)}
	_, _ = rand.Read(b.key[:]) // never fails
	return b.authorize
}

type basic struct {
	check  func(ctx context.Context, user, password string) (Role, error)
	key    [32]byte
	checks chan struct{} // a place for each check

	mu    sync.Mutex
	right map[[32]byte]rightPassword // guarded by mu
	wrong map[netip.Addr]failures    // guarded by mu
}

type rightPassword struct {
	role  Role
	until time.Time
}

type failures struct {
	n     int
	until time.Time
}

func (b *basic) authorize(r *http.Request) (Identity, error) {
	user, password, ok := r.BasicAuth()
	if !ok || user == "" {
		return Identity{}, fail(http.StatusUnauthorized, "unauthenticated",
			"this takes a name and a password")
	}
	who, from := Identity{User: user}, network(r.RemoteAddr)
	mac := hmac.New(sha256.New, b.key[:])
	mac.Write([]byte(user + "\x00" + password))
	key := [32]byte(mac.Sum(nil))
	now := time.Now()
	b.mu.Lock()
	known := b.right[key]
	limited := b.wrong[from].n >= basicFailures && now.Before(b.wrong[from].until)
	b.mu.Unlock()
	switch {
	case now.Before(known.until):
		who.Role = known.role
		return who, nil
	case limited:
		return who, fail(http.StatusTooManyRequests, "slow_down",
			"too many wrong passwords have come from your network: wait a minute")
	}
	select {
	case b.checks <- struct{}{}:
		defer func() { <-b.checks }()
	case <-r.Context().Done():
		return who, r.Context().Err()
	}
	role, err := b.check(r.Context(), user, password)
	if r.Context().Err() != nil {
		return who, r.Context().Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil || role == RoleNone {
		x := b.wrong[from]
		if now.After(x.until) {
			x = failures{until: now.Add(basicWindow)}
		}
		x.n++
		put(b.wrong, from, x)
		return who, fail(http.StatusUnauthorized, "unauthenticated",
			"the name or the password is wrong")
	}
	put(b.right, key, rightPassword{role, now.Add(basicKept)})
	who.Role = role
	return who, nil
}

// put adds to a table. If it is full, any other entry makes room.
func put[K comparable, V any](table map[K]V, key K, v V) {
	if _, there := table[key]; !there && len(table) >= basicEntries {
		for other := range table {
			delete(table, other)
			break
		}
	}
	table[key] = v
}

// network is the IPv4 address, or the /64 network of the IPv6 address, in a RemoteAddr.
func network(remote string) netip.Addr {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() && !ip.IsLoopback() {
		p, _ := ip.Prefix(64) // an IPv6 address has 128 bits
		ip = p.Addr()
	}
	return ip
}
