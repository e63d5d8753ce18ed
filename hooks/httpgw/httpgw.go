// Package httpgw is a door of a broker for clients that speak HTTP: an [http.Handler] to publish,
// to read retained messages, and to subscribe by server-sent events or long polling.
//
//	door, err := httpgw.New(b, httpgw.Options{})
//	...
//	http.Handle("/mqtt/", http.StripPrefix("/mqtt", door))
//
// The Authenticator and the Authorizer are those of the broker, and so are its Bans, its rates and
// its limits on failed logins. User Name and password come by Basic authentication; a bearer token
// is the password of a client without a User Name. The Client Identifier is empty unless the
// Authenticator grants one. /openapi.json describes the paths. See also docs/http.md.
//
// Serve it over TLS: each request has a password. Behind a proxy, put the address of the client
// into the RemoteAddr of the request first: limits by address would hold for the proxy otherwise.
package httpgw

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Options configure a Handler. Zero fields have their defaults; negative ones are refused.
type Options struct {
	// Origins are those of pages of other sites that may use the door, such as
	// "https://app.example.com". Requests that come from pages of sites which are neither here nor
	// the one that serves the door are refused.
	Origins []string
	// MaxBody is the largest payload in bytes, of what is published and of what readers of events
	// get. A larger message is lost for them, and they are told. Zero: 1 MiB.
	MaxBody int64
	// MaxRequests is how many requests are served at a time, those of readers included. Zero:
	// 10,000. MaxPerUser is how many of them are of one user, and how many Topic Filters are kept
	// for it. Clients without a verified name count by address. Zero: 100.
	MaxRequests, MaxPerUser int
	// Keep is how many events of each filter are kept for a reader that is behind or comes back.
	// Zero: 256. KeepFor is how long they are kept when nobody reads them. Zero: a minute.
	Keep    int
	KeepFor time.Duration
	// KeepBytes is how many bytes all events that are kept take together; those of one user take at
	// most a quarter. What a reader is being sent counts as long as that takes. Beyond that a reader
	// that is behind loses events, and is told how many. As many bytes, and a quarter for each user,
	// are there for bodies that are being received, and for retained messages that are being sent.
	// Zero: 64 MiB.
	KeepBytes int64
}

// check puts in the defaults.
func (o *Options) check() error {
	if min(o.MaxBody, o.KeepBytes, int64(o.MaxRequests), int64(o.MaxPerUser), int64(o.Keep),
		int64(o.KeepFor)) < 0 {
		return errors.New("httpgw: an option is negative; zero is the default")
	}
	for _, origin := range o.Origins {
		if u, err := url.Parse(origin); err != nil || u.Host == "" || origin != u.Scheme+"://"+u.Host {
			return fmt.Errorf("httpgw: Origins: expected one like https://app.example.com, got %q",
				origin)
		}
	}
	o.MaxBody = cmp.Or(o.MaxBody, 1<<20)
	o.MaxRequests = cmp.Or(o.MaxRequests, 10_000)
	o.MaxPerUser = cmp.Or(o.MaxPerUser, 100)
	o.Keep = cmp.Or(o.Keep, 256)
	o.KeepBytes = cmp.Or(o.KeepBytes, 64<<20)
	o.KeepFor = cmp.Or(o.KeepFor, time.Minute)
	return nil
}

// A Handler is the door.
type Handler struct {
	b      *dunlin.Broker
	o      Options
	routes []route
	users  users
	feeds  feeds

	subtreeBytes int // maxSubtreeBytes, but in tests
}

//go:embed openapi.json
var openAPI []byte

