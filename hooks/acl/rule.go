package acl

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Effect is the effect of a Rule. There is no default.
type Effect byte

const (
	// EffectAllow allows.
	EffectAllow Effect = iota + 1
	// EffectDeny denies.
	EffectDeny
)

// String returns "allow" or "deny".
func (e Effect) String() string {
	switch e {
	case EffectAllow:
		return "allow"
	case EffectDeny:
		return "deny"
	}
	return fmt.Sprintf("Effect(%d)", byte(e))
}

// A Rule allows or denies some clients something.
type Rule struct {
	// Effect must be EffectAllow or EffectDeny.
	Effect Effect
	// Who selects the clients. Zero: all.
	Who Who
	// Action is the action of the client. Zero: publishing and subscribing.
	Action hooks.Action
	// QoS limits the Rule to messages that are published with one of these QoS, and to
	// subscriptions that ask for one of them. When the rules change, a subscription counts with the
	// QoS that it was granted. Nil: any QoS. An empty list is an error.
	QoS []packets.QoS
	// Retain limits the Rule to messages that are published with RETAIN. Then Action must be
	// ActionPublish.
	Retain bool
	// Filters are Topic Filters, at least one. %u, %c and ${attribute} in them stand for names, as
	// the package describes.
	Filters []string
}

// Who selects the clients of a Rule. A client must fulfil every condition that is not zero.
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
	// Attributes are attributes that the client's Identity must have, with these values.
	Attributes map[string]string
	// Listener is the Name of the hooks.Listener that accepted the connection. A client that has
	// not connected since the broker started has no Listener, for instance when its delayed Will is
	// due. A rule that denies does not apply to it then: prefer rules that allow by Listener.
	Listener string
	// Addr contains the client's remote address. In-process clients have no address.
	Addr netip.Prefix
}

// is reports whether c fulfils w, apart from User and Anonymous.
func (w *Who) is(c *hooks.Client) bool {
	return (w.ClientID == "" || w.ClientID == c.ID) &&
		(w.Role == "" || slices.Contains(c.Identity.Roles, w.Role)) &&
		(w.Tenant == "" || w.Tenant == c.Identity.Tenant) &&
		(w.Listener == "" || c.Listener != nil && c.Listener.Name == w.Listener) &&
		w.has(c.Identity.Attributes) &&
		(!w.Addr.IsValid() || w.Addr.Contains(address(c.RemoteAddr)))
}

// has reports whether a client with the attributes fulfils w.Attributes.
func (w *Who) has(attributes map[string]string) bool {
	for name, value := range w.Attributes {
		if v, ok := attributes[name]; !ok || v != value {
			return false
		}
	}
	return true
}

// address returns the IP address in a, or the zero Addr.
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

// Rules returns the List of the rules. The first rule that applies and matches decides. The error
// says which rule is invalid and why.
func Rules(rules ...Rule) (*List, error) {
	var b builder
	for i, r := range rules {
		if err := b.rule(r, fmt.Sprintf("rule %d", i+1)); err != nil {
			return nil, fmt.Errorf("acl: rule %d: %w", i+1, err)
		}
	}
	return b.list(), nil
}

// rule adds r. position is the name of r in errors.
func (b *builder) rule(r Rule, position string) error {
	actions := byte(1<<hooks.ActionPublish | 1<<hooks.ActionSubscribe)
	switch r.Action {
	case 0:
	case hooks.ActionPublish, hooks.ActionSubscribe:
		actions = 1 << r.Action
	default:
		return fmt.Errorf("%d is not an action", r.Action)
	}
	switch {
	case r.Effect != EffectAllow && r.Effect != EffectDeny:
		return errors.New("expected EffectAllow or EffectDeny as Effect")
	case len(r.Filters) == 0:
		return errors.New("expected a topic filter")
	case r.Who.Anonymous && r.Who.User != "":
		return errors.New("a client with a user name is not anonymous")
	case r.Retain && r.Action != hooks.ActionPublish:
		return errors.New("retain is a condition of publishing alone")
	case r.QoS != nil && (len(r.QoS) == 0 || slices.Max(r.QoS) > packets.QoS2):
		return fmt.Errorf("expected 0, 1 or 2 as QoS, got %d", r.QoS)
	case r.Who.Addr != netip.Prefix{} && !r.Who.Addr.IsValid():
		return errors.New("expected a valid prefix of addresses")
	}
	if a := r.Who.Addr; a.Addr().Is4In6() && a.Bits() >= 96 {
		r.Who.Addr = netip.PrefixFrom(a.Addr().Unmap(), a.Bits()-96) // as clients' addresses are
	}
	x := build{user: r.Who.User, anonymous: r.Who.Anonymous}
	x.actions, x.retain = actions, r.Retain
	for _, q := range r.QoS {
		x.qos |= 1 << q
	}
	if w := &r.Who; w.ClientID != "" || w.Role != "" || w.Tenant != "" || w.Listener != "" ||
		len(w.Attributes) > 0 || w.Addr.IsValid() {
		who := *w
		who.Attributes = maps.Clone(w.Attributes)
		x.who = &who
	}
	for _, f := range r.Filters {
		if _, inner, err := packets.SplitShared(f); err != nil || inner != f {
			return fmt.Errorf("%q: shared subscriptions are decided by the filter inside", f)
		}
		if err := b.add(x, r.Effect, f, userName|clientID|attribute, position); err != nil {
			return err
		}
	}
	b.rules++
	return nil
}

// add adds x for a filter. names are the kinds of names that it may hold.
func (b *builder) add(x build, effect Effect, filter string, names name, position string) error {
	if !packets.ValidTopicFilter(filter) {
		return fmt.Errorf("%q is not a topic filter", filter)
	}
	var err error
	if x.levels, err = compile(filter, names); err != nil {
		return err
	}
	x.uses = uses(x.levels)
	if effect == EffectDeny {
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
