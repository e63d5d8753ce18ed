package dunlin

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// BanKind says what a Ban is about.
type BanKind byte

const (
	// BanAddress: an IP address ("192.0.2.7") or network ("2001:db8::/32"). Its connections are closed before anything is read.
	BanAddress BanKind = iota + 1
	// BanClient: a Client Identifier, whoever uses it. Its CONNECT is refused with Banned (0x8A).
	BanClient
	// BanUser: a User Name, before it is verified, or a Principal. Its CONNECT is refused with Banned (0x8A).
	BanUser
	// BanSession: a Client Identifier as one principal uses it, where Config.SessionPerPrincipal gives each principal Sessions
	// of its own. The Value is the Client Identifier, U+0000 and the Principal, or the Client Identifier alone for clients
	// without Principal and User Name. Its CONNECT is refused with Banned (0x8A), that of others is not.
	BanSession
)

// String returns "address", "client", "user" or "session".
func (k BanKind) String() string {
	switch k {
	case BanAddress:
		return "address"
	case BanClient:
		return "client"
	case BanUser:
		return "user"
	case BanSession:
		return "session"
	}
	return fmt.Sprintf("BanKind(%d)", byte(k))
}

// A Ban keeps somebody out.
type Ban struct {
	Kind  BanKind
	Value string
	// Until is when it ends. Zero: with Unban.
	Until time.Time
	// Reason is for those who read the list; clients are not told.
	Reason string
}

// A banList is all Bans. Those of the Broker itself are bounded; a program may add as many as it likes.
type banList struct {
	n  atomic.Int64 // how many there are, so that none cost nothing
	mu sync.RWMutex
	// Guarded by mu.
	of        map[banKey]*banned
	lengths   map[int]int // how many networks there are of each prefix length, IPv6 ones plus 256
	automatic int         // how many are of the Broker itself
}

type banKey struct {
	kind  BanKind
	value string // a network in its canonical form
}

type banned struct {
	Ban
	automatic bool
}

// maxAutomatic is how many Bans of the Broker itself there are at a time. The one that ends first makes room.
const maxAutomatic = 10_000

// Bans returns the Bans in force, ordered by kind and value.
func (b *Broker) Bans() []Ban {
	now := time.Now()
	l := &b.bans
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(now)
	out := make([]Ban, 0, len(l.of))
	for _, x := range l.of {
		out = append(out, x.Ban)
	}
	slices.SortFunc(out, func(a, b Ban) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Value, b.Value)) })
	return out
}

// Ban adds x, in the place of one with the same Kind and Value, and ends the connections that it is about with Administrative action
// (0x98). Their Sessions stay. Bans do not outlive the Broker. The error says what is wrong with x.
func (b *Broker) Ban(x Ban) error {
	switch {
	case x.Value == "" && x.Kind != BanUser:
		return errors.New("dunlin: Ban: an empty Value")
	case x.Kind < BanAddress || x.Kind > BanSession:
		return fmt.Errorf("dunlin: Ban: %d is none of BanAddress, BanClient, BanUser and BanSession", x.Kind)
	case x.Kind == BanSession && !b.cfg.SessionPerPrincipal:
		return errors.New("dunlin: Ban: BanSession needs Config.SessionPerPrincipal, use BanClient")
	case !x.Until.IsZero() && !x.Until.After(time.Now()):
		return fmt.Errorf("dunlin: Ban: it ended at %v", x.Until)
	}
	if x.Kind == BanAddress {
		p, err := parseNetwork(x.Value)
		if err != nil {
			return fmt.Errorf("dunlin: Ban: %q is neither an IP address nor a network: %w", x.Value, err)
		}
		x.Value = formatNetwork(p)
	}
	b.ban(x, false)
	return nil
}

// Unban ends a Ban and says whether there was one.
func (b *Broker) Unban(kind BanKind, value string) bool {
	if kind == BanAddress {
		p, err := parseNetwork(value)
		if err != nil {
			return false
		}
		value = formatNetwork(p)
	}
	l := &b.bans
	l.mu.Lock()
	x := l.of[banKey{kind, value}]
	over := x == nil || x.over(time.Now())
	if x != nil {
		l.remove(x)
	}
	l.mu.Unlock()
	if !over {
		b.log.Info("ban lifted", "kind", kind, "value", value)
	}
	return !over
}

