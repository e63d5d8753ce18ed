package dunlin

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/given"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is subscriptions that the server makes for clients. Package internal/given knows which
// there are; here they are put into the Sessions.

// SubscribeClient makes subscriptions for each Session with a Client Identifier: one whose client
// is connected, one that waits for its client, and those that begin later. A Session gets what is
// published from then on; nothing is kept for one that does not exist yet. A later call with the
// same filter replaces its options. The Authorizer is not asked, and the client needs no SUBSCRIBE.
// The end of a Session does not end them: UnsubscribeClient does.
//
// Every client that connects with the Client Identifier gets the messages. If clients choose their
// own Client Identifiers, or with Config.SessionPerPrincipal, this may be anybody. Use
// SubscribePrincipal for messages that others must not read.
//
// With a Store they survive the end of the process, and SubscribeClient waits until they are
// durable or ctx ends. The error is the cause of ctx, ErrBrokerClosed, a *packets.Error about the
// name or a filter, or that of a Store which fails: then nothing has changed, except after the end
// of ctx.
func (b *Broker) SubscribeClient(
	ctx context.Context, clientID string, list ...hooks.Subscription,
) error {
	return b.give(ctx, given.Key{Scope: given.ToClient, Name: clientID}, list)
}

// SubscribePrincipal is SubscribeClient for all Sessions of a principal, present and future ones. A
// name that a client only claims (Unverified of hooks.Identity) is no principal, unless the
// Authenticator is hooks.AllowAll.
func (b *Broker) SubscribePrincipal(
	ctx context.Context, principal string, list ...hooks.Subscription,
) error {
	return b.give(ctx, given.Key{Scope: given.ToPrincipal, Name: principal}, list)
}

// UnsubscribeClient ends subscriptions that SubscribeClient has made, and says how many of the
// filters there were. What they have put into the queues stays (3.10.4). What the client, its Grant
// or SubscribePrincipal has subscribed it to stays as well. With a Store it waits until that is
// durable or ctx ends. The error is the cause of ctx, ErrBrokerClosed, or that of a Store which
// fails: then they have ended, but may be there again after a crash.
func (b *Broker) UnsubscribeClient(
	ctx context.Context, clientID string, filters ...string,
) (ended int, err error) {
	return b.takeGiven(ctx, given.Key{Scope: given.ToClient, Name: clientID}, filters)
}

// UnsubscribePrincipal is UnsubscribeClient for what SubscribePrincipal has made.
func (b *Broker) UnsubscribePrincipal(
	ctx context.Context, principal string, filters ...string,
) (ended int, err error) {
	return b.takeGiven(ctx, given.Key{Scope: given.ToPrincipal, Name: principal}, filters)
}

// ClientSubscriptions returns what SubscribeClient has made for a Client Identifier, in the order
// of the filters, whether or not there is such a Session. What a Session has is in
// SessionInfo.Given.
func (b *Broker) ClientSubscriptions(clientID string) []hooks.Subscription {
	return b.given.Get(given.Key{Scope: given.ToClient, Name: clientID})
}

// PrincipalSubscriptions returns what SubscribePrincipal has made, in the order of the filters.
func (b *Broker) PrincipalSubscriptions(principal string) []hooks.Subscription {
	return b.given.Get(given.Key{Scope: given.ToPrincipal, Name: principal})
}

// give makes subscriptions for k.
func (b *Broker) give(ctx context.Context, k given.Key, list []hooks.Subscription) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case b.ctx.Err() != nil:
		return ErrBrokerClosed
	case !packets.ValidUTF8(k.Name), k.Scope == given.ToClient && (k.Name == "" ||
		strings.HasPrefix(k.Name, localPrefix)):
		return packets.Errorf(packets.ClientIdentifierNotValid, "%q is not a name of a client",
			cut(k.Name, maxName))
	}
	if err := b.givenLimits().Check(list); err != nil {
		return err
	}
	if b.journal != nil {
		if err := b.journal.Refusing(); err != nil {
			return err
		}
	}
	if k.Scope == given.ToPrincipal {
		lock.NoneHeld("a wait for another call")
		b.findMembers.Do(b.followPrincipals)
	}
	if b.journal != nil {
		if err := b.given.Enter(ctx, k); err != nil {
			return err
		}
		defer b.given.Leave(k)
	}
	was := make([]*hooks.Subscription, len(list))
	filters := make([]string, len(list))
	for i := range list {
		filters[i] = list[i].Filter
		if s, ok := b.given.Find(filters[i], k); ok {
			was[i] = &s
		}
	}
	x := b.given.Put(k, given.Lasting, list...)
	giver{b}.Changed(k, filters)
	if x == nil {
		return b.settled(ctx)
	}
	err := b.journal.WaitAdded(ctx, x)
	switch {
	case err == nil, errors.Is(err, ErrBrokerClosed):
	case ctx.Err() != nil:
		b.given.Doubt(k)
	default:
		for i := range list {
			b.given.Restore(k, list[i], was[i])
		}
		b.given.Doubt(k) // what was put may have been to end an earlier doubt
		giver{b}.Changed(k, filters)
	}
	return err
}

// takeGiven ends subscriptions of k.
func (b *Broker) takeGiven(ctx context.Context, k given.Key, filters []string) (int, error) {
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case b.ctx.Err() != nil:
		return 0, ErrBrokerClosed
	}
	removed, x := b.given.Remove(k, filters...)
	giver{b}.Changed(k, removed)
	if x == nil {
		return len(removed), b.settled(ctx)
	}
	return len(removed), b.journal.WaitFollowing(ctx, x)
}

