package guard

import (
	"net/netip"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Limits bound the connections of addresses.
type Limits struct {
	PerIP     int     // connections of an address at a time
	RatePerIP float64 // connections of an address per second; 0: no limit
	Rate      float64 // connections per second in all; 0: no limit

	// Whether the limit holds for Local addresses as well.
	PerIPForLocal, RatePerIPForLocal, RateForLocal bool
}

// An Address is what is known of an IPv4 address or an IPv6 /64 network.
type Address struct {
	IP netip.Addr // immutable

	// Early is how many of its connections have not sent their CONNECT. The caller guards it.
	Early int

	conns    int // guarded by Addresses.mu, as the next
	connects bucket
}

// Addresses is the table of them. Those with a connection are as many as there are connections. Of
// others it keeps MaxIdle.
type Addresses struct {
	mu       lock.Mutex[addressesLock]
	limits   Limits                  // guarded by mu
	of       map[netip.Addr]*Address // guarded by mu
	idle     int                     // how many of them have no connection; guarded by mu
	connects bucket                  // in all; guarded by mu
}

// NewAddresses returns an empty table.
func NewAddresses(l Limits) *Addresses {
	return &Addresses{limits: l, of: make(map[netip.Addr]*Address)}
}

// Limit sets the limits from now on. Connections beyond them stay.
func (as *Addresses) Limit(l Limits) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.limits = l
}

// Admit counts a new connection from ip, or says why it is not taken up. Dismiss must follow when
// it ends, with what Admit has returned: nil for a peer without IP address.
func (as *Addresses) Admit(ip netip.Addr, now time.Time) (*Address, error) {
	ip, at := Network(ip), now.UnixNano()
	as.mu.Lock()
	defer as.mu.Unlock()
	l := &as.limits
	if err := as.refusalLocked(ip, at); err != nil {
		return nil, err
	}
	if l.RateForLocal || !Local(ip) {
		as.connects.take(at, l.Rate, max(l.Rate, 1))
	}
	if !ip.IsValid() {
		return nil, nil
	}
	x := as.entryLocked(ip)
	x.connects.take(at, l.RatePerIP, max(l.RatePerIP, 1))
	if x.conns++; x.conns == 1 {
		as.idle--
	}
	return x, nil
}

// Refusal says why a connection from ip would not be taken up now, if it would not. It counts
// nothing.
func (as *Addresses) Refusal(ip netip.Addr, now time.Time) error {
	as.mu.Lock()
	defer as.mu.Unlock()
	return as.refusalLocked(Network(ip), now.UnixNano())
}

// refusalLocked is Refusal. It takes nothing from any bucket, so that an address that is refused
// does not use up what all have. as.mu is held.
func (as *Addresses) refusalLocked(ip netip.Addr, at int64) error {
	l, local := &as.limits, Local(ip)
	if x := as.of[ip]; x != nil {
		switch {
		case x.conns >= l.PerIP && (l.PerIPForLocal || !local):
			return packets.Errorf(packets.QuotaExceeded,
				"more than %d connections from the address", l.PerIP)
		case l.RatePerIP > 0 && (l.RatePerIPForLocal || !local) &&
			!x.connects.has(at, l.RatePerIP, max(l.RatePerIP, 1)):
			return packets.Errorf(packets.ConnectionRateExceeded,
				"more than %g connections per second from the address", l.RatePerIP)
		}
	}
	if l.Rate > 0 && (l.RateForLocal || !local) && !as.connects.has(at, l.Rate, max(l.Rate, 1)) {
		return packets.Errorf(packets.ConnectionRateExceeded,
			"more than %g connections per second", l.Rate)
	}
	return nil
}

// entryLocked returns what is known of ip, and makes room if it is new. as.mu is held.
func (as *Addresses) entryLocked(ip netip.Addr) *Address {
	if a := as.of[ip]; a != nil {
		return a
	}
	if as.idle >= MaxIdle {
		for old, a := range as.of { // in no order: whoever fills the table cannot choose
			if a.conns == 0 {
				delete(as.of, old)
				as.idle--
				break
			}
		}
	}
	a := &Address{IP: ip}
	as.of[ip] = a
	as.idle++
	return a
}

// Dismiss is the end of a connection that was admitted with x, which may be nil.
func (as *Addresses) Dismiss(x *Address, now time.Time) {
	if x == nil {
		return
	}
	as.mu.Lock()
	defer as.mu.Unlock()
	if x.conns--; x.conns > 0 {
		return
	}
	as.idle++
	burst := max(as.limits.RatePerIP, 1)
	x.connects.fill(now.UnixNano(), as.limits.RatePerIP, burst)
	if x.connects.level >= burst { // nothing to remember
		delete(as.of, x.IP)
		as.idle--
	}
}

// Len returns how many addresses are known, and how many of them have no connection.
func (as *Addresses) Len() (all, idle int) {
	as.mu.Lock()
	defer as.mu.Unlock()
	return len(as.of), as.idle
}

// Connections returns how many connections ip has. ok is false if nothing is known of it.
func (as *Addresses) Connections(ip netip.Addr) (n int, ok bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	x := as.of[Network(ip)]
	if x == nil {
		return 0, false
	}
	return x.conns, true
}
