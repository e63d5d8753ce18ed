package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	maxBody     = 1 << 20 // bytes of a request
	bodyTimeout = 30 * time.Second
	defaultTTL  = 7 * 24 * time.Hour
	maxTTL      = 30 * 24 * time.Hour
)

// A caller is who makes a request: the backend, which has the key, or a client, which has a token.
type caller byte

const (
	anybody caller = iota
	backend
	client
	both
)

// A call is a request under way.
type call struct {
	*service
	*http.Request
	session session // empty for the backend
}

// A route is a method and a path, and what they do. The answer is written as JSON, nil as nothing.
type route struct {
	pattern string
	who     caller
	do      func(c *call) (answer any, err error)
}

// A failure is an error for the caller.
type failure struct {
	status int
	text   string
}

func (f *failure) Error() string { return f.text }

func fail(status int, format string, args ...any) error {
	return &failure{status, fmt.Sprintf(format, args...)}
}

// created is an answer with status 201.
type created struct{ any }

var routes = []route{
	{"PUT /v1/users/{name}", backend, putAccount("users/")},
	{"GET /v1/users/{name}", backend, getAccount("users/")},
	{"DELETE /v1/users/{name}", backend, deleteAccount("users/")},
	{"POST /v1/users/{name}/sessions", backend, postSession("users/")},
	{"PUT /v1/devices/{name}", backend, putAccount("devices/")},
	{"GET /v1/devices/{name}", backend, getAccount("devices/")},
	{"DELETE /v1/devices/{name}", backend, deleteAccount("devices/")},
	{"POST /v1/devices/{name}/sessions", backend, postSession("devices/")},
	{"PUT /v1/devices/{name}/owners/{user}", backend, join("devices/", "/events")},
	{"DELETE /v1/devices/{name}/owners/{user}", backend, leave("devices/", "/events")},
	{"GET /v1/groups/{name}", backend, getGroup},
	{"PUT /v1/groups/{name}/members/{user}", backend, join("groups/", "")},
	{"DELETE /v1/groups/{name}/members/{user}", backend, leave("groups/", "")},
	{"DELETE /v1/sessions/{id}", backend, deleteSession},
	{"POST /v1/push", both, postPush},
	{"GET /v1/push/{id}", backend, getPush},
	{"GET /v1/me", client, getMe},
	{"POST /v1/me/refresh", client, refresh},
	{"DELETE /v1/me/session", client, signOut},
	{"GET /v1/openapi.json", anybody, nil},
}

// api serves the routes.
func (s *service) api() http.Handler {
	mux := http.NewServeMux()
	for _, x := range routes {
		if x.do == nil {
			mux.HandleFunc(x.pattern, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.Write(openAPI)
			})
			continue
		}
		mux.HandleFunc(x.pattern, func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			c := &call{service: s, Request: r}
			err := c.identify(x.who)
			var answer any
			if err == nil {
				answer, err = x.do(c)
			}
			reply(w, answer, err)
		})
	}
	mux.HandleFunc("/v1/", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, nil, fail(http.StatusNotFound, "no such path or method; see /v1/openapi.json"))
	})
	return mux
}

// identify finds out who calls, and refuses whoever may not.
func (c *call) identify(who caller) error {
	token, ok := strings.CutPrefix(c.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return fail(http.StatusUnauthorized, "expected the header Authorization: Bearer TOKEN")
	}
	isBackend := c.isKey(token)
	if !isBackend {
		var err error
		if c.session, err = c.db.session(c.Context(), token); err != nil {
			return err
		}
	}
	if who != both && isBackend != (who == backend) {
		return fail(http.StatusForbidden, "this is not for who has that token")
	}
	return nil
}

// reply writes an answer or an error.
func reply(w http.ResponseWriter, answer any, err error) {
	status := http.StatusOK
	switch {
	case err != nil:
		status = statusOf(err)
		answer = map[string]string{"error": err.Error()}
		if status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "1")
		}
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if x, ok := answer.(created); ok {
		status, answer = http.StatusCreated, x.any
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer)
}

