package admin

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// This file is the routes, and what is common to all of them. openapi.json describes those below
// /api/v1, and a test holds it to them.

// A route is one thing that a Handler can be asked for.
type route struct {
	h            *Handler
	method, path string
	role         Role
	serve        func(*call) error
	params       []string // names that may stand in the query
	looks        bool     // it looks at many things, and needs a place
	body         any      // of what type the body is; nil: there is none
	answer       any      // of what type the answer is; nil: no JSON
}

// A call is one request that was admitted.
type call struct {
	h     *Handler
	w     http.ResponseWriter
	r     *http.Request
	who   Identity
	query url.Values
	route *route
	// what an action was about, for the audit, and whether it is there already
	about    string
	recorded bool
	desk     *desk // the broker in the path, nil if there is none
	// The answer, of this type, and how it is written; nil: it is written already.
	kind  string
	reply []byte
}

const (
	api      = "/api/v1"
	ofBroker = api + "/brokers/{broker}"
)

// route fills the mux.
func (h *Handler) route() {
	h.routes = slices.Concat(h.plainRoutes(), clientRoutes(), topicRoutes(), whyRoutes(),
		eventRoutes(), liveRoutes(), traceRoutes(), actionRoutes())
	h.mux = http.NewServeMux()
	for i := range h.routes {
		x := &h.routes[i]
		x.h = h
		h.mux.Handle(x.method+" "+x.path, x)
	}
}

// plainRoutes are those that are about no broker, or all of them.
func (h *Handler) plainRoutes() []route {
	return append([]route{
		{method: "GET", path: "/livez", role: RoleNone, serve: (*call).livez},
		{method: "GET", path: "/readyz", role: RoleNone, serve: (*call).readyz},
		{method: "GET", path: "/metrics", role: RoleRead, serve: (*call).metrics, looks: true},
		{method: "GET", path: api + "/openapi.json", role: RoleRead, serve: (*call).openAPI},
		{method: "GET", path: api + "/me", role: RoleRead, serve: (*call).me, answer: meView{}},
		{method: "GET", path: api + "/brokers", role: RoleRead, serve: (*call).list,
			answer: page[brokerView]{}},
		{method: "GET", path: api + "/audit", role: RoleRead, serve: (*call).audited,
			params: []string{"limit"}, answer: page[Record]{}},
		{method: "POST", path: api + "/log-level", role: RoleAct, serve: (*call).logLevel,
			body: levelBody{}, answer: doneView{}},
	}, webRoutes()...)
}

// whoKey is the key of the Identity in the context of a request that was admitted.
type whoKey struct{}

// ServeHTTP serves a request that was admitted.
func (x *route) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{h: x.h, w: w, r: r, route: x, who: r.Context().Value(whoKey{}).(Identity)}
	if err := c.done(); err != nil {
		answerProblem(w, err)
	} else if c.reply != nil {
		write(w, http.StatusOK, c.kind, c.reply)
	}
}

// done is follow, with an action recorded, also one that panics halfway.
func (c *call) done() (err error) {
	if c.route.role == RoleAct {
		err = errPanic
		defer func() {
			if !c.recorded {
				c.record(err)
			}
		}()
	}
	err = c.follow()
	return err
}

var errPanic = errors.New("a panic has ended it, maybe after all or a part was done")

// serve finds the route of a request that was admitted, and follows it.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, who Identity) {
	handler, pattern := h.mux.Handler(r)
	switch _, ok := handler.(*route); {
	case ok:
		h.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), whoKey{}, who)))
	case pattern != "": // the mux would redirect to a path without "//" and ".."
		answerProblem(w, fail(http.StatusNotFound, "not_found", "there is no such path: "+
			"Client Identifiers and topics belong into the query"))
	default:
		answerProblem(w, h.noRoute(w, r))
	}
}

