package acl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Effect is what a Rule does. There is no default.
type Effect byte

const (
	// Allow allows.
	Allow Effect = iota + 1
	// Deny denies.
	Deny
)

// String returns "allow" or "deny".
func (e Effect) String() string {
	switch e {
	case Allow:
		return "allow"
	case Deny:
		return "deny"
	}
	return fmt.Sprintf("Effect(%d)", byte(e))
}

// A Rule allows some clients something, or denies it to them.
type Rule struct {
	// Effect must be Allow or Deny.
	Effect Effect
	// Who says which clients the rule is for. Zero: all.
	Who Who
	// Action is what they do. Zero: publishing and subscribing.
	Action hooks.Action
	// Filters are Topic Filters, at least one, in which %u and %c stand for names as described at the package.
	Filters []string
}

// Who says which clients a Rule is for: those of which every condition is true that is not zero.
type Who struct {
	// User is the client's name (hooks.Client.User).
	User string
	// Anonymous is for clients without a name.
	Anonymous bool
	// ClientID is the Client Identifier.
	ClientID string
	// Role is one of the client's roles.
	Role string
	// Tenant is the client's tenant.
	Tenant string
	// Addr holds the address that the client comes from. In-process clients come from none.
	Addr netip.Prefix
}

// is says whether w is true of c, leaving out User and Anonymous.
func (w *Who) is(c *hooks.Client) bool {
	return (w.ClientID == "" || w.ClientID == c.ID) &&
		(w.Role == "" || slices.Contains(c.Identity.Roles, w.Role)) &&
		(w.Tenant == "" || w.Tenant == c.Identity.Tenant) &&
		(!w.Addr.IsValid() || w.Addr.Contains(address(c.RemoteAddr)))
}

// address returns the address in a, the zero one if there is none.
func address(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case nil:
		return netip.Addr{}
	case *net.TCPAddr:
		ip, _ := netip.AddrFromSlice(a.IP)
		return ip.Unmap()
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return ap.Addr().Unmap().WithZone("")
}

// Rules returns the List of the rules. The first one that applies and matches decides. The error says which rule makes no
// sense.
func Rules(rules ...Rule) (*List, error) {
	var b builder
	for i, r := range rules {
		if err := b.rule(r, fmt.Sprintf("rule %d", i+1)); err != nil {
			return nil, fmt.Errorf("acl: rule %d: %w", i+1, err)
		}
	}
	return b.list(), nil
}

// rule adds r, which errors will call by the name position.
func (b *builder) rule(r Rule, position string) error {
	actions := byte(1<<hooks.Publish | 1<<hooks.Subscribe)
	switch r.Action {
	case 0:
	case hooks.Publish, hooks.Subscribe:
		actions = 1 << r.Action
	default:
		return fmt.Errorf("%d is not an action", r.Action)
	}
	switch {
	case r.Effect != Allow && r.Effect != Deny:
		return errors.New("neither allow nor deny")
	case len(r.Filters) == 0:
		return errors.New("no topic filter")
	case r.Who.Anonymous && r.Who.User != "":
		return errors.New("a client with a user name is not anonymous")
	case r.Who.Addr != netip.Prefix{} && !r.Who.Addr.IsValid():
		return errors.New("the address is no prefix")
	}
	if a := r.Who.Addr; a.Addr().Is4In6() && a.Bits() >= 96 {
		r.Who.Addr = netip.PrefixFrom(a.Addr().Unmap(), a.Bits()-96) // as clients' addresses are
	}
	x := build{user: r.Who.User, anonymous: r.Who.Anonymous}
	x.actions = actions
	if who := (Who{ClientID: r.Who.ClientID, Role: r.Who.Role, Tenant: r.Who.Tenant, Addr: r.Who.Addr}); who != (Who{}) {
		x.who = &who
	}
	for _, f := range r.Filters {
		if _, inner, err := packets.SplitShared(f); err != nil || inner != f {
			return fmt.Errorf("%q: shared subscriptions are decided by the filter inside", f)
		}
		if err := b.add(x, r.Effect, f, true, position); err != nil {
			return err
		}
	}
	b.rules++
	return nil
}

// add adds x for a filter.
func (b *builder) add(x build, effect Effect, filter string, names bool, position string) error {
	if !packets.ValidTopicFilter(filter) {
		return fmt.Errorf("%q is not a topic filter", filter)
	}
	x.levels = compile(filter, names)
	x.uses = uses(x.levels)
	if effect == Deny {
		x.deny = true
		x.err = &packets.Error{
			Code:   packets.NotAuthorized,
			Reason: "denied by a rule",
			Err:    errors.New("acl: " + position + ": deny " + strings.TrimSpace(filter)),
		}
	}
	b.entries = append(b.entries, x)
	return nil
}
