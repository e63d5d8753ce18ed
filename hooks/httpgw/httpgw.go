// Package httpgw is a door of a broker for clients that speak HTTP: an [http.Handler] to publish,
// to read retained messages, and to subscribe by server-sent events or long polling.
//
//	door, err := httpgw.New(b, httpgw.Options{Authenticator: users, Authorizer: rules})
//	...
//	http.Handle("/mqtt/", http.StripPrefix("/mqtt", door))
//
// Give it the Authenticator and the Authorizer of the broker. User Name and password come by Basic
// authentication; a bearer token is the password of a client without a User Name. /openapi.json
// describes the paths.
//
// Serve it over TLS: each request has a password.
package httpgw

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"io"
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

// Options configure a Handler.
type Options struct {
	// Authenticator decides who may use the door. It must be set. The ConnectRequest has the User
	// Name, the password and the address, and no Client Identifier.
	Authenticator hooks.Authenticator
	// Authorizer decides what they may read: that of the broker. What they may publish the broker
	// asks its own. It must be set; hooks.AllowAll allows everything.
	Authorizer hooks.Authorizer
	// Origins are those of pages of other sites that may use the door, such as
	// "https://app.example.com".
	Origins []string
	// MaxBody is the largest payload. Zero: 1 MiB.
	MaxBody int64
	// MaxReaders is how many may read events at a time, and how many filters are kept for readers
	// that may come back. Zero: 10,000. MaxFilters is how many of these filters one user has, or,
	// without a user, one address. Zero: 100.
	MaxReaders, MaxFilters int
	// Keep is how many events are kept for a reader that is behind or comes back. Zero: 256.
	// KeepFor is how long they are kept when nobody reads them. Zero: a minute.
	Keep    int
	KeepFor time.Duration
	// KeepBytes is how much all events that are kept take together. Zero: 64 MiB. Beyond that a
	// reader that is behind loses events, and is told how many.
	KeepBytes int64
}

// A Handler is the door. Close it before the broker.
type Handler struct {
	b     *dunlin.Broker
	o     Options
	mux   *http.ServeMux
	feeds feeds
}

//go:embed openapi.json
var openAPI []byte

// New returns a Handler for a broker.
func New(b *dunlin.Broker, o Options) (*Handler, error) {
	if o.Authenticator == nil || o.Authorizer == nil {
		return nil, errors.New("httpgw: expected an Authenticator and an Authorizer; " +
			"hooks.AllowAll allows everything")
	}
	o.MaxBody = cmp.Or(o.MaxBody, 1<<20)
	o.MaxReaders = cmp.Or(o.MaxReaders, 10_000)
	o.MaxFilters = cmp.Or(o.MaxFilters, 100)
	o.Keep = cmp.Or(o.Keep, 256)
	o.KeepBytes = cmp.Or(o.KeepBytes, 64<<20)
	o.KeepFor = cmp.Or(o.KeepFor, time.Minute)
	h := &Handler{b: b, o: o, mux: http.NewServeMux()}
	h.feeds.of, h.feeds.users = make(map[string]*feed), make(map[string]int)
	h.feeds.b, h.feeds.o = b, &h.o
	h.feeds.ctx, h.feeds.cancel = context.WithCancel(context.Background())
	for pattern, f := range h.routes() {
		h.mux.HandleFunc(pattern, f)
	}
	return h, nil
}

// routes are the paths that openapi.json describes.
func (h *Handler) routes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"POST /topics/{topic...}": h.publish,
		"GET /topics/{topic...}":  h.retained,
		"GET /retained":           h.subtree,
		"GET /events":             h.events,
		"GET /poll":               h.poll,
		"GET /openapi.json": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(openAPI)
		},
	}
}

// Close ends all readers, and waits until nothing of the Handler runs any more.
func (h *Handler) Close() error {
	h.feeds.cancel()
	h.feeds.tasks.Wait()
	return nil
}

