package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"hash/maphash"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A service knows the accounts, decides what their clients may do, and pushes. An account gets what
// is published to its own name, users/ann, and what is published to the topics that it is a member
// of. The database says which these are; the subscriptions at the broker follow it.
type service struct {
	hooks.Reloads // tells the broker when somebody has lost a right

	db     *database
	broker *dunlin.Broker
	key    [sha256.Size]byte // of the backend

	seed    maphash.Seed
	syncing [64]sync.Mutex // one of them is held while the subscriptions of an account change
	left    atomic.Bool    // since the last sweep somebody has
	online  tally          // clients by account
	calls   tally          // requests under way by account, those of the backend under ""
	results results
	parcels chan *parcel // for deliver
	waiting atomic.Int64 // see maxWaiting
}

func newService(db *database, key string) *service {
	return &service{db: db, key: sha256.Sum256([]byte(key)), seed: maphash.MakeSeed(),
		parcels: make(chan *parcel)}
}

// A tally counts something by account.
type tally struct {
	mu sync.Mutex
	n  map[string]int // guarded by mu
}

// add adds one to what an account has, unless it has most already.
func (t *tally) add(account string, most int) (ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = make(map[string]int)
	}
	if t.n[account] >= most {
		return false
	}
	t.n[account]++
	return true
}

func (t *tally) remove(account string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n[account]--; t.n[account] <= 0 {
		delete(t.n, account)
	}
}

func (t *tally) has(account string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n[account] > 0
}

// observer counts who is connected, and takes what becomes of pushes.
func (s *service) observer() *hooks.Observer {
	return &hooks.Observer{
		Connected: func(e hooks.Connected) {
			who, _ := e.Client.User()
			s.online.add(who, math.MaxInt)
		},
		Disconnected: func(e hooks.Disconnected) {
			who, _ := e.Client.User()
			s.online.remove(who)
		},
		Settled: s.results.settled,
	}
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
	r.Grant.Expires = x.Expires.Time
	r.Grant.Subscriptions = []hooks.Subscription{subscription(x.Account)}
	r.Grant.Limits = limits
	if id := r.Connect.ClientID; r.Client.Listener == &inbandClients {
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
	return strings.TrimPrefix(strings.TrimPrefix(id, account+"/"), inbandPrefix)
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
		allowed, err = s.maySubscribe(ctx, who, r)
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

func (s *service) maySubscribe(
	ctx context.Context, who string, r *hooks.AccessRequest,
) (bool, error) {
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
	switch {
	case topic == who+"/events":
		return strings.HasPrefix(who, "devices/"), nil
	case !strings.HasPrefix(who, "users/") || !validName(name):
		return false, nil
	case kind == "users" && topic != who:
		return s.db.share(ctx, who, topic)
	case kind == "groups":
		return s.db.isMember(ctx, who, topic)
	case kind == "devices":
		return s.db.isMember(ctx, who, topic+"/events")
	}
	return topic == who, nil
}

// AuthorizeDelivery keeps a push from a client if a later one has the same collapse key. The broker
// asks when it is about to send it.
func (s *service) AuthorizeDelivery(ctx context.Context, r *hooks.AccessRequest) error {
	topic, number, ok := collapsed(r.Topic)
	if !ok {
		return nil
	}
	if latest, err := s.db.latest(ctx, topic); err == nil && number < latest {
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
