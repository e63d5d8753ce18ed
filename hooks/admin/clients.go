package admin

import (
	"cmp"
	"crypto/tls"
	"maps"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
)

// This file is the clients: their list, and one of them.

func clientRoutes() []route {
	return []route{
		{method: "GET", path: ofBroker + "/clients", role: RoleRead, serve: (*call).clients,
			looks: true, params: []string{"after", "limit", "sort", "id", "prefix", "user", "address",
				"listener", "connected"}, answer: clientPage{}},
		{method: "GET", path: ofBroker + "/client", role: RoleRead, serve: (*call).client,
			looks: true, params: []string{"id"}, answer: clientView{}},
		{method: "GET", path: ofBroker + "/subscriptions", role: RoleRead,
			serve: (*call).subscriptions, looks: true, params: []string{"id", "after", "limit"},
			answer: page[subscriptionView]{}},
	}
}

// A clientView is a Session, and its Network Connection if there is one.
type clientView struct {
	ID        string `json:"id"`
	Principal string `json:"principal,omitempty"`
	User      string `json:"user,omitempty"` // who the client is, or else says it is
	Connected bool   `json:"connected"`
	// The next are empty without a connection.
	Remote   string `json:"remote,omitempty"`
	Listener string `json:"listener,omitempty"`
	Protocol string `json:"protocol,omitempty"` // "3.1", "3.1.1" or "5.0"
	TLS      string `json:"tls,omitempty"`      // the version of TLS
	Bridge   bool   `json:"bridge,omitempty"`
	// ConnectedAt is when the CONNECT was accepted, LastPacket when the client last sent something.
	ConnectedAt time.Time `json:"connected_at,omitzero"`
	LastPacket  time.Time `json:"last_packet,omitzero"`
	// KeepAlive is in seconds.
	KeepAlive float64 `json:"keep_alive,omitempty"`
	// Received and Sent are PUBLISH packets from and to the client, since it connected.
	Received trafficView `json:"received"`
	Sent     trafficView `json:"sent"`
	// Unsent is how many bytes its socket has not taken, BlockedSince how long it takes none.
	Unsent       int       `json:"unsent"`
	BlockedSince time.Time `json:"blocked_since,omitzero"`

	Subscriptions int `json:"subscriptions"`
	Queued        int `json:"queued"`
	QueuedBytes   int `json:"queued_bytes"`
	// OldestQueued is since when the first of the queued messages waits.
	OldestQueued time.Time `json:"oldest_queued,omitzero"`
	Inflight     int       `json:"inflight"`
	// AwaitingPubrel is how many QoS 2 messages of the client wait for its PUBREL.
	AwaitingPubrel int `json:"awaiting_pubrel"`
	// Dropped is how many messages did not reach the client, or were not taken from it, DroppedBy
	// how many for which reason.
	Dropped   uint64            `json:"dropped"`
	DroppedBy map[string]uint64 `json:"dropped_by,omitempty"`
	WillTopic string            `json:"will_topic,omitempty"`
	// Expiry is how many seconds the Session outlives its connection, -1 for ever.
	Expiry    float64   `json:"expiry"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// A trafficView is PUBLISH packets in one direction.
type trafficView struct {
	Messages uint64 `json:"messages"`
	Bytes    uint64 `json:"bytes"`
}

// A subscriptionView is one of a client.
type subscriptionView struct {
	Filter            string `json:"filter"`
	QoS               int    `json:"qos"`
	NoLocal           bool   `json:"no_local,omitempty"`
	RetainAsPublished bool   `json:"retain_as_published,omitempty"`
	// ByServer says that the server made it: the action subscribe, or the program.
	ByServer bool `json:"by_server,omitempty"`
}

// A clientPage is a page of clients.
type clientPage struct {
	Items []clientView `json:"items"`
	Next  string       `json:"next,omitempty"`
	// Looked is how many Sessions were looked at. A request with a filter looks at 100,000 at most.
	// Beyond that there is a Next, though Items is shorter than the limit, or empty.
	Looked int `json:"looked"`
}

// looks is how many Sessions a request with a filter looks at. A test lowers it.
var looks = 100_000

func asClient(s *dunlin.SessionInfo) clientView {
	c := clientView{
		ID: s.ClientID, Principal: hooks.ShownUser(s.Principal), User: hooks.ShownUser(s.Principal),
		Subscriptions: s.SubscriptionCount, Queued: s.Queued, QueuedBytes: s.QueuedBytes,
		OldestQueued: s.OldestQueued, Inflight: s.Inflight, AwaitingPubrel: s.AwaitingPubrel,
		Dropped: s.Dropped.Total(), DroppedBy: dropsBy(s.Dropped), WillTopic: s.WillTopic,
		Expiry: s.Expiry.Seconds(), ExpiresAt: s.ExpiresAt,
		ConnectedAt: s.ConnectedAt, LastPacket: s.LastPacket, KeepAlive: s.KeepAlive.Seconds(),
		Received: trafficView(s.Received), Sent: trafficView(s.Sent), Unsent: s.Unsent,
		BlockedSince: s.BlockedSince,
	}
	if s.Expiry == math.MaxUint32*time.Second {
		c.Expiry = -1
	}
	x := s.Client
	if x == nil {
		return c
	}
	c.Connected, c.Bridge = true, x.Bridge
	if name, ok := x.User(); ok {
		c.User = hooks.ShownUser(name)
	}
	if x.RemoteAddr != nil {
		c.Remote = x.RemoteAddr.String()
	}
	if x.Listener != nil {
		c.Listener = x.Listener.Name
	}
	c.Protocol = x.Version.String()
	if x.TLS != nil {
		c.TLS = tls.VersionName(x.TLS.Version)
	}
	return c
}

// size is about how many bytes of text c has.
func (c *clientView) size() int {
	return 1024 + len(c.ID) + len(c.Principal) + len(c.User) + len(c.WillTopic)
}

// dropsBy are counts by the names of their reasons.
func dropsBy(d dunlin.Drops) map[string]uint64 {
	by := map[string]uint64{}
	for why, n := range d.All() {
		by[why.String()] = n
	}
	return by
}

// A clientFilter says which clients are wanted.
type clientFilter struct {
	id, prefix, user, listener string
	network                    netip.Prefix
	connected                  *bool
}

func (c *call) clientFilter() (f clientFilter, err error) {
	f = clientFilter{id: c.text("id"), prefix: c.text("prefix"), user: c.text("user"),
		listener: c.text("listener")}
	if s := c.text("address"); s != "" {
		if f.network, err = parseNetwork(s); err != nil {
			return f, fail(http.StatusBadRequest, "query", "the parameter \"address\" is neither an "+
				"IP address nor a network")
		}
	}
	f.connected, err = c.flag("connected")
	return f, err
}

// parseNetwork reads an address, or a network such as 192.0.2.0/24.
func parseNetwork(s string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

// A subject is what a clientFilter looks at.
type subject struct {
	id, user, listener string
	address            netip.Addr // not valid: unknown
	connected          bool
}

// subjectOf returns the subject of s. It does not allocate for a TCP connection.
func subjectOf(s *dunlin.SessionInfo) subject {
	x := subject{id: s.ClientID, user: s.Principal, connected: s.Client != nil}
	if c := s.Client; c != nil {
		if name, ok := c.User(); ok {
			x.user = name
		}
		if c.Listener != nil {
			x.listener = c.Listener.Name
		}
		switch at := c.RemoteAddr.(type) {
		case nil:
		case *net.TCPAddr:
			x.address = at.AddrPort().Addr()
		default:
			x.address = addressOf(at.String())
		}
	}
	x.user = hooks.ShownUser(x.user)
	return x
}

// addressOf returns the address of a text with a port; it is not valid if there is none.
func addressOf(s string) netip.Addr {
	at, _ := netip.ParseAddrPort(s)
	return at.Addr()
}

// wants says whether a client is one of those.
func (f *clientFilter) wants(x subject) bool {
	return (f.connected == nil || *f.connected == x.connected) &&
		(f.id == "" || strings.Contains(x.id, f.id)) &&
		(f.user == "" || f.user == x.user) &&
		(f.listener == "" || f.listener == x.listener) &&
		(!f.network.IsValid() || f.network.Contains(x.address.Unmap().WithZone("")))
}

// clients lists clients, in the order of their Client Identifiers or by a figure.
func (c *call) clients() error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	f, err := c.clientFilter()
	if err != nil {
		return err
	}
	after, err := decodeCursor(c.text("after"))
	if err != nil {
		return err
	}
	if by := c.text("sort"); by != "" && by != "id" {
		return c.clientsBy(by, after, limit, &f)
	}
	page, room, last := clientPage{Items: []clientView{}}, newPager(limit), after
	if f.prefix > after {
		after = beforeAll(f.prefix)
	}
	for place, s := range c.desk.b.SessionsFrom(after) {
		if !strings.HasPrefix(s.ClientID, f.prefix) {
			if s.ClientID > f.prefix {
				break
			}
			continue
		}
		page.Looked++
		if f.wants(subjectOf(&s)) {
			x := asClient(&s)
			if !room.takes(x.size()) {
				page.Next = encodeCursor(last)
				break
			}
			page.Items = append(page.Items, x)
		}
		last = place
		if len(page.Items) == limit || page.Looked == looks || c.r.Context().Err() != nil {
			page.Next = encodeCursor(place)
			break
		}
	}
	return c.answer(page)
}

// beforeAll returns a text that comes before all that begin with prefix, and behind all others that
// come before them. No UTF-8 has the byte 0xFF.
func beforeAll(prefix string) string {
	if prefix == "" {
		return ""
	}
	last := len(prefix) - 1
	if prefix[last] == 0 {
		return prefix[:last]
	}
	return prefix[:last] + string([]byte{prefix[last] - 1, 0xFF})
}

// figures are what clients can be sorted by, the largest first.
var figures = map[string]func(*dunlin.SessionInfo) int64{
	"queued":        func(s *dunlin.SessionInfo) int64 { return int64(s.Queued) },
	"queued_bytes":  func(s *dunlin.SessionInfo) int64 { return int64(s.QueuedBytes) },
	"inflight":      func(s *dunlin.SessionInfo) int64 { return int64(s.Inflight) },
	"subscriptions": func(s *dunlin.SessionInfo) int64 { return int64(s.SubscriptionCount) },
	"received":      func(s *dunlin.SessionInfo) int64 { return int64(s.Received.Messages) },
	"sent":          func(s *dunlin.SessionInfo) int64 { return int64(s.Sent.Messages) },
	"dropped":       func(s *dunlin.SessionInfo) int64 { return int64(s.Dropped.Total()) },
	"unsent":        func(s *dunlin.SessionInfo) int64 { return int64(s.Unsent) },
}

// A rank is the place of a client in a list that is sorted by a figure.
type rank struct {
	figure int64
	place  string
}

// compare orders the largest figure first, and equal ones by place.
func (a rank) compare(b rank) int {
	return cmp.Or(cmp.Compare(b.figure, a.figure), cmp.Compare(a.place, b.place))
}

// A ranked is a client with its rank.
type ranked struct {
	clientView
	rank
}

// clientsBy lists those with the largest figures. It looks at all of them.
func (c *call) clientsBy(by, after string, limit int, f *clientFilter) error {
	figure := figures[by]
	if figure == nil {
		return fail(http.StatusBadRequest, "query", "clients cannot be sorted by %q; they can by "+
			"id, %s", by, strings.Join(slices.Sorted(maps.Keys(figures)), ", "))
	}
	last, err := lastRank(after)
	if err != nil {
		return err
	}
	give, err := c.takeWhole()
	if err != nil {
		return err
	}
	defer give()
	page, best := clientPage{Items: []clientView{}}, []ranked{}
	var s dunlin.SessionInfo // one for all: to allocate each costs more than all else
	for place, next := range c.desk.b.SessionsFrom("") {
		s = next
		page.Looked++
		if page.Looked%1024 == 0 && c.r.Context().Err() != nil {
			return c.r.Context().Err()
		}
		x := rank{figure(&s), place}
		if last != nil && x.compare(*last) <= 0 ||
			len(best) > limit && x.compare(best[limit].rank) >= 0 {
			continue // most are not looked at any further
		}
		if !strings.HasPrefix(s.ClientID, f.prefix) || !f.wants(subjectOf(&s)) {
			continue
		}
		at := sort.Search(len(best), func(i int) bool { return best[i].compare(x) >= 0 })
		best = slices.Insert(best, at, ranked{asClient(&s), x})
		best = best[:min(len(best), limit+1)] // one more, to know whether there is a next page
	}
	room := newPager(limit)
	for i := range best {
		if !room.takes(best[i].size()) {
			x := &best[i-1]
			page.Next = encodeCursor(strconv.FormatInt(x.figure, 10) + " " + x.place)
			break
		}
		page.Items = append(page.Items, best[i].clientView)
	}
	return c.answer(page)
}

// lastRank reads the cursor of a page of clientsBy; nil for the first page.
func lastRank(after string) (*rank, error) {
	if after == "" {
		return nil, nil
	}
	number, place, ok := strings.Cut(after, " ")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || !ok {
		return nil, fail(http.StatusBadRequest, "cursor", "the cursor is that of another order")
	}
	return &rank{n, place}, nil
}

// session returns the Session that the query is about, without its subscriptions: there may be
// 100,000, and a page of a client asks again and again.
func (c *call) session() (s dunlin.SessionInfo, err error) {
	id, err := c.need("id")
	if err != nil {
		return s, err
	}
	for _, s := range c.desk.b.SessionsFrom(beforeAll(id)) {
		if s.ClientID == id {
			return s, nil
		}
		break
	}
	return s, noClient()
}

func noClient() error {
	return fail(http.StatusNotFound, "no_client", "no Session has that Client Identifier")
}

// client shows one client: its Session, and its connection if it has one.
func (c *call) client() error {
	s, err := c.session()
	if err != nil {
		return err
	}
	return c.answer(asClient(&s))
}

// subscriptions lists the subscriptions of a client, in the order in which they were made.
func (c *call) subscriptions() error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	after, err := decodeCursor(c.text("after"))
	if err != nil {
		return err
	}
	s, err := c.session()
	if err != nil {
		return err
	}
	page, room := page[subscriptionView]{Items: []subscriptionView{}}, newPager(limit)
	for cursor, x := range c.desk.b.SubscriptionsFrom(s.ClientID, after) {
		if !room.takes(128 + len(x.Filter)) {
			page.Next = encodeCursor(after)
			break
		}
		after = cursor
		page.Items = append(page.Items, subscriptionView{Filter: x.Filter, QoS: int(x.QoS),
			NoLocal: x.NoLocal, RetainAsPublished: x.RetainAsPublished,
			ByServer: x.ByServer})
	}
	return c.answer(page)
}
