package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"hash/maphash"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/presence"
	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	peer         = "service"         // the principal of the other instance of the service
	changedTopic = "service/changed" // instances tell each other which account has changed
	sweepEvery   = 10 * time.Second
	maxStoring   = 10 * time.Millisecond // how long a change waits for the Store of the broker
)

// A service knows the accounts, decides what their clients may do, and pushes. An account gets what
// is published to its own name, users/ann, and what is published to the topics that it is a member
// of. The database says which these are; the subscriptions at the broker follow it.
type service struct {
	hooks.Reloads // tells the broker when somebody has lost a right

	db     *database
	broker *dunlin.Broker
	key    [sha256.Size]byte // of the backend

	seed     maphash.Seed
	syncing  [64]sync.Mutex // one of them is held while the subscriptions of an account change
	left     atomic.Bool    // since the last sweep somebody has
	presence *presence.Presence
	online   presences
	results  results
	parcels  chan *parcel // for deliver
	waiting  atomic.Int64 // see maxWaiting
}

func newService(db *database, key string) *service {
	return &service{db: db, key: sha256.Sum256([]byte(key)), seed: maphash.MakeSeed(),
		presence: presence.New(presence.Options{}), parcels: make(chan *parcel)}
}

func (s *service) isKey(text string) bool {
	sum := sha256.Sum256([]byte(text))
	return subtle.ConstantTimeCompare(sum[:], s.key[:]) == 1
}

// Authenticate lets in whoever has a token. The password is the token. The User Name may be left
// out; otherwise it is the name of the account. Sessions belong to the account, and Client
// Identifiers do too: two users may both have a client that is called phone.
func (s *service) Authenticate(ctx context.Context, r *hooks.ConnectRequest) error {
	token := string(r.Connect.Password)
	if r.Client.Username == peer && s.isKey(token) {
		r.Grant.Identity.Principal = peer
		return nil
	}
	x, err := s.db.session(ctx, token)
	switch {
	case errors.Is(err, errNoTicket):
		return packets.Errorf(packets.BadUserNameOrPassword, "%v", err)
	case err != nil:
		return packets.Errorf(packets.ServerUnavailable, "%v", err)
	}
	_, name, _ := strings.Cut(x.Account, "/")
	if u := r.Client.Username; u != "" && u != name && u != x.Account {
		return packets.Errorf(packets.BadUserNameOrPassword, "the token is not one of %q", u)
	}
	r.Grant.Identity = hooks.Identity{Principal: x.Account,
		Attributes: map[string]string{"session": x.ID}}
	r.Grant.Expires = x.Expires
	r.Grant.Subscriptions = []hooks.Subscription{subscription(x.Account)}
	r.Grant.Limits = limits
	if id := r.Connect.ClientID; ctx.Value(inbandKey{}) != nil {
		r.Grant.ClientID = inbandPrefix + id
	} else if id != "" {
		r.Grant.ClientID = x.Account + "/" + id
	}
	return nil
}

// limits are what one account may have and do.
var limits = hooks.Limits{Sessions: 10, Connections: 10, Subscriptions: 100, PublishRate: 50,
	PublishBytes: 1 << 20}

// clientID is the Client Identifier that a client of an account has given, out of the one that it
// has at the broker.
func clientID(account, id string) string {
	id = strings.TrimPrefix(id, account+"/")
	return strings.TrimPrefix(id, inbandPrefix)
}

// subscription is what the server makes for an account that gets a topic. Pushes with a collapse
// key come on topics below.
func subscription(topic string) hooks.Subscription {
	return hooks.Subscription{Subscription: packets.Subscription{Filter: topic + "/#",
		QoS: packets.QoS2, RetainHandling: 2}}
}

// Authorize lets an account subscribe to its own topic and to the groups that it is in. It need
// not, since the server has subscribed it to all of them. A user may publish to these groups, to
// users with whom he or she shares a group, and to devices that he or she owns. A device may
// publish its events, which its owners get.
func (s *service) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	who, _ := r.Client.User()
	if who == peer {
		return nil
	}
	allowed, err := false, error(nil)
	switch r.Action {
	case hooks.ActionSubscribe:
		allowed, err = s.maySubscribe(ctx, r)
	case hooks.ActionPublish:
		allowed, err = s.mayPublish(ctx, who, r.Topic)
	}
	switch {
	case err != nil:
		return packets.Errorf(packets.UnspecifiedError, "%v", err)
	case !allowed:
		return packets.Errorf(packets.NotAuthorized, "not for %s", who)
	}
	return nil
}

func (s *service) maySubscribe(ctx context.Context, r *hooks.AccessRequest) (bool, error) {
	who, _ := r.Client.User()
	topic := strings.TrimSuffix(r.Topic, "/#")
	live, err := s.db.isLive(ctx, r.Client.Identity.Attributes["session"])
	if err != nil || !live || r.Group != "" {
		return false, err
	}
	if kind, name, _ := strings.Cut(topic, "/"); kind == "groups" && validName(name) {
		return s.db.isMember(ctx, who, topic)
	}
	return topic == who, nil
}

