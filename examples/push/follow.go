package main

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file makes the broker do what the database says.

const (
	peer         = "service"         // the principal of the other instance of the service
	changedTopic = "service/changed" // instances tell each other which account has changed
	sweepEvery   = 10 * time.Second
	maxStoring   = 10 * time.Millisecond // how long a change waits for the Store of the broker
)

// changed makes the subscriptions of accounts those that the database has, here and at the other
// instances. "" ends the connections of sessions that are no more.
func (s *service) changed(ctx context.Context, accounts ...string) error {
	for _, a := range accounts {
		if err := s.obey(ctx, a); err != nil {
			return err
		}
		if err := s.broker.Publish(ctx, &dunlin.Message{Topic: changedTopic, Payload: []byte(a),
			QoS: packets.QoS1}); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) obey(ctx context.Context, account string) error {
	if account == "" {
		s.Reloaded()
		return s.expel(ctx)
	}
	return s.sync(ctx, account)
}

// sync returns when the subscriptions of an account hold. The Store of the broker may have them
// later: restore makes them again after a crash.
func (s *service) sync(ctx context.Context, account string) error {
	mu := &s.syncing[maphash.String(s.seed, account)%uint64(len(s.syncing))]
	mu.Lock()
	defer mu.Unlock()
	topics, err := s.db.topics(ctx, account)
	for err == nil {
		surplus := make(map[string]bool)
		for _, x := range s.broker.PrincipalSubscriptions(account) {
			surplus[x.Filter] = true
		}
		var missing []hooks.Subscription
		for _, topic := range topics {
			x := subscription(topic)
			if !surplus[x.Filter] {
				missing = append(missing, x)
			}
			delete(surplus, x.Filter)
		}
		if len(surplus)+len(missing) == 0 {
			return nil
		}
		err = s.amend(ctx, account, slices.Collect(maps.Keys(surplus)), missing)
	}
	return err
}

// amend changes the subscriptions of an account, and waits a moment until the Store has that.
func (s *service) amend(
	ctx context.Context, account string, surplus []string, missing []hooks.Subscription,
) error {
	brief, cancel := context.WithTimeout(ctx, maxStoring)
	defer cancel()
	var err error
	if len(missing) > 0 {
		err = s.broker.SubscribePrincipal(brief, account, missing...)
	}
	if err == nil && len(surplus) > 0 {
		_, err = s.broker.UnsubscribePrincipal(brief, account, surplus...)
		for _, filter := range surplus {
			s.revoke(account, strings.TrimSuffix(filter, "/#"))
		}
	}
	if brief.Err() != nil {
		return context.Cause(ctx) // nil; sync looks whether they hold
	}
	return err
}

// revoke ends what the clients of an account have themselves subscribed to, and what the gateway
// has for them, which has no principal. All decisions are made again, so it does that only if there
// is such a client. A subscription that begins at this moment may be missed: the next sweep ends
// it.
func (s *service) revoke(account, topic string) {
	for x := range s.broker.Subscribers(topic) {
		if x.Principal == account || x.Principal == "" {
			s.Reloaded()
			return
		}
	}
	s.left.Store(true)
}

// restore makes the subscriptions of all accounts those that the database has. They differ after a
// crash, and if another instance could not tell of a change.
func (s *service) restore(ctx context.Context) error {
	memberships, err := s.db.memberships(ctx)
	if err != nil {
		return err
	}
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for account, topics := range memberships {
		have := s.broker.PrincipalSubscriptions(account)
		wrong := func(x hooks.Subscription) bool {
			return !topics[strings.TrimSuffix(x.Filter, "/#")]
		}
		if len(have) != len(topics) || slices.ContainsFunc(have, wrong) {
			g.Go(func() error { return s.sync(all, account) })
		}
	}
	return errors.Join(g.Wait(), s.expel(ctx))
}

// expel disconnects the clients whose session is not in the database, and ends what the broker
// keeps for accounts that are not.
func (s *service) expel(ctx context.Context) error {
	accounts, err := s.db.set(ctx, "SELECT name FROM accounts")
	if err != nil {
		return err
	}
	sessions, err := s.db.set(ctx, "SELECT id FROM sessions WHERE expires > unixepoch()")
	for _, x := range s.broker.SessionsFrom("") {
		if err != nil {
			break
		}
		if !isAccount(x.Principal) || accounts[x.Principal] && (x.Client == nil ||
			sessions[x.Client.Identity.Attributes["session"]]) {
			continue
		}
		err = s.expelOne(ctx, x)
	}
	return err
}

// expelOne looks again: the account or session may be new.
func (s *service) expelOne(ctx context.Context, x dunlin.SessionInfo) error {
	known, err := s.db.hasAccount(ctx, x.Principal)
	if err == nil && !known {
		_, err = s.broker.DeleteSession(ctx, x.ClientID)
		return err
	}
	if err != nil || x.Client == nil {
		return err
	}
	live, err := s.db.isLive(ctx, x.Client.Identity.Attributes["session"])
	if err == nil && !live {
		s.broker.Disconnect(x.ClientID, packets.NotAuthorized)
	}
	return err
}

// follow does what other instances have changed, until ctx ends.
func (s *service) follow(ctx context.Context) error {
	sub, err := s.broker.Subscribe(ctx, changedTopic, &dunlin.SubscribeOptions{QoS: packets.QoS1})
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		m, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		if m.Publisher == "" { // this instance
			continue
		}
		if err := s.obey(ctx, string(m.Payload)); err != nil {
			s.report("a change of "+string(m.Payload), err)
		}
	}
}

// sweep forgets what has expired, and looks whether the broker does what the database says, until
// ctx ends. It finds a client that was let in at the moment when its session was revoked.
func (s *service) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if s.left.Swap(false) {
			s.Reloaded()
		}
		if err := errors.Join(s.db.sweep(ctx), s.restore(ctx)); err != nil && ctx.Err() == nil {
			s.report("the sweep", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *service) report(what string, err error) {
	slog.Warn("the service could not do what it should", "what", what, "err", err)
}