func statusOf(err error) int {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status
	}
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok && e != nil {
		return http.StatusRequestEntityTooLarge
	}
	if e, ok := errors.AsType[*packets.Error](err); ok {
		switch e.Code {
		case packets.NotAuthorized, packets.Banned:
			return http.StatusForbidden
		case packets.QuotaExceeded, packets.MessageRateTooHigh:
			return http.StatusTooManyRequests
		case packets.TopicNameInvalid, packets.MalformedPacket, packets.ProtocolError,
			packets.PayloadFormatInvalid:
			return http.StatusBadRequest
		case packets.PacketTooLarge:
			return http.StatusRequestEntityTooLarge
		}
		return http.StatusServiceUnavailable
	}
	switch {
	case errors.Is(err, errNoTicket):
		return http.StatusUnauthorized
	case errors.Is(err, errUnknown):
		return http.StatusNotFound
	case errors.Is(err, errTooMany):
		return http.StatusConflict
	}
	return http.StatusServiceUnavailable
}

// text reads the body of a request.
func (c *call) text() ([]byte, error) {
	text, err := io.ReadAll(c.Body)
	if err == nil && !utf8.Valid(text) {
		err = fail(http.StatusBadRequest, "the body is not UTF-8")
	}
	return text, err
}

// read reads the JSON of a request. An empty body leaves v as it is.
func (c *call) read(v any) error {
	text, err := c.text()
	if err != nil || len(text) == 0 {
		return err
	}
	return strict(text, v)
}

// strict decodes JSON that is one value with known fields.
func strict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fail(http.StatusBadRequest, "the body is not the JSON that is expected: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fail(http.StatusBadRequest, "the body has something behind the JSON value")
	}
	return nil
}

// validName says whether a text can be the name of a user, a device, a group, or a collapse key.
func validName(name string) bool {
	letters := false
	for _, r := range name {
		letter := r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r))
		if !letter && !strings.ContainsRune("._-@", r) {
			return false
		}
		letters = letters || letter
	}
	return letters && len(name) <= 64
}

// name returns a part of the path that is to be a name.
func (c *call) name(part string) (string, error) {
	name := c.PathValue(part)
	if !validName(name) {
		return "", fail(http.StatusBadRequest, "%.80q is not a name: 1 to 64 bytes of letters, "+
			"digits, and . _ - @", name)
	}
	return name, nil
}

type handler = func(c *call) (answer any, err error)

func putAccount(kind string) handler {
	return func(c *call) (any, error) {
		name, err := c.name("name")
		if err != nil {
			return nil, err
		}
		isNew, err := c.db.addAccount(c.Context(), kind+name)
		if err != nil || !isNew {
			return nil, err
		}
		return created{map[string]string{"account": kind + name}}, c.changed(c.Context(), kind+name)
	}
}

// An account is an answer.
type account struct {
	Account  string    `json:"account"`
	Online   bool      `json:"online"`
	Groups   []string  `json:"groups"`
	Devices  []string  `json:"devices"`
	Sessions []session `json:"sessions"`
}

func getAccount(kind string) handler {
	return func(c *call) (any, error) {
		name, err := c.name("name")
		if err != nil {
			return nil, err
		}
		if err := c.db.mustHave(c.Context(), kind+name); err != nil {
			return nil, err
		}
		return c.account(c.Context(), kind+name)
	}
}