// ServeHTTP is that of http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Cache-Control", "no-store")
	head.Add("Vary", "Origin")
	if origin := r.Header.Get("Origin"); slices.Contains(h.o.Origins, origin) {
		head.Set("Access-Control-Allow-Origin", origin)
		if r.Method == http.MethodOptions {
			head.Set("Access-Control-Allow-Methods", "GET, POST")
			head.Set("Access-Control-Allow-Headers",
				"Authorization, Content-Type, Last-Event-ID")
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	h.mux.ServeHTTP(w, r)
}

// A visitor is who sends a request.
type visitor struct {
	client *hooks.Client
	grant  hooks.Grant
}

// enter authenticates a request. If that fails it has answered.
func (h *Handler) enter(w http.ResponseWriter, r *http.Request) *visitor {
	v := &visitor{client: &hooks.Client{Version: packets.V5, CleanStart: true, TLS: r.TLS}}
	if at, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		ap := net.TCPAddrFromAddrPort(at)
		v.client.RemoteAddr = ap
		if err := h.b.Admits(ap); err != nil {
			fail(w, err)
			return nil
		}
	}
	p := &packets.Connect{Version: packets.V5, CleanStart: true}
	if user, pass, ok := r.BasicAuth(); ok {
		p.HasUsername, p.Username, p.HasPassword, p.Password = true, user, true, []byte(pass)
	} else if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		p.HasPassword, p.Password = true, []byte(token)
	}
	v.client.Username, v.client.HasUsername = p.Username, p.HasUsername
	q := &hooks.ConnectRequest{Client: v.client, Connect: p, Grant: &v.grant}
	if err := h.o.Authenticator.Authenticate(r.Context(), q); err != nil {
		w.Header().Set("WWW-Authenticate", `Basic realm="mqtt"`)
		http.Error(w, "not authenticated", http.StatusUnauthorized)
		return nil
	}
	id := &v.client.Identity
	*id = v.grant.Identity
	id.Unverified = id.Unverified && id.Principal == ""
	id.Principal = cmp.Or(id.Principal, p.Username)
	for _, x := range h.b.Bans() {
		named := id.Principal != "" && x.Value == id.Principal ||
			p.HasUsername && x.Value == p.Username
		if x.Kind == dunlin.BanUser && named {
			fail(w, packets.Errorf(packets.Banned, "banned"))
			return nil
		}
	}
	return v
}

// mayRead says whether v may subscribe to a filter. If it may not it has answered.
func (h *Handler) mayRead(w http.ResponseWriter, r *http.Request, v *visitor, filter string) bool {
	group, _, err := packets.SplitShared(filter)
	if err != nil || group != "" || !packets.ValidTopicFilter(filter) {
		fail(w, packets.Errorf(packets.TopicFilterInvalid, "expected a Topic Filter, got %.100q",
			filter))
		return false
	}
	q := &hooks.AccessRequest{Client: v.client, Action: hooks.ActionSubscribe, Topic: filter}
	if err := h.o.Authorizer.Authorize(r.Context(), q); err != nil {
		fail(w, packets.Errorf(packets.NotAuthorized, "not allowed to read %.100q", filter))
		return false
	}
	return true
}

// fail answers with an error.
func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch packets.CodeOf(err) {
	case packets.NotAuthorized, packets.Banned:
		code = http.StatusForbidden
	case packets.TopicNameInvalid, packets.TopicFilterInvalid, packets.MalformedPacket,
		packets.ProtocolError, packets.PayloadFormatInvalid, packets.QoSNotSupported,
		packets.RetainNotSupported:
		code = http.StatusBadRequest
	case packets.PacketTooLarge:
		code = http.StatusRequestEntityTooLarge
	case packets.QuotaExceeded, packets.ConnectionRateExceeded:
		code = http.StatusTooManyRequests
	}
	text := "internal error"
	if pe, ok := errors.AsType[*packets.Error](err); ok {
		text = cmp.Or(pe.Reason, pe.Code.String())
	}
	if errors.Is(err, dunlin.ErrBrokerClosed) {
		code, text = http.StatusServiceUnavailable, "the broker is closed"
	}
	http.Error(w, text, code)
}

