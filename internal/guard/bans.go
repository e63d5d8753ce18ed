package guard

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// A Ban keeps somebody out. What its Kind means is the caller's, but for AddressKind, whose Value
// is an address or a network as FormatNetwork writes it.
type Ban struct {
	Kind   byte
	Value  string
	Until  time.Time // zero: until it is removed
	Reason string

	// Automatic: the broker itself has made it. These are bounded.
	Automatic bool
}

// AddressKind is the Kind of Bans of addresses.
const AddressKind = 1

// How many automatic Bans there are at a time, and how long their values are together. The one that
// ends first makes room.
const (
	MaxAutomatic      = 10_000
	MaxAutomaticBytes = 1 << 20
)

// Bans is all Bans. A program may add as many as it likes. The zero value is ready for use.
type Bans struct {
	n  atomic.Int64 // how many there are, so that none cost nothing
	mu lock.RWMutex[bansLock]
	// Guarded by mu.
	of        map[banKey]*Ban
	lengths   map[int]int // how many networks there are of each prefix length, IPv6 ones plus 256
	automatic int         // how many are automatic
	bytes     int         // of the values of these
}

type banKey struct {
	kind  byte
	value string
}

func (x *Ban) over(now time.Time) bool { return !x.Until.IsZero() && !x.Until.After(now) }

// All returns the Bans in force, in no order.
func (l *Bans) All(now time.Time) []Ban {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweepLocked(now)
	out := make([]Ban, 0, len(l.of))
	for _, x := range l.of {
		out = append(out, *x)
	}
	return out
}

// Add adds x, in the place of one with the same Kind and Value. An automatic one does not take the
// place of one that the program has added. Add says whether x was added.
func (l *Bans) Add(x Ban, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := banKey{x.Kind, x.Value}
	if old := l.of[key]; old != nil {
		if x.Automatic && !old.Automatic && !old.over(now) {
			return false
		}
		l.removeLocked(old)
	}
	if x.Automatic {
		l.makeRoomLocked(len(x.Value), now)
	}
	if l.of == nil {
		l.of, l.lengths = make(map[banKey]*Ban), make(map[int]int)
	}
	l.of[key] = &x
	l.countLocked(&x, 1)
	return true
}

// Remove ends a Ban and says whether there was one in force.
func (l *Bans) Remove(kind byte, value string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.of[banKey{kind, value}]
	if x == nil {
		return false
	}
	l.removeLocked(x)
	return !x.over(now)
}

// removeLocked takes x out. l.mu is held.
func (l *Bans) removeLocked(x *Ban) {
	delete(l.of, banKey{x.Kind, x.Value})
	l.countLocked(x, -1)
}

// countLocked counts x, n times more. l.mu is held.
func (l *Bans) countLocked(x *Ban, n int) {
	l.n.Add(int64(n))
	if x.Automatic {
		l.automatic += n
		l.bytes += n * len(x.Value)
	}
	if x.Kind == AddressKind {
		p, _ := ParseNetwork(x.Value)
		k := lengthKey(p.Addr(), p.Bits())
		if l.lengths[k] += n; l.lengths[k] == 0 {
			delete(l.lengths, k)
		}
	}
}

func lengthKey(ip netip.Addr, bits int) int {
	if ip.Is6() {
		bits += 256
	}
	return bits
}

// sweepLocked removes what is over. l.mu is held.
func (l *Bans) sweepLocked(now time.Time) {
	for _, x := range l.of {
		if x.over(now) {
			l.removeLocked(x)
		}
	}
}

// makeRoomLocked makes room for an automatic Ban with a value of n bytes: it removes what is over,
// and then those automatic ones that end first. l.mu is held.
func (l *Bans) makeRoomLocked(n int, now time.Time) {
	room := func() bool { return l.automatic < MaxAutomatic && l.bytes+n <= MaxAutomaticBytes }
	if room() {
		return
	}
	for l.sweepLocked(now); !room() && l.automatic > 0; {
		var first *Ban
		for _, x := range l.of {
			if x.Automatic && (first == nil || x.Until.Before(first.Until)) {
				first = x
			}
		}
		l.removeLocked(first)
	}
}

// Any says whether there is any Ban.
func (l *Bans) Any() bool { return l.n.Load() > 0 }

// Has says whether there is such a Ban in force.
func (l *Bans) Has(kind byte, value string, now time.Time) bool {
	if !l.Any() {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	x := l.of[banKey{kind, value}]
	return x != nil && !x.over(now)
}

// HasAddress says whether ip, which may be the zero Addr, is banned.
func (l *Bans) HasAddress(ip netip.Addr, now time.Time) bool {
	if !ip.IsValid() || !l.Any() {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	for k := range l.lengths {
		if ip.Is6() != (k >= 256) {
			continue
		}
		p, err := ip.Prefix(k % 256)
		if err != nil {
			continue
		}
		if x := l.of[banKey{AddressKind, FormatNetwork(p)}]; x != nil && !x.over(now) {
			return true
		}
	}
	return false
}

// ParseNetwork reads an address or a network. IPv4 in IPv6 is IPv4.
func ParseNetwork(s string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		ip = ip.Unmap().WithZone("")
		return ip.Prefix(ip.BitLen())
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, err
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// Within says whether the host of an address, HOST:PORT, is in a network as FormatNetwork
// writes it.
func Within(address, network string) bool {
	at, err := netip.ParseAddrPort(address)
	p, bad := ParseNetwork(network)
	return err == nil && bad == nil && p.Contains(at.Addr().Unmap().WithZone(""))
}

// FormatNetwork is the canonical form of a network: a whole address is written without its length.
func FormatNetwork(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
