package admin

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is why: why a client gets nothing, who would get something, who has gone or was
// refused, and what was dropped.

func whyRoutes() []route {
	return []route{
		{method: "GET", path: ofBroker + "/explain", role: RoleRead, serve: (*call).explain,
			looks: true, params: []string{"id", "topic"}, answer: explanationView{}},
		{method: "GET", path: ofBroker + "/subscribers", role: RoleRead, serve: (*call).subscribers,
			looks: true, params: []string{"topic", "limit"}, answer: subscribersView{}},
		{method: "GET", path: ofBroker + "/ended", role: RoleRead, serve: (*call).ended,
			looks: true, params: []string{"id", "user", "address", "refused", "after", "limit"},
			answer: page[endingView]{}},
		{method: "GET", path: ofBroker + "/drops", role: RoleRead, serve: (*call).drops,
			looks: true, params: []string{"id", "limit"}, answer: page[dropView]{}},
	}
}

// A findingView is one thing that keeps messages from a client, or did so.
type findingView struct {
	// Cause is in a few words, for programs; Text is a sentence for people.
	Cause string `json:"cause"`
	Text  string `json:"text"`
	// Filter is the subscription that matches, Nearest the one that comes closest if none does.
	Filter  string `json:"filter,omitempty"`
	Nearest string `json:"nearest,omitempty"`
	// Rule is what the access rules said. Member is who of a shared subscription got the message.
	Rule   string      `json:"rule,omitempty"`
	Member string      `json:"member,omitempty"`
	Drop   *dropView   `json:"drop,omitempty"`
	Ending *endingView `json:"ending,omitempty"`
}

func asFinding(f *dunlin.Finding) findingView {
	v := findingView{Cause: f.Cause.String(), Text: f.Text, Filter: f.Filter, Nearest: f.Nearest,
		Rule: f.Rule, Member: f.Member}
	if f.Drop != nil {
		v.Drop = new(asDrop(f.Drop))
	}
	if f.Ending != nil {
		v.Ending = new(asEnding(f.Ending))
	}
	return v
}

// An explanationView says why a client does not get the messages of a topic: what matters most, and
// what else was found.
type explanationView struct {
	Client    string        `json:"client"`
	Topic     string        `json:"topic"`
	Session   bool          `json:"session"` // whether the client has one
	Connected bool          `json:"connected"`
	QoS       int           `json:"qos"`
	Finding   findingView   `json:"finding"`
	Also      []findingView `json:"also"`
}

// explain says what keeps messages of a topic from a client, or did so lately.
func (c *call) explain() error {
	id, err := c.need("id")
	if err != nil {
		return err
	}
	topic, err := c.need("topic")
	if err != nil {
		return err
	}
	e := c.desk.b.Explain(c.r.Context(), id, topic)
	v := explanationView{Client: id, Topic: topic, Session: e.Session, Connected: e.Connected,
		QoS: int(e.QoS), Finding: asFinding(&e.Finding), Also: []findingView{}}
	for i := range e.Also {
		v.Also = append(v.Also, asFinding(&e.Also[i]))
	}
	return c.answer(v)
}

// A subscriberView is a subscription that matches a topic.
type subscriberView struct {
	Client    string `json:"client"`
	Principal string `json:"principal,omitempty"`
	Filter    string `json:"filter"`
	Group     string `json:"group,omitempty"` // of a shared subscription
	QoS       int    `json:"qos"`
	NoLocal   bool   `json:"no_local,omitempty"`
	Connected bool   `json:"connected"`
	// Cause is what would keep the next message from the client. Empty: nothing.
	Cause string `json:"cause,omitempty"`
}

// A subscribersView is who would get a message, in no order.
type subscribersView struct {
	Items []subscriberView `json:"items"`
	// More says that there are more than the limit.
	More bool `json:"more"`
}

// subscribers lists who would get a message of a topic, in no order.
func (c *call) subscribers() error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	topic, err := c.need("topic")
	if err != nil {
		return err
	}
	if !packets.ValidTopicName(topic) {
		return fail(http.StatusBadRequest, "query", "the topic is no Topic Name: it is empty, or has "+
			"a wildcard")
	}
	v, room := subscribersView{Items: []subscriberView{}}, newPager(limit)
	for x := range c.desk.b.Subscribers(topic) {
		if v.More = !room.takes(128 + len(x.ClientID) + len(x.Principal) + len(x.Filter)); v.More {
			break
		}
		s := subscriberView{Client: x.ClientID, Principal: hooks.ShownUser(x.Principal), Filter: x.Filter,
			Group: x.Group, QoS: int(x.QoS), NoLocal: x.NoLocal, Connected: x.Connected}
		if x.Cause != 0 {
			s.Cause = x.Cause.String()
		}
		v.Items = append(v.Items, s)
	}
	return c.answer(v)
}

