package admin

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the actions.

func actionRoutes() []route {
	act := func(name string, serve func(*call) error, body any) route {
		return route{method: "POST", path: ofBroker + "/" + name, role: RoleAct, serve: serve,
			body: body, answer: doneView{}}
	}
	return []route{
		act("disconnect", (*call).disconnect, disconnectBody{}),
		act("delete-session", (*call).deleteSession, deleteBody{}),
		act("ban", (*call).ban, banBody{}),
		act("unban", (*call).unban, unbanBody{}),
		act("clear-retained", (*call).clearRetained, clearBody{}),
		act("publish", (*call).publish, publishBody{}),
		act("subscribe", (*call).subscribe, subscribeBody{}),
		act("unsubscribe", (*call).unsubscribe, unsubscribeBody{}),
		act("drain", (*call).startDrain, drainBody{}),
		act("undrain", (*call).undrain, undrainBody{}),
	}
}

// name is the last part of the path of an action.
func (x *route) name() string { return x.path[strings.LastIndexByte(x.path, '/')+1:] }

// doneView is the answer to an action.
type doneView struct {
	// Count is how many clients, Sessions, messages or subscriptions it was.
	Count int `json:"count"`
}

// did answers an action.
func (c *call) did(n int) error { return c.answer(doneView{n}) }

// read reads the body of an action.
func (c *call) read(v any) error { return readJSON(c.r, v) }

// disconnectBody ends the connection of a client.
type disconnectBody struct {
	ID string `json:"id"`
	// Code is the Reason Code that a client of 5.0 is told. Zero: Administrative action (152).
	Code int `json:"code,omitempty"`
}

// disconnect ends the connection of a client. Its Will is published.
func (c *call) disconnect() error {
	var a disconnectBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.ID
	if a.Code < 0 || a.Code > 0xFF {
		return fail(http.StatusBadRequest, "code", "the code is no Reason Code")
	}
	if !c.desk.b.Disconnect(a.ID, packets.ReasonCode(a.Code)) {
		return fail(http.StatusNotFound, "no_client", "no client with that Client Identifier is "+
			"connected")
	}
	return c.did(1)
}

// deleteBody ends a Session, with its subscriptions and queue, and disconnects its client.
type deleteBody struct {
	ID string `json:"id"`
}

// deleteSession ends the Session of a client, with its subscriptions and queue.
func (c *call) deleteSession() error {
	var a deleteBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.ID
	found, err := c.desk.b.DeleteSession(c.r.Context(), a.ID)
	if err == nil && !found {
		err = noClient()
	}
	if err != nil {
		return err
	}
	return c.did(1)
}

