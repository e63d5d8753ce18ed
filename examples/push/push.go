package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// What one request may have.
const (
	maxPushes  = 1000
	maxPayload = 64 << 10
	maxWait    = 30 * time.Second
)

// What may wait to be published, of all requests together. More of them at once need less time for
// each: a phone gets several in one packet.
const (
	maxWaiting  = 4000    // pushes; a longer one counts once more for each pushWeight bytes
	maxTogether = 2000    // are published at once
	pushWeight  = 4 << 10 // bytes
)

// A push is what a caller asks for.
type push struct {
	To          string `json:"to"` // users/NAME, groups/NAME or devices/NAME
	Body        string `json:"body"`
	ContentType string `json:"content_type"`
	QoS         *int   `json:"qos"` // 1 if it is missing
	TTL         int64  `json:"ttl"` // seconds; 7 days if it is missing
	Priority    string `json:"priority"`
	Collapse    string `json:"collapse"`
}

// A result is what became of a push. The numbers are of clients, also absent ones. They are missing
// if they are 0, and if nobody waits.
type result struct {
	ID           string   `json:"id,omitempty"`
	To           string   `json:"to"`
	Matched      int      `json:"matched,omitempty"`
	Acknowledged int      `json:"acknowledged,omitempty"`
	Lost         int      `json:"lost,omitempty"`
	Devices      []device `json:"devices,omitempty"`
	Error        string   `json:"error,omitempty"`
}

// errBusy is the answer to pushes that come faster than the service delivers them.
var errBusy = fail(http.StatusServiceUnavailable, "too many pushes wait; try again in a second")

// postPush pushes one message, or each one of a list. The pushes of a list to one receiver are in
// order. With ?wait=2s it waits so long for acknowledgements. Without, wait is negative.
func postPush(c *call) (any, error) {
	wait := time.Duration(-1)
	if text := c.URL.Query().Get("wait"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d > maxWait {
			return nil, fail(http.StatusBadRequest, "wait is a time like 2s, at most %v", maxWait)
		}
		wait = d
	}
	if c.waiting.Load() >= maxWaiting { // before there is work with it
		return nil, errBusy
	}
	text, err := c.text()
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) {
		one := make([]push, 1)
		if err := strict(text, &one[0]); err != nil {
			return nil, err
		}
		results, errs := c.push(one, wait)
		return results[0], errs[0]
	}
	var list []push
	if err := strict(text, &list); err != nil {
		return nil, err
	}
	if len(list) > maxPushes {
		return nil, fail(http.StatusBadRequest, "%d pushes, at most %d", len(list), maxPushes)
	}
	results, errs := c.push(list, wait)
	if len(errs) > 0 && !slices.ContainsFunc(errs, func(err error) bool { return err != errBusy }) {
		return nil, errBusy
	}
	for i, err := range errs {
		if err != nil {
			results[i] = &result{To: list[i].To, Error: err.Error()}
		}
	}
	return results, nil
}

// push pushes a list, and says of each what became of it.
func (c *call) push(list []push, wait time.Duration) (results []*result, errs []error) {
	results, errs = make([]*result, len(list)), make([]error, len(list))
	var all []*dunlin.Message
	var places []int // of these in the list
	for i := range list {
		var m *dunlin.Message
		m, results[i], errs[i] = c.prepare(&list[i], wait)
		if m != nil {
			all, places = append(all, m), append(places, i)
		}
	}
	n, err := c.publish(c.Context(), all)
	for k, i := range places {
		if k >= n {
			errs[i] = err
		} else if topic, number, ok := collapsed(all[k].Topic); ok {
			errs[i] = c.db.supersede(c.Context(), topic, number)
		}
	}
	if wait < 0 {
		return results, errs
	}
	ctx, cancel := context.WithTimeout(c.Context(), wait)
	defer cancel()
	for _, i := range places[:n] {
		results[i] = cmp.Or(c.results.wait(ctx, results[i].ID), results[i])
	}
	return results, errs
}

// prepare makes a message of p, which is to be published, and what is known of it. What a client
// pushes it publishes as that client, and returns no message.
func (c *call) prepare(p *push, wait time.Duration) (*dunlin.Message, *result, error) {
	m, err := p.message()
	if err != nil {
		return nil, nil, err
	}
	if c.session.Account != "" {
		if p.Collapse != "" || p.Priority != "" {
			return nil, nil, fail(http.StatusForbidden,
				"collapse and priority are for the backend")
		}
		r, err := c.pushAs(m, wait)
		return nil, r, err
	}
	if !strings.HasPrefix(p.To, "groups/") {
		if err := c.db.mustHave(c.Context(), p.To); err != nil {
			return nil, nil, err
		}
	}
	r := &result{ID: rand.Text()[:16], To: p.To}
	m.AddUser("id", r.ID)
	m.AddUser("from", peer)
	if p.Priority != "" {
		m.AddUser("priority", p.Priority)
	}
	if p.Collapse != "" {
		life, _ := m.Expiry()
		number, err := c.db.collapse(c.Context(), p.To, p.Collapse, life)
		if err != nil {
			return nil, nil, err
		}
		m.AddUser("collapse", p.Collapse)
		m.Topic += "/" + p.Collapse + "/" + strconv.FormatInt(number, 10)
	}
	if wait >= 0 {
		c.track(r, m)
	}
	return m, r, nil
}