// New returns a Handler for a broker. The error says which option makes no sense.
func New(b *dunlin.Broker, o Options) (*Handler, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	h := &Handler{b: b, o: o, subtreeBytes: maxSubtreeBytes}
	h.users.of, h.users.o = make(map[string]*user), &h.o
	h.feeds.of = make(map[string]*feed)
	h.feeds.b, h.feeds.o, h.feeds.users = b, &h.o, &h.users
	h.feeds.ctx, h.feeds.cancel = context.WithCancel(context.Background())
	h.routes = []route{
		{http.MethodPost, "/topics/{topic}", h.visit(h.publish)},
		{http.MethodPost, "/topics", h.visit(h.publish)},
		{http.MethodGet, "/topics/{topic}", h.visit(h.retained)},
		{http.MethodGet, "/topics", h.visit(h.retained)},
		{http.MethodGet, "/retained", h.visit(h.subtree)},
		{http.MethodGet, "/events", h.visit(h.events)},
		{http.MethodGet, "/poll", h.visit(h.poll)},
		{http.MethodGet, "/openapi.json", describe},
	}
	return h, nil
}

// Close ends what is kept for readers. Readers of events are told that the stream is over, and
// later requests for events are refused. Close waits for the goroutines of the Handler; requests
// under way end soon afterwards, at the latest when their client has taken nothing for 30 seconds.
// The end of the broker does the same. It returns nil, also when called again.
func (h *Handler) Close() error {
	h.feeds.close()
	return nil
}

// A route is a path that openapi.json describes.
type route struct {
	method, path string
	serve        http.HandlerFunc
}

// matches says whether the route is for a path.
func (r *route) matches(path string) bool {
	before, _, rest := strings.Cut(r.path, "{")
	return path == r.path || rest && len(path) > len(before) && strings.HasPrefix(path, before)
}

// ServeHTTP is that of http.Handler. It does not clean paths: "a//b" and "a/../b" are Topic Names.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Cache-Control", "no-store")
	head.Add("Vary", "Origin")
	if origin := r.Header.Get("Origin"); slices.Contains(h.o.Origins, origin) {
		head.Set("Access-Control-Allow-Origin", origin)
		if r.Method == http.MethodOptions {
			head.Set("Access-Control-Allow-Methods", "GET, POST")
			head.Set("Access-Control-Allow-Headers", allowedHeaders)
			head.Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	var methods []string
	for i := range h.routes {
		x := &h.routes[i]
		switch {
		case !x.matches(r.URL.Path):
		case x.method == r.Method:
			x.serve(w, r)
			return
		default:
			methods = append(methods, x.method)
		}
	}
	if methods == nil {
		http.Error(w, "no such path: see /openapi.json", http.StatusNotFound)
		return
	}
	head.Set("Allow", strings.Join(methods, ", "))
	http.Error(w, "expected "+strings.Join(methods, " or "), http.StatusMethodNotAllowed)
}

// foreign says whether a page of a site that is not one of Origins has made the request. Browsers
// send the password with such a request if they have it.
func (h *Handler) foreign(r *http.Request) bool {
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		same := err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
		return !same && !slices.Contains(h.o.Origins, origin)
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return false
	}
	return true
}

func describe(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write(openAPI)
}

// statusOf is the HTTP status for a Reason Code.
func statusOf(code packets.ReasonCode) int {
	switch code {
	case packets.NotAuthorized, packets.Banned:
		return http.StatusForbidden
	case packets.TopicNameInvalid, packets.TopicFilterInvalid, packets.MalformedPacket,
		packets.ProtocolError, packets.PayloadFormatInvalid, packets.QoSNotSupported,
		packets.RetainNotSupported, packets.SharedSubscriptionsNotSupported,
		packets.WildcardSubscriptionsNotSupported:
		return http.StatusBadRequest
	case packets.PacketTooLarge:
		return http.StatusRequestEntityTooLarge
	case packets.QuotaExceeded, packets.ConnectionRateExceeded, packets.MessageRateTooHigh:
		return http.StatusTooManyRequests
	case packets.ServerBusy, packets.ServerUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// fail answers with an error.
func fail(w http.ResponseWriter, err error) {
	code, text := statusOf(packets.CodeOf(err)), "internal error"
	if pe, ok := errors.AsType[*packets.Error](err); ok {
		text = cmp.Or(pe.Reason, pe.Code.String())
	}
	if errors.Is(err, dunlin.ErrBrokerClosed) || errors.Is(err, errClosed) {
		code, text = http.StatusServiceUnavailable, "the broker is closed"
	}
	http.Error(w, text, code)
}

var errClosed = errors.New("httpgw: the Handler is closed")
