package dunlin

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Names of package hooks that callers of Ban need.
type (
	// BanKind is the kind of a Ban.
	BanKind = hooks.BanKind
	// Ban keeps an address, a client or a user out.
	Ban = hooks.Ban
)

// The kinds of Bans.
const (
	BanAddress BanKind = hooks.BanAddress
	BanClient  BanKind = hooks.BanClient
	BanUser    BanKind = hooks.BanUser
	BanSession BanKind = hooks.BanSession
)

// Bans returns the Bans in force, ordered by kind and value.
func (b *Broker) Bans() []Ban {
	out := []Ban{}
	for _, x := range b.guard.Bans.All(time.Now()) {
		out = append(out, Ban{
			Kind: BanKind(x.Kind), Value: x.Value, Until: x.Until, Reason: x.Reason,
		})
	}
	slices.SortFunc(out, func(a, b Ban) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind),
			cmp.Compare(a.Value, b.Value))
	})
	return out
}

// Ban adds x, in the place of one with the same Kind and Value, and ends the connections that it is
// about with Administrative action (0x98). Their Sessions stay. Bans do not outlive the Broker. The
// error says what is wrong with x.
func (b *Broker) Ban(x Ban) error {
	switch {
	case x.Value == "" && x.Kind != BanUser:
		return errors.New("dunlin: Ban: an empty Value")
	case x.Kind < BanAddress || x.Kind > BanSession:
		return fmt.Errorf(
			"dunlin: Ban: %d is none of BanAddress, BanClient, BanUser and BanSession", x.Kind)
	case x.Kind == BanSession && !b.cfg().SessionPerPrincipal:
		return errors.New("dunlin: Ban: BanSession needs Config.SessionPerPrincipal, use BanClient")
	case !x.Until.IsZero() && !x.Until.After(time.Now()):
		return fmt.Errorf("dunlin: Ban: it ended at %v", x.Until)
	}
	if x.Kind == BanAddress {
		p, err := guard.ParseNetwork(x.Value)
		if err != nil {
			return fmt.Errorf("dunlin: Ban: %q is neither an IP address nor a network: %w", x.Value,
				err)
		}
		x.Value = guard.FormatNetwork(p)
	}
	b.ban(x, bannedByProgram)
	return nil
}

// Unban ends a Ban and says whether there was one.
func (b *Broker) Unban(kind BanKind, value string) bool {
	if kind == BanAddress {
		p, err := guard.ParseNetwork(value)
		if err != nil {
			return false
		}
		value = guard.FormatNetwork(p)
	}
	if !b.guard.Bans.Remove(byte(kind), value, time.Now()) {
		return false
	}
	b.log.Info("ban lifted", "kind", kind, "value", hooks.ShownUser(value))
	return true
}

// A banOrigin says who has made a Ban.
type banOrigin byte

const (
	bannedByProgram banOrigin = iota
	bannedByBroker            // itself
)

// ban adds x and makes it come true.
func (b *Broker) ban(x Ban, by banOrigin) {
	if !b.guard.Bans.Add(guard.Ban{
		Kind: byte(x.Kind), Value: x.Value, Until: x.Until, Reason: x.Reason,
		Automatic: by == bannedByBroker,
	}, time.Now()) {
		return
	}
	b.log.Warn("banned", "kind", x.Kind, "value", hooks.ShownUser(x.Value), "until", x.Until,
		"reason", x.Reason)
	if f := b.obs.Banned; f != nil {
		f(hooks.Banned{Ban: x, Automatic: by == bannedByBroker})
	}
	b.endBanned(x)
}

// endBanned ends the connections that x is about.
func (b *Broker) endBanned(x Ban) {
	var network netip.Prefix
	if x.Kind == BanAddress {
		network, _ = guard.ParseNetwork(x.Value) // Ban has checked it
	}
	b.mu.Lock()
	conns := slices.Collect(maps.Keys(b.conns))
	early := slices.Collect(maps.Keys(b.early))
	b.mu.Unlock()
	for _, c := range conns {
		if c.isOf(x, network) {
			b.endConn(c, errBanned)
		}
	}
	if x.Kind == BanAddress {
		b.endEarlyOf(early, network)
	}
}

// endEarlyOf closes those of conns that come from a network and are not accepted yet.
func (b *Broker) endEarlyOf(conns []*conn, network netip.Prefix) {
	conns = slices.DeleteFunc(conns, func(c *conn) bool {
		return !network.Contains(guard.RemoteIP(c.nc.RemoteAddr()))
	})
	b.mu.Lock()
	conns = slices.DeleteFunc(conns, func(c *conn) bool { return !b.dismissLocked(c) })
	b.mu.Unlock()
	closeAll(conns)
}

// isOf says whether x is about c, which is accepted. network is that of a BanAddress.
func (c *conn) isOf(x Ban, network netip.Prefix) bool {
	if x.Kind == BanAddress {
		return network.Contains(guard.RemoteIP(c.nc.RemoteAddr()))
	}
	c.sess.mu.Lock()
	defer c.sess.mu.Unlock()
	switch x.Kind {
	case BanClient:
		return c.sess.id == x.Value
	case BanSession:
		return c.sess.signature() == x.Value
	}
	s := c.sess
	named := s.named || s.principal != ""
	return named && (s.principal == x.Value || s.who().Username == x.Value)
}

// banned says whether there is such a Ban.
func (b *Broker) banned(kind BanKind, value string, now time.Time) bool {
	return b.guard.Bans.Has(byte(kind), value, now)
}

// barred says why the client must not connect, if it must not, whoever it may be.
func (c *conn) barred(now time.Time) error { return c.b.bars(c.client, now) }

// bars is barred for a client.
func (b *Broker) bars(x *hooks.Client, now time.Time) error {
	if !b.guard.Bans.Any() {
		return nil
	}
	user := x.HasUsername && b.banned(BanUser, x.Username, now) ||
		x.Identity.Principal != "" && b.banned(BanUser, x.Identity.Principal, now)
	if user || b.banned(BanClient, x.ID, now) {
		return errBarred
	}
	return nil
}

// barredAs is barred for a client whose Principal is known.
func (c *conn) barredAs(now time.Time) error {
	key := signature(c.client.ID, c.client.Identity.Principal, c.named())
	if c.b.banned(BanSession, key, now) {
		return errBarred
	}
	return c.barred(now)
}

var errBanned = recent.As(hooks.EndBanned, packets.Errorf(packets.AdministrativeAction, "banned"))

var errBarred = &packets.Error{Code: packets.Banned,
	Err: errors.New("the client or its user is banned")}
