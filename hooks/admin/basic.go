package admin

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
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
// Basic refuses all requests from there with 429 for the rest of the minute, but for those with a
// password that was right before: behind a proxy all come from one address. A request that is given
// up while it is checked has failed.
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
	until time.Time // then it is checked again
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
	who, from, key := Identity{User: user}, network(r.RemoteAddr), b.keyOf(user, password)
	var err error
	if who.Role, err = b.known(key, from); err != nil || who.Role != RoleNone {
		return who, err
	}
	select {
	case b.checks <- struct{}{}:
		defer func() { <-b.checks }()
	case <-r.Context().Done():
		return who, r.Context().Err()
	}
	// others have been checked meanwhile: the same password, or wrong ones from the same network
	if who.Role, err = b.known(key, from); err != nil || who.Role != RoleNone {
		return who, err
	}
	b.failed(from) // until it is found right
	role, err := b.check(r.Context(), user, password)
	if err != nil || role == RoleNone {
		b.forget(key)
		if r.Context().Err() != nil {
			return who, r.Context().Err()
		}
		return who, fail(http.StatusUnauthorized, "unauthenticated",
			"the name or the password is wrong")
	}
	b.remember(key, from, role)
	who.Role = role
	return who, nil
}

// keyOf is what a name and a password are known by.
func (b *basic) keyOf(user, password string) [32]byte {
	mac := hmac.New(sha256.New, b.key[:])
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(user)))) // where one ends
	mac.Write([]byte(user))
	mac.Write([]byte(password))
	return [32]byte(mac.Sum(nil))
}

// known returns the role of a password that needs no check, RoleNone if it needs one. The error
// says that too many have failed.
func (b *basic) known(key [32]byte, from netip.Addr) (Role, error) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	x, before := b.right[key]
	if before && now.Before(x.until) {
		return x.role, nil
	}
	if w := b.wrong[from]; !before && w.n >= basicFailures && now.Before(w.until) {
		return RoleNone, &problem{status: http.StatusTooManyRequests, code: "slow_down",
			retryAfter: basicWindow,
			message:    "too many wrong passwords have come from your network: wait a minute"}
	}
	return RoleNone, nil
}

// failed counts a failure.
func (b *basic) failed(from netip.Addr) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	x := b.wrong[from]
	if !now.Before(x.until) {
		x = failures{until: now.Add(basicWindow)}
	}
	x.n++
	put(b.wrong, from, x)
}

// forget notes that a password is wrong, or is so now.
func (b *basic) forget(key [32]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.right, key)
}

// remember notes that a password is right, and has not failed.
func (b *basic) remember(key [32]byte, from netip.Addr, role Role) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x, ok := b.wrong[from]; ok {
		x.n = max(x.n-1, 0)
		b.wrong[from] = x
	}
	put(b.right, key, rightPassword{role, time.Now().Add(basicKept)})
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