// banBody keeps an address, a client or a user out.
type banBody struct {
	Kind  string `json:"kind"` // as in Ban
	Value string `json:"value,omitempty"`
	// Client is a Client Identifier that stands for Value if Kind is "user": the ban is for the
	// user of that client. A user whose name is a token, which is not shown, can only be banned
	// like this.
	Client string `json:"client,omitempty"`
	// Seconds is how long. Zero: until somebody ends the ban, or the broker ends.
	Seconds int64  `json:"seconds,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// longestBan is longer than any broker runs.
const longestBan int64 = 100 * 365 * 24 * 3600

func banKind(name string) (hooks.BanKind, error) {
	for k := hooks.BanAddress; k <= hooks.BanSession; k++ {
		if k.String() == name {
			return k, nil
		}
	}
	return 0, fail(http.StatusBadRequest, "kind", "the kind is none of address, client, user and "+
		"session")
}

// ban keeps an address, a client or a user out, and ends their connections.
func (c *call) ban() error {
	var a banBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.Kind + " " + hooks.ShownUser(a.Value)
	kind, err := banKind(a.Kind)
	if err != nil {
		return err
	}
	if a.Seconds < 0 || a.Seconds > longestBan || len(a.Reason) > 1024 {
		return fail(http.StatusBadRequest, "ban", "a ban is from 0 to %d seconds long, and its "+
			"reason has at most 1,024 bytes", longestBan)
	}
	x := dunlin.Ban{Kind: kind, Value: a.Value, Reason: a.Reason}
	if a.Client != "" {
		if x.Value, err = c.userOf(&a, kind); err != nil {
			return err
		}
		c.about = a.Kind + " " + hooks.ShownUser(x.Value) + ", of " + a.Client
	}
	if a.Seconds > 0 {
		x.Until = time.Now().Add(time.Duration(a.Seconds) * time.Second)
	}
	if err := c.desk.b.Ban(x); err != nil {
		return err
	}
	return c.did(1)
}

// userOf returns the user of the client that a names.
func (c *call) userOf(a *banBody, kind hooks.BanKind) (string, error) {
	if kind != hooks.BanUser || a.Value != "" {
		return "", fail(http.StatusBadRequest, "client", "a client stands for its user, so the kind "+
			"must be user, and there must be no value")
	}
	s, ok := c.desk.b.Session(a.Client)
	if !ok {
		return "", noClient()
	}
	name := s.Principal
	if s.Client != nil {
		name, _ = s.Client.User()
	}
	if name == "" {
		return "", fail(http.StatusConflict, "no_user", "the client has no user name")
	}
	return name, nil
}

// unbanBody ends a ban.
type unbanBody struct {
	Kind  string `json:"kind"`
	Value string `json:"value"`
}

// unban ends a ban.
func (c *call) unban() error {
	var a unbanBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.Kind + " " + hooks.ShownUser(a.Value)
	kind, err := banKind(a.Kind)
	if err != nil {
		return err
	}
	for _, x := range c.desk.b.Bans() { // a token is banned by a name that nobody is shown
		if x.Kind == kind && a.Value == hooks.ShownUser(x.Value) {
			a.Value = x.Value
			break
		}
	}
	if !c.desk.b.Unban(kind, a.Value) {
		return fail(http.StatusNotFound, "no_ban", "there is no such ban")
	}
	return c.did(1)
}

// clearBody removes all retained messages that match a filter. Clients that subscribe to them
// get an empty message for each, as when a client clears them.
type clearBody struct {
	Filter string `json:"filter"`
	// Count is how many there are: see /retained/count. If it is another number, nothing is done,
	// and the answer is 409 with the number.
	Count int `json:"count"`
}

// clearRetained removes all retained messages that match a filter, if their number is confirmed.
func (c *call) clearRetained() error {
	var a clearBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.Filter
	if !packets.ValidTopicFilter(a.Filter) || strings.HasPrefix(a.Filter, "$share/") {
		return fail(http.StatusBadRequest, "filter", "the filter is no Topic Filter")
	}
	n, err := c.count(a.Filter)
	if err != nil {
		return err
	}
	if n != a.Count {
		return &problem{status: http.StatusConflict, code: "count", count: &n, message: "there " +
			"is another number of retained messages: confirm with that number"}
	}
	cleared, err := c.clear(a.Filter, n)
	if err != nil {
		return fail(http.StatusServiceUnavailable, "part", "after %d of %d: %v", cleared, n, err)
	}
	return c.did(cleared)
}

// clearAtOnce is how many retained messages are cleared together: one batch for the store.
const clearAtOnce = 256

// clear clears the retained messages that match a filter, at most so many: those that come
// meanwhile nobody has confirmed.
func (c *call) clear(filter string, most int) (cleared int, err error) {
	var some []*dunlin.Message
	flush := func() {
		var n int
		n, err = c.desk.b.PublishAll(c.r.Context(), some...)
		cleared, some = cleared+n, some[:0]
	}
	for m := range c.desk.b.Retained(filter) {
		if err != nil || cleared+len(some) == most {
			break
		}
		some = append(some, &dunlin.Message{Topic: m.Topic, Retain: true})
		if len(some) == clearAtOnce {
			flush()
		}
	}
	if err == nil {
		flush()
	}
	return cleared, err
}

// publishBody publishes a message.
type publishBody struct {
	Topic string `json:"topic"`
	// Text is the payload, or Base64 is.
	Text        string `json:"text,omitempty"`
	Base64      []byte `json:"base64,omitempty"`
	QoS         int    `json:"qos,omitempty"`
	Retain      bool   `json:"retain,omitempty"`
	ContentType string `json:"content_type,omitempty"`
}

// publish publishes a message, as the program itself: no access rule is asked.
func (c *call) publish() error {
	var a publishBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.Topic
	switch {
	case a.QoS < 0 || a.QoS > 2:
		return fail(http.StatusBadRequest, "qos", "the QoS is none of 0, 1 and 2")
	case a.Text != "" && len(a.Base64) > 0:
		return fail(http.StatusBadRequest, "payload", "there are two payloads, text and base64")
	}
	m := &dunlin.Message{Topic: a.Topic, Payload: a.Base64, QoS: packets.QoS(a.QoS),
		Retain: a.Retain}
	if a.Text != "" {
		m.Payload = []byte(a.Text)
	}
	if a.ContentType != "" {
		m.SetContentType(a.ContentType)
	}
	if err := c.desk.b.Publish(c.r.Context(), m); err != nil {
		return err
	}
	return c.did(1)
}

// A levelBody is how much the program logs.
type levelBody struct {
	Level slog.Level `json:"level"` // "DEBUG", "INFO", "WARN" or "ERROR"
}

// logLevel sets how much the program logs.
func (c *call) logLevel() error {
	var a levelBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.Level.String()
	if c.h.opts.LogLevel == nil {
		return fail(http.StatusNotImplemented, "log_level", "the program does not let its log "+
			"level be set here")
	}
	c.h.opts.LogLevel.Set(a.Level)
	return c.did(1)
}