// collapsed splits the topic of a push with a collapse key, TOPIC/KEY/NUMBER.
func collapsed(topic string) (ofKey string, number int64, ok bool) {
	i := strings.LastIndexByte(topic, '/')
	if strings.Count(topic, "/") != 3 {
		return "", 0, false
	}
	number, err := strconv.ParseInt(topic[i+1:], 10, 64)
	return topic[:i], number, err == nil
}

// message checks p and makes a message of it.
func (p *push) message() (*dunlin.Message, error) {
	bad := func(format string, args ...any) (*dunlin.Message, error) {
		return nil, fail(http.StatusBadRequest, format, args...)
	}
	kind, name, _ := strings.Cut(p.To, "/")
	m := &dunlin.Message{Topic: p.To, Payload: []byte(p.Body), QoS: packets.QoS1}
	if p.QoS != nil {
		m.QoS = packets.QoS(*p.QoS)
	}
	switch {
	case !slices.Contains([]string{"users", "groups", "devices"}, kind) || !validName(name):
		return bad("to is users/NAME, groups/NAME or devices/NAME, not %.80q", p.To)
	case len(p.Body) > maxPayload:
		return bad("body has %d bytes, at most %d", len(p.Body), maxPayload)
	case p.QoS != nil && (*p.QoS < 0 || *p.QoS > 2):
		return bad("qos is 0, 1 or 2, not %d", *p.QoS)
	case p.TTL < 0 || p.TTL > int64(maxTTL/time.Second):
		return bad("ttl is in seconds, at most %d", int64(maxTTL/time.Second))
	case len(p.ContentType) > 100 || !packets.ValidUTF8(p.ContentType):
		return bad("content_type is a text of at most 100 bytes")
	case !slices.Contains([]string{"", "low", "normal", "high"}, p.Priority):
		return bad("priority is low, normal or high, not %.80q", p.Priority)
	case p.Collapse != "" && !validName(p.Collapse):
		return bad("collapse is a name of at most 64 bytes")
	}
	m.Properties = m.Properties.AppendUint(packets.PayloadFormatIndicator, 1)
	if p.ContentType != "" {
		m.SetContentType(p.ContentType)
	}
	m.SetExpiry(cmp.Or(time.Duration(p.TTL)*time.Second, defaultTTL))
	return m, nil
}

// pushAs publishes m in the name of the client that calls.
func (c *call) pushAs(m *dunlin.Message, wait time.Duration) (*result, error) {
	as := &hooks.Client{Version: packets.V5, Username: c.session.Account, HasUsername: true,
		Identity: hooks.Identity{Principal: c.session.Account}}
	if at, err := netip.ParseAddrPort(c.RemoteAddr); err == nil {
		as.RemoteAddr = net.TCPAddrFromAddrPort(at)
	}
	o, err := c.broker.PublishAs(c.Context(), dunlin.Publisher{Client: as,
		Grant: &hooks.Grant{Limits: limits}, Wait: max(wait, 0)}, m)
	return &result{To: m.Topic, Matched: o.Matched, Acknowledged: o.Acknowledged, Lost: o.Lost}, err
}

// A parcel is the messages of one request, on their way to the broker.
type parcel struct {
	list []*dunlin.Message
	n    int // how many are published, when done is closed
	err  error
	done chan struct{}
}

// publish has deliver publish messages, and returns how many are. It refuses what is too much, so
// that pushes wait for a moment only, and take little memory.
func (s *service) publish(ctx context.Context, list []*dunlin.Message) (int, error) {
	if len(list) == 0 {
		return 0, nil
	}
	weight := int64(len(list))
	for _, m := range list {
		weight += int64(len(m.Payload) / pushWeight)
	}
	defer s.waiting.Add(-weight)
	if s.waiting.Add(weight) > maxWaiting {
		return 0, errBusy
	}
	p := &parcel{list: list, done: make(chan struct{})}
	select {
	case s.parcels <- p:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	<-p.done
	return p.n, p.err
}

// deliver publishes until ctx ends. What has come from many requests meanwhile goes together, so
// that a phone gets several messages at once when there is much to do.
func (s *service) deliver(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case p := <-s.parcels:
			s.deliverAll(ctx, p)
		}
	}
}

func (s *service) deliverAll(ctx context.Context, first *parcel) {
	parcels, all := []*parcel{first}, first.list
	for more := true; more && len(all) < maxTogether; {
		select {
		case p := <-s.parcels:
			parcels, all = append(parcels, p), append(all, p.list...)
		default:
			more = false
		}
	}
	n, err := s.broker.PublishAll(ctx, all...)
	for _, p := range parcels {
		p.n = max(0, min(n, len(p.list)))
		if n -= len(p.list); n < 0 {
			p.err = err
		}
		close(p.done)
	}
}
