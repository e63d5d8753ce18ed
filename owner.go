package dunlin

import (
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file says for whom what clients make the broker keep is counted, in the accounts of package
// internal/owners. A Session counts for its principal from begin to endSession, with its
// subscriptions, its queue and what its client has not acknowledged. A retained message counts for
// the principal that published it. What the program keeps is not counted.

// newOwners returns the accounts, nil if nothing has to be counted: Config has no limit for a
// principal, and there is no Authenticator that could set one.
func (c *Config) newOwners() *owners.Table {
	if limits := c.defaultLimits(); !c.open() || slices.Min(limits[:]) < math.MaxInt {
		return owners.New(limits)
	}
	return nil
}

// ownerName is the name of the account of a principal. All clients without a name share one
// account. So do all clients of a Broker that verifies nobody: there a client can choose its name.
func (b *Broker) ownerName(principal string, named bool) string {
	if !named || b.cfg().open() {
		return ""
	}
	return "=" + principal
}

// signature is the From of a message whose owner must be known: the Client Identifier of its
// publisher and, if the publisher has a name, U+0000 and its principal.
func signature(id, principal string, named bool) string {
	if !named {
		return id
	}
	return id + "\x00" + principal
}

// publisher is the From of a message that s publishes. Only a retained message has an owner.
func (s *session) publisher(retain bool) string {
	if retain {
		return s.signature()
	}
	return s.place()
}

// signature is the From of a message that s publishes, if the message is or may become a retained
// one.
func (s *session) signature() string { return signature(s.id, s.principal, s.named) }

// placeOf returns the place, in Broker.sessions, of the Session that has published a message. from
// is the From of the message.
func (b *Broker) placeOf(from string) string {
	if !b.cfg().SessionPerPrincipal {
		from, _, _ = strings.Cut(from, "\x00")
	}
	return from
}

// ownerOf returns the name of the account that m counts for while it is retained. ok is false for
// messages of the program.
func (b *Broker) ownerOf(m *message) (name string, ok bool) {
	if m.From == "" || strings.HasPrefix(m.From, localPrefix) {
		return "", false
	}
	_, principal, named := strings.Cut(m.From, "\x00")
	return b.ownerName(principal, named), true
}

// defaultLimits are those of Config.
func (c *Config) defaultLimits() owners.Limits {
	return owners.Limits{
		owners.Sessions:      int64(c.MaxSessionsPerPrincipal),
		owners.Connections:   int64(c.MaxConnectionsPerPrincipal),
		owners.Subscriptions: int64(c.MaxSubscriptionsPerPrincipal),
		owners.Retained:      int64(c.MaxRetainedPerPrincipal),
		owners.RetainedBytes: int64(c.MaxRetainedBytesPerPrincipal),
		owners.QueuedBytes:   int64(c.MaxQueuedBytesPerPrincipal),
		owners.Delayed:       int64(c.MaxDelayedPerPrincipal),
		owners.Kept:          int64(c.MaxKeptBytesPerPrincipal),
		owners.Footprints:    ownFootprints(int64(c.MaxKeptBytesPerPrincipal)),
	}
}

// ownFootprints is what the Sessions and connections of a principal may take whatever else it has,
// if it may have kept bytes: a sixth more. So a client whose principal has too much of something
// can connect and give it up.
func ownFootprints(kept int64) int64 {
	if kept >= math.MaxInt {
		return kept
	}
	return kept / 6
}

// ownerLimits are those of Config, as far as an Authenticator has not lowered them.
func (b *Broker) ownerLimits(l *hooks.Limits) owners.Limits {
	limits := b.cfg().defaultLimits()
	for k, n := range [owners.Kinds]int{
		owners.Sessions: l.Sessions, owners.Connections: l.Connections,
		owners.Subscriptions: l.Subscriptions,
		owners.Retained:      l.Retained, owners.RetainedBytes: l.RetainedBytes,
		owners.QueuedBytes: l.AllQueuedBytes, owners.Kept: l.KeptBytes,
	} {
		if n > 0 {
			limits[k] = min(limits[k], int64(n))
		}
	}
	limits[owners.Footprints] = ownFootprints(limits[owners.Kept])
	return limits
}

// Why a message is not retained, besides the errors of package retained.
var (
	errRetainedMemory = errors.New(
		"the retained messages would take too much of the broker's memory")
	errRetainedOwner = errors.New("the principal has as many retained messages as it may have")
)

// admitRetained says why m must not be retained in the place of old, which may be nil.
func (b *Broker) admitRetained(m, old *message) error {
	n := heldSize(m) + retainedCost
	if old != nil {
		n -= heldSize(old) + retainedCost
	}
	if !b.memory.Fits(budget.Retained, n) {
		return errRetainedMemory
	}
	name, ok := b.ownerOf(m)
	if !ok {
		return nil
	}
	count, bytes := int64(1), retainedBytes(m)
	if old != nil {
		if other, ok := b.ownerOf(old); ok && other == name {
			count, bytes = 0, bytes-retainedBytes(old)
		}
	}
	a := b.owners.Open(name)
	defer b.owners.Close(a)
	if !a.Room(owners.Retained, count) || !a.Room(owners.RetainedBytes, bytes) ||
		!a.Room(owners.Kept, bytes+count*keptRetained) {
		return errRetainedOwner
	}
	return nil
}

// What counts as kept besides the bytes of a retained message, and for a unit of owners.Weight.
const (
	keptRetained     = messageCost + retainedCost
	keptSubscription = 700
)

// retainedBytes is what m counts for its owner.
func retainedBytes(m *message) int64 {
	return int64(len(m.Topic) + len(m.Payload) + len(m.Properties))
}

// ownRetained counts m for its owner.
func (b *Broker) ownRetained(m *message) {
	if name, ok := b.ownerOf(m); ok {
		a := b.owners.Open(name) // until disownRetained
		a.Add(owners.Retained, 1)
		a.Add(owners.RetainedBytes, retainedBytes(m))
		a.Add(owners.Kept, retainedBytes(m)+keptRetained)
	}
}

// disownRetained is the end of what ownRetained began.
func (b *Broker) disownRetained(m *message) {
	if name, ok := b.ownerOf(m); ok {
		a := b.owners.Open(name)
		a.Add(owners.Retained, -1)
		a.Add(owners.RetainedBytes, -retainedBytes(m))
		a.Add(owners.Kept, -retainedBytes(m)-keptRetained)
		b.owners.Close(a)
		b.owners.Close(a) // the one of ownRetained
	}
}

// ownNew counts s, which begins with a and nobody else knows, for its owner. The error says that
// there is no memory for it, or that the owner has as many Sessions as it may have. The number does
// not refuse a Session that takes the place of one which has just ended.
func (s *session) ownNew(c *conn, a *attachment) error {
	owner := s.b.owners.Open(s.b.ownerName(s.principal, s.named))
	owner.Limit(a.limits)
	s.out.owner = owner
	err := s.admitLocked(c, a)
	switch {
	case err != nil:
	case a.instead:
		owner.Add(owners.Sessions, 1)
	case !owner.Take(owners.Sessions, 1):
		err = recent.As(hooks.EndPrincipalLimit,
			packets.Errorf(packets.QuotaExceeded, "too many sessions of one principal"))
	}
	if err != nil {
		if s.out.linked {
			owner.Add(owners.Connections, -1)
			s.out.linked = false
		}
		s.out.owner = nil
		s.b.owners.Close(owner)
	}
	return err
}

// ownLoaded counts s, which nobody else knows yet, for its owner. s has been loaded except for its
// queue.
func (s *session) ownLoaded() {
	s.out.owner = s.b.owners.Open(s.b.ownerName(s.principal, s.named))
	s.out.owner.Add(owners.Sessions, 1)
	s.out.owner.Add(owners.Subscriptions, int64(s.weight))
	s.out.owner.Add(owners.Kept, int64(s.weight)*keptSubscription)
}

// disownLocked is the end of what ownNew or ownLoaded began. s has ended, and countLocked has been
// called since. It returns the account, which the caller closes. s.mu is held.
func (s *session) disownLocked() *owners.Account {
	a := s.out.owner
	a.Add(owners.Sessions, -1)
	a.Add(owners.Subscriptions, -int64(s.weight))
	a.Add(owners.Kept, -int64(s.weight)*keptSubscription)
	s.weight, s.out.owner = 0, nil
	return a
}

// weighLocked counts a subscription that was made, or, with a negative sign, one that has ended.
// The lock of s is held.
func (s *session) weighLocked(group, filter string, sign int64) {
	s.subs += int32(sign)
	n := sign * owners.Weight(group, filter)
	s.weight += int32(n)
	s.out.owner.Add(owners.Subscriptions, n)
	s.out.owner.Add(owners.Kept, n*keptSubscription)
}

// crowded, with s.mu held, says whether the owner of s may not have another subscription.
func (s *session) crowded(group, filter string) bool {
	n := owners.Weight(group, filter)
	return !s.out.owner.Room(owners.Subscriptions, n) ||
		!s.out.owner.Room(owners.Kept, n*keptSubscription)
}