// settled waits for what others have just changed: nothing is left to do for who calls, but it may
// not be durable yet.
func (b *Broker) settled(ctx context.Context) error {
	if b.journal == nil {
		return nil
	}
	return b.journal.Sync(ctx)
}

// followPrincipals makes all present Sessions members of their principals, unless they became
// members when they were loaded.
func (b *Broker) followPrincipals() {
	if !b.given.Follow() {
		return
	}
	for s := range b.allSessions() {
		s.mu.Lock()
		if !s.ended {
			b.given.Join(s)
		}
		s.mu.Unlock()
	}
}

// A giver is the handler of Broker.given.
type giver struct{ b *Broker }

// Next is that of given.Handler.
func (g giver) Next() uint64 {
	if g.b.journal == nil {
		return 0
	}
	return g.b.journal.key()
}

// Add is that of given.Handler.
func (g giver) Add(ops ...store.Op) *journal.Batch {
	if store.Adds(ops) {
		return g.b.journal.AwaitWhole(ops...)
	}
	return g.b.journal.Await(ops...)
}

// Keys is that of given.Handler.
func (g giver) Keys(s *session) []given.Key {
	keys := []given.Key{
		{Scope: given.ToSession, Name: s.place()}, {Scope: given.ToClient, Name: s.id},
	}
	if s.named {
		keys = append(keys, given.Key{Scope: given.ToPrincipal, Name: s.principal})
	}
	return keys
}

// Lifetime is that of given.Handler.
func (g giver) Lifetime(s *session) given.Lifetime { return given.Lifetime(s.stored != 0) }

// Changed is that of given.Handler. It takes no Session that somebody is about to begin: this one
// gets everything when it begins.
func (g giver) Changed(k given.Key, filters []string) {
	if len(filters) == 0 {
		return
	}
	for _, s := range g.sessions(k) {
		s.mu.Lock()
		for _, f := range filters {
			g.b.given.Update(s, f, given.RetainedAsAsked)
		}
		c := s.conn
		s.mu.Unlock()
		if c != nil {
			c.flush(time.Now()) // retained messages
		}
		for _, f := range filters {
			g.tell(s, f)
		}
	}
}

// sessions returns those that k is for.
func (g giver) sessions(k given.Key) []*session {
	switch k.Scope {
	case given.ToClient:
		return g.b.ofClient(k.Name)
	case given.ToPrincipal:
		return g.b.given.Members(k.Name)
	}
	if s := g.b.sessionAt(k.Name); s != nil {
		return []*session{s}
	}
	return nil
}

// Give is that of given.Handler. The lock of s is held.
func (g giver) Give(s *session, filter string, to *hooks.Subscription, r given.Retained) {
	group, inner, err := packets.SplitShared(filter)
	if err != nil || s.ended || s.inProcess() {
		return
	}
	inner = s.mount + inner
	tree := g.b.tree
	if to == nil {
		if s.num != 0 && tree.RemoveBy(subs.ByServer, s.num, group, inner) && group == "" {
			if _, has := tree.Get(s.num, group, inner); !has {
				s.dropCursorLocked(inner)
			}
		}
		return
	}
	if s.num == 0 {
		s.num = g.b.number(s)
		if s.conn != nil {
			s.conn.number.Store(s.num)
		}
	}
	_, has := tree.GetBy(subs.ByServer, s.num, group, inner)
	o := subs.Options{QoS: to.QoS, NoLocal: to.NoLocal, RetainAsPublished: to.RetainAsPublished,
		RetainHandling: to.RetainHandling, By: subs.ByServer}
	tree.Restore(s.num, group, inner, o)
	wanted := to.RetainHandling == 0 || to.RetainHandling == onlyIfNew && !has
	if group != "" || r == given.RetainedSkipped || !wanted || g.b.cfg().DisableRetain {
		return
	}
	if s.admitCursorLocked(inner) != nil {
		return // there is no memory for it, and nobody to tell
	}
	if cur, _ := s.addCursorLocked(inner, &o); cur != nil {
		cur.Ready = true
	}
}

// tell reports what the subscription of s to filter is now.
func (g giver) tell(s *session, filter string) {
	if to, ok := g.b.given.Find(filter, g.Keys(s)...); ok {
		g.Tell(s, &to)
		return
	}
	if f := g.b.obs.Unsubscribed; f != nil {
		client, mounted := g.who(s, filter)
		f(hooks.Unsubscribed{Client: client, Filter: filter, MountedFilter: mounted,
			ByServer: true})
	}
}

// Tell is that of given.Handler.
func (g giver) Tell(s *session, to *hooks.Subscription) {
	if f := g.b.obs.Subscribed; f != nil {
		client, mounted := g.who(s, to.Filter)
		f(hooks.Subscribed{Client: client, Filter: to.Filter, MountedFilter: mounted, QoS: to.QoS,
			ByServer: true})
	}
}

// who returns the client of s and a filter with its mount point.
func (g giver) who(s *session, filter string) (client *hooks.Client, mounted string) {
	group, inner, _ := packets.SplitShared(filter) // it was checked
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.observed(), packets.JoinShared(group, s.mount+inner)
}
