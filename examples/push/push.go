package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

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
	var raw json.RawMessage
	if err := c.read(&raw); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) {
		var p push
		if err := strict(raw, &p); err != nil {
			return nil, err
		}
		return c.push(c.Context(), &p, wait)
	}
	var list []push
	if err := strict(raw, &list); err != nil {
		return nil, err
	}
	if len(list) > maxPushes {
		return nil, fail(http.StatusBadRequest, "%d pushes, at most %d", len(list), maxPushes)
	}
	return c.pushAll(list, wait), nil
}

// pushAll pushes a list, and says of each what became of it.
func (c *call) pushAll(list []push, wait time.Duration) []*result {
	results := make([]*result, len(list))
	places := make(map[string][]int)
	for i := range list {
		places[list[i].To] = append(places[list[i].To], i)
	}
	var g errgroup.Group
	g.SetLimit(64)
	for _, at := range places {
		g.Go(func() error {
			for _, i := range at {
				r, err := c.push(c.Context(), &list[i], wait)
				if err != nil {
					r = &result{To: list[i].To, Error: err.Error()}
				}
				results[i] = r
			}
			return nil
		})
	}
	g.Wait()
	return results
}

// strict decodes JSON with known fields.
func strict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fail(http.StatusBadRequest, "the body is not the JSON that is expected: %v", err)
	}
	return nil
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
	ttl := time.Duration(p.TTL) * time.Second
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
	case ttl == 0:
		ttl = defaultTTL
	}
	m.Properties = m.Properties.AppendUint(packets.PayloadFormatIndicator, 1)
	if p.ContentType != "" {
		m.SetContentType(p.ContentType)
	}
	m.SetExpiry(ttl)
	return m, nil
}

// push publishes p: for the backend as it is, for a client what it may.
func (c *call) push(ctx context.Context, p *push, wait time.Duration) (*result, error) {
	m, err := p.message()
	if err != nil {
		return nil, err
	}
	if c.session.Account != "" {
		if p.Collapse != "" || p.Priority != "" {
			return nil, fail(http.StatusForbidden, "collapse and priority are for the backend")
		}
		return c.pushAs(ctx, m, wait)
	}
	if !strings.HasPrefix(p.To, "groups/") {
		if err := c.db.mustHave(ctx, p.To); err != nil {
			return nil, err
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
		number, err := c.db.collapse(ctx, p.To, p.Collapse, life)
		if err != nil {
			return nil, err
		}
		m.AddUser("collapse", p.Collapse)
		m.Topic += "/" + p.Collapse + "/" + strconv.FormatInt(number, 10)
	}
	if wait < 0 {
		return r, c.broker.Publish(ctx, m)
	}
	c.track(r, m)
	if err := c.broker.Publish(ctx, m); err != nil {
		return nil, err
	}
	return cmp.Or(c.results.wait(ctx, r.ID, wait), r), nil
}

// pushAs publishes m in the name of the client that calls.
func (c *call) pushAs(ctx context.Context, m *dunlin.Message, wait time.Duration) (*result, error) {
	as := &hooks.Client{Version: packets.V5, Username: c.session.Account, HasUsername: true,
		Identity: hooks.Identity{Principal: c.session.Account}}
	if at, err := netip.ParseAddrPort(c.RemoteAddr); err == nil {
		as.RemoteAddr = net.TCPAddrFromAddrPort(at)
	}
	r := &result{To: m.Topic}
	o, err := c.broker.PublishAs(ctx, dunlin.Publisher{Client: as,
		Grant: &hooks.Grant{Limits: limits}, Wait: max(wait, 0)}, m)
	r.Matched, r.Acknowledged, r.Lost = o.Matched, o.Acknowledged, o.Lost
	return r, err
}