func (s *service) account(ctx context.Context, name string) (*account, error) {
	a := &account{Account: name, Online: s.online.has(name), Groups: []string{},
		Devices: []string{}}
	topics, err := s.db.topics(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, topic := range topics {
		if group, ok := strings.CutPrefix(topic, "groups/"); ok {
			a.Groups = append(a.Groups, group)
			continue
		}
		device := strings.TrimSuffix(strings.TrimPrefix(topic, "devices/"), "/events")
		a.Devices = append(a.Devices, device)
	}
	a.Sessions, err = s.db.sessions(ctx, name)
	return a, err
}

func deleteAccount(kind string) handler {
	return func(c *call) (any, error) {
		name, err := c.name("name")
		if err != nil {
			return nil, err
		}
		owners, err := c.db.removeAccount(c.Context(), kind+name)
		if err != nil {
			return nil, err
		}
		for _, a := range append(owners, kind+name, "") {
			if err := c.changed(c.Context(), a); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
}

// An askSession is what a backend asks for.
type askSession struct {
	TTL   int64  `json:"ttl"` // seconds; 90 days if it is missing
	Label string `json:"label"`
}

func postSession(kind string) handler {
	return func(c *call) (any, error) {
		name, err := c.name("name")
		if err != nil {
			return nil, err
		}
		var asked askSession
		if err := c.read(&asked); err != nil {
			return nil, err
		}
		life := 90 * 24 * time.Hour
		switch {
		case asked.TTL < 0 || asked.TTL > 400*24*3600:
			return nil, fail(http.StatusBadRequest, "ttl is in seconds, at most 400 days")
		case len(asked.Label) > 100:
			return nil, fail(http.StatusBadRequest, "label has more than 100 bytes")
		case asked.TTL > 0:
			life = time.Duration(asked.TTL) * time.Second
		}
		x, err := c.db.issue(c.Context(), kind+name, asked.Label, life)
		return created{x}, err
	}
}

func deleteSession(c *call) (any, error) {
	found, err := c.db.revoke(c.Context(), c.PathValue("id"))
	if err == nil && !found {
		err = fail(http.StatusNotFound, "there is no such session")
	}
	if err != nil {
		return nil, err
	}
	return nil, c.changed(c.Context(), "")
}

func signOut(c *call) (any, error) {
	if _, err := c.db.revoke(c.Context(), c.session.ID); err != nil {
		return nil, err
	}
	return nil, c.changed(c.Context(), "")
}

func refresh(c *call) (any, error) {
	x, err := c.db.refresh(c.Context(), c.session)
	return created{x}, err
}

// topicAndUser are the topic and the account of a path with both.
func (c *call) topicAndUser(prefix, suffix string) (topic, user string, err error) {
	name, err := c.name("name")
	if err != nil {
		return "", "", err
	}
	user, err = c.name("user")
	return prefix + name + suffix, "users/" + user, err
}

func join(prefix, suffix string) handler {
	return func(c *call) (any, error) {
		topic, user, err := c.topicAndUser(prefix, suffix)
		if err != nil {
			return nil, err
		}
		if device, ok := strings.CutSuffix(topic, "/events"); ok {
			if err := c.db.mustHave(c.Context(), device); err != nil {
				return nil, err
			}
		}
		if err := c.db.join(c.Context(), user, topic); err != nil {
			return nil, err
		}
		return nil, c.changed(c.Context(), user)
	}
}

func leave(prefix, suffix string) handler {
	return func(c *call) (any, error) {
		topic, user, err := c.topicAndUser(prefix, suffix)
		if err != nil {
			return nil, err
		}
		found, err := c.db.leave(c.Context(), user, topic)
		if err != nil {
			return nil, err
		}
		if err := c.changed(c.Context(), user); err != nil {
			return nil, err
		}
		if !found {
			return nil, fail(http.StatusNotFound, "%s is not there", user)
		}
		return nil, nil
	}
}

// A member is somebody in a group.
type member struct {
	Name   string `json:"name"`
	Online bool   `json:"online"`
}

// A group is an answer.
type group struct {
	Name    string   `json:"name"`
	Members []member `json:"members"`
}

func getGroup(c *call) (any, error) {
	name, err := c.name("name")
	if err != nil {
		return nil, err
	}
	g, err := c.group(c.Context(), name)
	if err == nil && len(g.Members) == 0 {
		return nil, fail(http.StatusNotFound, "there is nobody in the group %s", name)
	}
	return g, err
}

func (s *service) group(ctx context.Context, name string) (group, error) {
	g := group{Name: name}
	members, err := s.db.members(ctx, "groups/"+name)
	for _, m := range members {
		g.Members = append(g.Members, member{strings.TrimPrefix(m, "users/"), s.online.has(m)})
	}
	return g, err
}

// A me is an answer.
type me struct {
	Account string    `json:"account"`
	Expires time.Time `json:"expires"`
	Groups  []group   `json:"groups"`
	Devices []member  `json:"devices"`
}

// getMe tells a client about its own account: what the page shows.
func getMe(c *call) (any, error) {
	a, err := c.account(c.Context(), c.session.Account)
	if err != nil {
		return nil, err
	}
	answer := me{a.Account, c.session.Expires, []group{}, []member{}}
	for _, name := range a.Groups {
		g, err := c.group(c.Context(), name)
		if err != nil {
			return nil, err
		}
		answer.Groups = append(answer.Groups, g)
	}
	for _, d := range a.Devices {
		answer.Devices = append(answer.Devices, member{d, c.online.has("devices/" + d)})
	}
	return answer, nil
}