// An endingView is a connection that ended, or was refused. The same one again and again is one
// with a Count.
type endingView struct {
	Refused     bool      `json:"refused"`
	Cause       string    `json:"cause"` // in a few words
	Code        int       `json:"code"`  // the Reason Code
	Err         string    `json:"err,omitempty"`
	Client      string    `json:"client,omitempty"`
	User        string    `json:"user,omitempty"`
	Address     string    `json:"address,omitempty"`
	Listener    string    `json:"listener,omitempty"`
	Protocol    string    `json:"protocol,omitempty"`
	ConnectedAt time.Time `json:"connected_at,omitzero"`
	EndedAt     time.Time `json:"ended_at"`
	First       time.Time `json:"first,omitzero"`
	Count       uint64    `json:"count"`
}

func asEnding(e *dunlin.Ending) endingView {
	v := endingView{Refused: e.Refused, Cause: e.Cause.String(), Code: int(e.Code), Err: e.Err,
		Client: e.ClientID, User: hooks.ShownUser(e.User), Address: e.Address, Listener: e.Listener,
		ConnectedAt: e.ConnectedAt, EndedAt: e.EndedAt, First: e.First, Count: e.Count}
	if v.User == "" {
		v.User = hooks.ShownUser(e.Principal)
	}
	if e.Version != 0 {
		v.Protocol = e.Version.String()
	}
	return v
}

// ended lists the connections that ended last, and those that were refused, the newest first.
func (c *call) ended() error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	refused, err := c.flag("refused")
	if err != nil {
		return err
	}
	f, err := c.clientFilter()
	if err != nil {
		return err
	}
	before, err := lastEnding(c.text("after"))
	if err != nil {
		return err
	}
	page, room, last := page[endingView]{Items: []endingView{}}, newPager(limit), uint64(0)
	for _, e := range c.desk.b.Ended(c.text("id")) {
		v := asEnding(&e)
		seen := before != 0 && e.Number >= before
		if seen || refused != nil && *refused != e.Refused || !f.wants(subject{id: v.Client,
			user: v.User, address: addressOf(v.Address)}) {
			continue
		}
		if !room.takes(512 + len(v.Client) + len(v.User) + len(v.Err)) {
			page.Next = encodeCursor(strconv.FormatUint(last, 10))
			break
		}
		last = e.Number
		page.Items = append(page.Items, v)
	}
	return c.answer(page)
}

// lastEnding reads the cursor of a page of ended; 0 for the first page.
func lastEnding(after string) (before uint64, err error) {
	text, err := decodeCursor(after)
	if err == nil && text != "" {
		if before, err = strconv.ParseUint(text, 10, 64); err != nil {
			err = fail(http.StatusBadRequest, "cursor", "the cursor is that of another list")
		}
	}
	return before, err
}

// A dropView is a message that did not reach a client. The same client, topic and reason again are
// one with a Count.
type dropView struct {
	Client string    `json:"client"`
	Topic  string    `json:"topic"` // with the mount point; empty if the broker did not have it
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
	First  time.Time `json:"first,omitzero"`
	Count  uint64    `json:"count"`
}

func asDrop(d *dunlin.Drop) dropView {
	return dropView{Client: d.ClientID, Topic: d.Topic, Reason: d.Reason.String(), At: d.Time,
		First: d.First, Count: d.Count}
}

// drops lists the messages that were dropped last, the newest first.
func (c *call) drops() error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	page, room, id := page[dropView]{Items: []dropView{}}, newPager(limit), c.text("id")
	for _, d := range c.desk.b.LastDrops() {
		if id != "" && id != d.ClientID {
			continue
		}
		if !room.takes(256 + len(d.ClientID) + len(d.Topic)) {
			break
		}
		page.Items = append(page.Items, asDrop(&d))
	}
	page.Items = slices.Clip(page.Items)
	return c.answer(page)
}