// noRoute is why there is no route for a request: the path, or its method.
func (h *Handler) noRoute(w http.ResponseWriter, r *http.Request) error {
	var others []string
	for _, method := range []string{"GET", "POST"} {
		if other := r.Clone(r.Context()); method != r.Method {
			other.Method = method
			if _, pattern := h.mux.Handler(other); pattern != "" {
				others = append(others, method)
			}
		}
	}
	if len(others) == 0 {
		return fail(http.StatusNotFound, "not_found", "there is no such path")
	}
	w.Header().Set("Allow", strings.Join(others, ", "))
	return fail(http.StatusMethodNotAllowed, "method", "this path knows %s only",
		strings.Join(others, ", "))
}

// follow checks the role and the query, and does what the route is for.
func (c *call) follow() error {
	if c.who.Role < c.route.role {
		return fail(http.StatusForbidden, "forbidden", "this takes the role %q, yours is %q",
			c.route.role, c.who.Role)
	}
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return fail(http.StatusBadRequest, "query", "the query is none")
	}
	for name, values := range query {
		if !slices.Contains(c.route.params, name) {
			return fail(http.StatusBadRequest, "query", "there is no parameter %q here; there are: %s",
				name, cmp.Or(strings.Join(c.route.params, ", "), "none"))
		}
		if len(values) > 1 {
			return fail(http.StatusBadRequest, "query", "the parameter %q is there twice", name)
		}
	}
	c.query = query
	if strings.HasPrefix(c.route.path, ofBroker) {
		if c.desk = c.h.brokers[c.r.PathValue("broker")]; c.desk == nil {
			return fail(http.StatusNotFound, "no_broker", "there is no broker of that name")
		}
	}
	if c.route.looks {
		give, err := c.h.looks.take(c.r.Context())
		if err != nil {
			return err
		}
		defer give()
	}
	return c.route.serve(c)
}

// takeWhole is a place for a request that looks at everything of a broker.
func (c *call) takeWhole() (give func(), err error) { return c.desk.whole.take(c.r.Context()) }

// answer answers with v, as JSON.
func (c *call) answer(v any) error {
	text, err := asJSON(v)
	if err != nil {
		return err
	}
	return c.say(jsonType, text)
}

// say answers with a text. It is written when the request has given back its places: whoever reads
// slowly must not keep them.
func (c *call) say(kind string, text []byte) error {
	c.kind, c.reply = kind, text
	return nil
}

// text returns a parameter of the query, "" if it is not there.
func (c *call) text(name string) string { return c.query.Get(name) }

// need returns a parameter that must be there.
func (c *call) need(name string) (string, error) {
	if s := c.query.Get(name); s != "" {
		return s, nil
	}
	return "", fail(http.StatusBadRequest, "query", "the parameter %q is missing", name)
}

// number returns a parameter from 1 to most; if it is not there, otherwise.
func (c *call) number(name string, otherwise, most int) (int, error) {
	s := c.query.Get(name)
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most {
		return 0, fail(http.StatusBadRequest, "query", "the parameter %q is not from 1 to %d", name,
			most)
	}
	return n, nil
}

// flag returns a parameter that is true or false; nil if it is not there.
func (c *call) flag(name string) (*bool, error) {
	switch c.query.Get(name) {
	case "":
		return nil, nil
	case "true":
		return new(true), nil
	case "false":
		return new(false), nil
	}
	return nil, fail(http.StatusBadRequest, "query", "the parameter %q is neither true nor false",
		name)
}

// limit is the parameter of that name: how many things a page has.
func (c *call) limit() (int, error) { return c.number("limit", defaultPage, maxPage) }

const (
	defaultPage = 50
	maxPage     = 500
)

// A page is a part of a list.
type page[T any] struct {
	Items []T `json:"items"`
	// Next is the cursor of the next page, to be given as "after". Empty: this is the last page.
	Next string `json:"next,omitempty"`
}

// A cursor says where a page begins. It is opaque to those who send it.
func encodeCursor(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func decodeCursor(s string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return "", fail(http.StatusBadRequest, "cursor",
			"the cursor is none that a page has ended with")
	}
	return string(b), nil
}