// parseNetwork reads an address or a network; v4 in v6 is v4.
func parseNetwork(s string) (netip.Prefix, error) {
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

// formatNetwork writes a whole address without its length.
func formatNetwork(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// ban adds x and makes it come true.
func (b *Broker) ban(x Ban, automatic bool) {
	now := time.Now()
	l := &b.bans
	l.mu.Lock()
	key := banKey{x.Kind, x.Value}
	if old := l.of[key]; old != nil {
		if automatic && !old.automatic && !old.over(now) { // what the program said stands
			l.mu.Unlock()
			return
		}
		l.remove(old)
	}
	if automatic && l.automatic >= maxAutomatic {
		l.makeRoom(now)
	}
	l.add(key, &banned{x, automatic})
	l.mu.Unlock()
	b.log.Warn("banned", "kind", x.Kind, "value", x.Value, "until", x.Until, "reason", x.Reason)
	if f := b.obs.Banned; f != nil {
		f(x.Kind.String(), x.Value, x.Reason, x.Until)
	}
	b.endBanned(x)
}

// endBanned ends the connections that x is about.
func (b *Broker) endBanned(x Ban) {
	var network netip.Prefix
	if x.Kind == BanAddress {
		network, _ = parseNetwork(x.Value) // Ban has checked it
	}
	b.mu.Lock()
	conns := slices.Collect(maps.Keys(b.conns))
	early := slices.Collect(maps.Keys(b.early))
	b.mu.Unlock()
	for _, c := range conns {
		if c.isOf(x, network) {
			b.end(c, packets.Errorf(packets.AdministrativeAction, "banned"))
		}
	}
	if x.Kind == BanAddress {
		b.endEarlyOf(early, network)
	}
}

// endEarlyOf closes those of conns that come from a network and are not accepted yet.
func (b *Broker) endEarlyOf(conns []*conn, network netip.Prefix) {
	conns = slices.DeleteFunc(conns, func(c *conn) bool {
		ip, ok := remoteIP(c.nc.RemoteAddr())
		return !ok || !network.Contains(ip)
	})
	b.mu.Lock()
	conns = slices.DeleteFunc(conns, func(c *conn) bool { return !b.dismissLocked(c) })
	b.mu.Unlock()
	closeAll(conns)
}

// isOf says whether x is about c, which is accepted. network is that of a BanAddress.
func (c *conn) isOf(x Ban, network netip.Prefix) bool {
	if x.Kind == BanAddress {
		ip, ok := remoteIP(c.nc.RemoteAddr())
		return ok && network.Contains(ip)
	}
	c.sess.mu.Lock()
	defer c.sess.mu.Unlock()
	switch x.Kind {
	case BanClient:
		return c.sess.id == x.Value
	case BanSession:
		return c.sess.place() == x.Value
	}
	return c.sess.named && (c.sess.principal == x.Value || c.sess.who().Username == x.Value)
}

func (x *banned) over(now time.Time) bool { return !x.Until.IsZero() && !x.Until.After(now) }

// add and remove are called with the lock held.
func (l *banList) add(key banKey, x *banned) {
	if l.of == nil {
		l.of, l.lengths = make(map[banKey]*banned), make(map[int]int)
	}
	l.of[key] = x
	l.count(x, 1)
}

func (l *banList) remove(x *banned) {
	delete(l.of, banKey{x.Kind, x.Value})
	l.count(x, -1)
}

func (l *banList) count(x *banned, n int) {
	l.n.Add(int64(n))
	if x.automatic {
		l.automatic += n
	}
	if x.Kind == BanAddress {
		p, _ := parseNetwork(x.Value)
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

// sweep removes what is over.
func (l *banList) sweep(now time.Time) {
	for _, x := range l.of {
		if x.over(now) {
			l.remove(x)
		}
	}
}

// makeRoom removes what is over or, if that is nothing, the Ban of the Broker itself that ends first.
func (l *banList) makeRoom(now time.Time) {
	if l.sweep(now); l.automatic < maxAutomatic {
		return
	}
	var first *banned
	for _, x := range l.of {
		if x.automatic && (first == nil || x.Until.Before(first.Until)) {
			first = x
		}
	}
	l.remove(first)
}

// has says whether there is such a Ban.
func (l *banList) has(kind BanKind, value string, now time.Time) bool {
	if l.n.Load() == 0 {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	x := l.of[banKey{kind, value}]
	return x != nil && !x.over(now)
}

// address says whether ip is banned.
func (l *banList) address(ip netip.Addr, ok bool, now time.Time) bool {
	if !ok || l.n.Load() == 0 {
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
		if x := l.of[banKey{BanAddress, formatNetwork(p)}]; x != nil && !x.over(now) {
			return true
		}
	}
	return false
}

// barred says why the client must not connect, if it must not, whoever it may be.
func (c *conn) barred(now time.Time) error {
	l := &c.b.bans
	if l.n.Load() == 0 {
		return nil
	}
	x := c.client
	user := x.HasUsername && l.has(BanUser, x.Username, now) || x.Identity.Principal != "" && l.has(BanUser, x.Identity.Principal, now)
	if user || l.has(BanClient, x.ID, now) {
		return errBarred
	}
	return nil
}

// barredAs is barred for a client whose Principal is known.
func (c *conn) barredAs(now time.Time) error {
	if c.b.bans.has(BanSession, c.sessionKey(), now) {
		return errBarred
	}
	return c.barred(now)
}

var errBarred = &packets.Error{Code: packets.Banned, Err: errors.New("the client or its user is banned")}