func (s *service) mayPublish(ctx context.Context, who, topic string) (bool, error) {
	kind, name, _ := strings.Cut(topic, "/")
	if topic == who+"/events" {
		return strings.HasPrefix(who, "devices/"), nil
	}
	if !strings.HasPrefix(who, "users/") || !validName(name) {
		return false, nil
	}
	switch kind {
	case "users":
		if topic == who {
			return true, nil
		}
		return s.db.share(ctx, who, topic)
	case "groups":
		return s.db.isMember(ctx, who, topic)
	case "devices":
		return s.db.isMember(ctx, who, topic+"/events")
	}
	return false, nil
}

// AuthorizeDelivery keeps a push from a client if a later one has the same collapse key. Such a
// push has a topic of its own, TOPIC/KEY/NUMBER. The broker asks when it is about to send it.
func (s *service) AuthorizeDelivery(ctx context.Context, r *hooks.AccessRequest) error {
	if strings.Count(r.Topic, "/") != 3 {
		return nil
	}
	i := strings.LastIndexByte(r.Topic, '/')
	number, err := strconv.ParseInt(r.Topic[i+1:], 10, 64)
	if err != nil {
		return nil
	}
	if latest, err := s.db.latest(ctx, r.Topic[:i]); err == nil && number < latest {
		return packets.Errorf(packets.NotAuthorized, "number %d has taken its place", latest)
	}
	return nil // after an error of the database rather one push too many
}

// reserved are the User Properties that only the service sets.
var reserved = []string{"id", "from", "priority", "collapse", receiptProperty}

// Intercept names the sender in each message.
func (s *service) Intercept(
	_ context.Context, c *hooks.Client, m *packets.Message,
) (*packets.Message, error) {
	who, _ := c.User()
	if !isAccount(who) { // a link of the bridge, which carries what has a sender
		return m, nil
	}
	out := *m
	out.Properties = m.Properties.Without(nil, packets.UserProperty)
	for name, value := range m.Properties.User() {
		if !slices.Contains(reserved, name) {
			out.AddUser(name, value)
		}
	}
	out.AddUser("id", rand.Text()[:16])
	out.AddUser("from", who)
	if _, ok := m.Expiry(); !ok {
		out.SetExpiry(defaultTTL)
	}
	return &out, nil
}

// isAccount says whether a principal is an account.
func isAccount(principal string) bool {
	return strings.HasPrefix(principal, "users/") || strings.HasPrefix(principal, "devices/")
}

// changed makes the subscriptions of an account those that the database has, here and at the other
// instances. Without an account it ends the connections of sessions that are no more.
func (s *service) changed(ctx context.Context, account string) error {
	if err := s.obey(ctx, account); err != nil {
		return err
	}
	return s.broker.Publish(ctx, &dunlin.Message{Topic: changedTopic, Payload: []byte(account),
		QoS: packets.QoS1})
}

func (s *service) obey(ctx context.Context, account string) error {
	if account == "" {
		s.Reloaded()
		return s.expel(ctx)
	}
	return s.sync(ctx, account)
}

// sync makes the subscriptions of an account those that the database has. It returns when they
// hold. The Store of the broker may have them later: restore makes them again after a crash.
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
		return context.Cause(ctx) // sync looks whether it holds
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
		if len(have) == len(topics) && !slices.ContainsFunc(have, wrong) {
			continue
		}
		g.Go(func() error { return s.sync(all, account) })
	}
	return errors.Join(g.Wait(), s.expel(ctx))
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

// expel disconnects the clients whose session is not in the database, and ends what the broker
// keeps for accounts that are not.
func (s *service) expel(ctx context.Context) error {
	accounts, sessions, err := s.db.known(ctx)
	if err != nil {
		return err
	}
	for _, x := range s.broker.SessionsFrom("") {
		token := ""
		if x.Client != nil {
			token = x.Client.Identity.Attributes["session"]
		}
		if !isAccount(x.Principal) || accounts[x.Principal] && (x.Client == nil || sessions[token]) {
			continue
		}
		if err := s.expelOne(ctx, x, token); err != nil {
			return err
		}
	}
	return nil
}

// expelOne looks again: the account or session may be new.
func (s *service) expelOne(ctx context.Context, x dunlin.SessionInfo, token string) error {
	known, err := s.db.hasAccount(ctx, x.Principal)
	if err == nil && !known {
		_, err = s.broker.DeleteSession(ctx, x.ClientID)
		return err
	}
	if err != nil || x.Client == nil {
		return err
	}
	live, err := s.db.isLive(ctx, token)
	if err == nil && !live {
		s.broker.Disconnect(x.ClientID, packets.NotAuthorized)
	}
	return err
}

func (s *service) report(what string, err error) {
	slog.Warn("the service could not do what it should", "what", what, "err", err)
}
