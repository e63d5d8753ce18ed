// Package guard knows what an address, a Client Identifier and the owner of a client may do how
// often, and who is banned. Its tables are bounded and have no goroutine: an entry is looked at
// when its address or name comes up, and makes room for others.
package guard

import (
	"net"
	"net/netip"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// MaxIdle is how many addresses without a connection, names of takeovers, and owners without a
// connection a table remembers.
const MaxIdle = 1 << 16

// A Guard is all tables.
type Guard struct {
	Bans      Bans
	Addresses *Addresses
	Takeovers *Takeovers
	Paces     *Paces
}

// New returns empty tables.
func New(l Limits) *Guard {
	return &Guard{Addresses: NewAddresses(l), Takeovers: NewTakeovers(), Paces: NewPaces()}
}

// The locks are leaves.
type (
	addressesLock struct{}
	takeoversLock struct{}
	pacesLock     struct{} // with paceLock after it
	paceLock      struct{}
	bansLock      struct{}
)

func (addressesLock) Rank() lock.Rank {
	return lock.Rank{Order: lock.Leaf, Name: "guard.Addresses.mu"}
}
func (takeoversLock) Rank() lock.Rank {
	return lock.Rank{Order: lock.Leaf, Name: "guard.Takeovers.mu"}
}
func (pacesLock) Rank() lock.Rank {
	return lock.Rank{Order: lock.BeforeLeaf, Name: "guard.Paces.mu"}
}
func (paceLock) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "guard.Pace.mu"} }
func (bansLock) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "guard.Bans.mu"} }

// A bucket holds tokens, which come at a rate, up to a burst. Zero: full.
type bucket struct {
	level float64
	at    int64 // when level was right, Unix nanoseconds
}

// fill adds what has come since.
func (k *bucket) fill(now int64, rate, burst float64) {
	if k.at == 0 {
		k.level = burst
	} else if now > k.at {
		k.level = min(burst, k.level+float64(now-k.at)/1e9*rate)
	}
	k.at = max(now, k.at)
}

// has says whether there is a token.
func (k *bucket) has(now int64, rate, burst float64) bool {
	k.fill(now, rate, burst)
	return k.level >= 1
}

// take takes a token if there is one.
func (k *bucket) take(now int64, rate, burst float64) bool {
	if !k.has(now, rate, burst) {
		return false
	}
	k.level--
	return true
}

// RemoteIP returns the IP address of a peer, the zero Addr if it has none. IPv4 in IPv6 is IPv4.
func RemoteIP(a net.Addr) netip.Addr {
	var ip netip.Addr
	if t, is := a.(*net.TCPAddr); is {
		ip = t.AddrPort().Addr()
	} else if a != nil {
		ap, err := netip.ParseAddrPort(a.String())
		if err != nil {
			return ip
		}
		ip = ap.Addr()
	}
	return ip.Unmap().WithZone("")
}

// Network returns what counts as one address: of IPv6 the /64, which is what one subscriber has.
func Network(ip netip.Addr) netip.Addr {
	if ip.Is6() && !ip.IsLoopback() {
		p, _ := ip.Prefix(64)
		ip = p.Addr()
	}
	return ip
}

// Local says whether ip is a loopback address or none. The default limits do not hold for these:
// what is tried out or measured on one machine, and proxies in front of the broker, are not what
// they are for.
func Local(ip netip.Addr) bool { return !ip.IsValid() || ip.IsLoopback() }