func answer(w http.ResponseWriter, x any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(x)
}

// publish is POST /topics/TOPIC.
func (h *Handler) publish(w http.ResponseWriter, r *http.Request) {
	v := h.enter(w, r)
	if v == nil {
		return
	}
	m, wait, err := message(r)
	if err != nil {
		fail(w, err)
		return
	}
	if m.Payload, err = io.ReadAll(http.MaxBytesReader(w, r.Body, h.o.MaxBody)); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			fail(w, packets.Errorf(packets.PacketTooLarge, "at most %d bytes", h.o.MaxBody))
		}
		return
	}
	ctx := r.Context()
	if wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	as := dunlin.Publisher{Client: v.client, Grant: &v.grant, Wait: wait > 0}
	out, err := h.b.PublishAs(ctx, as, m)
	if err != nil && !(wait > 0 && errors.Is(err, context.DeadlineExceeded)) {
		fail(w, err)
		return
	}
	answer(w, struct {
		Matched      int `json:"matched"`
		Acknowledged int `json:"acknowledged"`
		Lost         int `json:"lost"`
	}{out.Matched, out.Acknowledged, out.Lost})
}

// message makes a message of the parameters of a request.
func message(r *http.Request) (m *dunlin.Message, wait time.Duration, err error) {
	q := r.URL.Query()
	m = &dunlin.Message{Topic: r.PathValue("topic")}
	number := func(name string, most uint64) (n uint64) {
		text := q.Get(name)
		if text == "" {
			return 0
		}
		n, e := strconv.ParseUint(text, 10, 32)
		if e != nil || n > most {
			err = packets.Errorf(packets.MalformedPacket, "%s: expected 0 to %d, got %.20q", name,
				most, text)
		}
		return n
	}
	m.QoS = dunlin.QoS(number("qos", 2))
	m.Retain = number("retain", 1) == 1
	if n := number("expiry", 1<<32-1); n > 0 {
		m.Properties = m.Properties.AppendUint(packets.MessageExpiryInterval, uint32(n))
	}
	wait = time.Duration(number("wait", 60)) * time.Second
	if t := r.Header.Get("Content-Type"); t != "" {
		m.Properties = m.Properties.AppendText(packets.ContentType, t)
	}
	return m, wait, err
}

// retained is GET /topics/TOPIC.
func (h *Handler) retained(w http.ResponseWriter, r *http.Request) {
	v := h.enter(w, r)
	topic := r.PathValue("topic")
	if v == nil || !h.mayRead(w, r, v, topic) {
		return
	}
	if !packets.ValidTopicName(topic) {
		fail(w, packets.Errorf(packets.TopicNameInvalid, "use /retained for a filter"))
		return
	}
	for m := range h.b.Retained(v.grant.MountPoint + topic) {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(m.Payload)
		return
	}
	http.Error(w, "no retained message", http.StatusNotFound)
}

// What one answer with retained messages has at most: so many, and so many bytes of topics and
// payloads, but always the first.
const (
	maxSubtree      = 10_000
	maxSubtreeBytes = 8 << 20
)

// subtree is GET /retained.
func (h *Handler) subtree(w http.ResponseWriter, r *http.Request) {
	v := h.enter(w, r)
	filter := r.URL.Query().Get("filter")
	if v == nil || !h.mayRead(w, r, v, filter) {
		return
	}
	all, size := []event{}, int64(0)
	for m := range h.b.Retained(v.grant.MountPoint + filter) {
		e := newEvent(m, v.grant.MountPoint)
		if size += e.size(); len(all) > 0 && (len(all) == maxSubtree || size > maxSubtreeBytes) {
			break
		}
		all = append(all, e)
	}
	answer(w, all)
}
