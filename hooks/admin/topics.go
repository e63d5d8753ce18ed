package admin

import (
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the retained messages: those that match a filter, and their tree.

func topicRoutes() []route {
	return []route{
		{method: "GET", path: ofBroker + "/retained", role: RoleRead, serve: (*call).retained,
			looks: true, params: []string{"filter", "after", "limit"}, answer: page[messageView]{}},
		{method: "GET", path: ofBroker + "/retained/count", role: RoleRead,
			serve: (*call).countRetained, looks: true, params: []string{"filter"}, answer: countView{}},
		{method: "GET", path: ofBroker + "/topics", role: RoleRead, serve: (*call).topics,
			looks: true, params: []string{"below", "after", "limit"}, answer: levelPage{}},
		{method: "GET", path: ofBroker + "/seen", role: RoleRead, serve: (*call).seen,
			params: []string{"limit"}, answer: page[seenView]{}},
	}
}

// maxShown is how much of a payload is shown, in bytes.
const maxShown = 4096

// A messageView is a retained message, or the message in a packet.
type messageView struct {
	Topic string `json:"topic"`
	QoS   int    `json:"qos"`
	Bytes int    `json:"bytes"` // of the payload
	// Text is the payload if it is UTF-8, Base64 otherwise: at most the first 4,096 bytes.
	Text        string `json:"text,omitempty"`
	Base64      []byte `json:"base64,omitempty"`
	ContentType string `json:"content_type,omitempty"`
	// Since is when the message was retained. It is missing if that was before the broker started.
	Since time.Time `json:"since,omitzero"`
}

// asRetained is asMessage for a retained message of b.
func asRetained(b *dunlin.Broker, m *packets.Message) messageView {
	x := asMessage(m)
	x.Since = b.RetainedSince(m)
	return x
}

func asMessage(m *packets.Message) messageView {
	x := messageView{Topic: m.Topic, QoS: int(m.QoS), Bytes: len(m.Payload),
		ContentType: m.ContentType()}
	shown := m.Payload
	if len(shown) > maxShown {
		shown = shown[:maxShown]
		for i := 0; i < utf8.UTFMax && !utf8.Valid(shown) && utf8.Valid(m.Payload); i++ {
			shown = shown[:len(shown)-1] // not in the middle of a character
		}
	}
	if utf8.Valid(shown) {
		x.Text = string(shown)
	} else {
		x.Base64 = shown
	}
	return x
}

// sizeOf is about how many bytes a view of m has.
func sizeOf(m *packets.Message) int {
	return 128 + len(m.Topic) + min(len(m.Payload), maxShown) + len(m.ContentType())
}

// filter returns the parameter of that name, "#" if there is none.
func (c *call) filter() (string, error) {
	s := c.text("filter")
	if s == "" {
		return "#", nil
	}
	if !packets.ValidTopicFilter(s) || strings.HasPrefix(s, "$share/") {
		return "", fail(http.StatusBadRequest, "query", "the filter is no Topic Filter")
	}
	return s, nil
}

// retained lists the retained messages that match a filter, in the order of their topics.
func (c *call) retained() error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	filter, err := c.filter()
	if err != nil {
		return err
	}
	after, err := decodeCursor(c.text("after"))
	if err != nil {
		return err
	}
	page, room := page[messageView]{Items: []messageView{}}, newPager(limit)
	for cursor, m := range c.desk.b.RetainedFrom(filter, after) {
		if !room.takes(sizeOf(m)) {
			page.Next = encodeCursor(after)
			break
		}
		after = cursor
		page.Items = append(page.Items, asRetained(c.desk.b, m))
	}
	return c.answer(page)
}

// A countView is how many there are.
type countView struct {
	Count int `json:"count"`
}

// countRetained counts the retained messages that match a filter.
func (c *call) countRetained() error {
	filter, err := c.filter()
	if err != nil {
		return err
	}
	n, err := c.count(filter)
	if err != nil {
		return err
	}
	return c.answer(countView{n})
}

// count counts the retained messages that match a filter.
func (c *call) count(filter string) (n int, err error) {
	give, err := c.takeWhole()
	if err != nil {
		return 0, err
	}
	defer give()
	for range c.desk.b.Retained(filter) {
		if n++; n%1024 == 0 && c.r.Context().Err() != nil {
			return n, c.r.Context().Err()
		}
	}
	return n, nil
}

// A topicLevel is one level of the tree of retained messages.
type topicLevel struct {
	// Name is the level, which may be empty. Topic is the whole Topic Name up to here.
	Name  string `json:"name"`
	Topic string `json:"topic"`
	// Message is what is retained at Topic itself.
	Message *messageView `json:"message,omitempty"`
	// More says that there are retained messages below.
	More bool `json:"more"`
}

// topics lists the levels below a topic; those at the top, if there is none.
//
// It finds each by one look at the index, however many messages are below.
func (c *call) topics() error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	after, err := decodeCursor(c.text("after"))
	if err != nil {
		return err
	}
	below := ""
	if c.query.Has("below") { // also the empty level
		below = c.text("below") + "/"
	}
	if len(below) > 65535 || !utf8.ValidString(below) {
		return fail(http.StatusBadRequest, "query", "the parameter \"below\" is no topic")
	}
	page, room := levelPage{Items: []topicLevel{}}, newPager(limit)
	t := tree{c.desk.b, "#"}
	if strings.HasPrefix(below, "$") { // which "#" does not match
		root, _, _ := strings.Cut(below, "/")
		t.filter = root + "/#"
	}
	at := max(after, below)
	for c.r.Context().Err() == nil {
		m, behind := t.next(at)
		if m == nil || !strings.HasPrefix(m.Topic, below) {
			if below == "" {
				page.addSys(t.b, at, room)
			}
			break
		}
		if !room.takes(sizeOf(m) + len(m.Topic)) {
			page.Next = encodeCursor(at)
			break
		}
		name, _, deeper := strings.Cut(m.Topic[len(below):], "/")
		x := topicLevel{Name: name, Topic: below + name, More: deeper}
		if at = behind; deeper {
			at = x.Topic + "/\xff" // behind all that is below
			if retainedAt(t.b, x.Topic) != nil {
				continue // it was listed: "a" stands before "a!", and that before "a/b"
			}
		} else {
			x.Message = new(asRetained(t.b, m))
			first, _ := t.next(x.Topic + "/")
			x.More = first != nil && strings.HasPrefix(first.Topic, x.Topic+"/")
		}
		page.Items = append(page.Items, x)
	}
	return c.answer(page)
}

// A levelPage is a page of levels.
type levelPage struct {
	Items []topicLevel `json:"items"`
	Next  string       `json:"next,omitempty"`
}

// addSys adds the topics of the broker itself, which "#" does not match, behind all others.
func (p *levelPage) addSys(b *dunlin.Broker, at string, room *pager) {
	if m, _ := (tree{b, "$SYS/#"}).next(""); m == nil {
		return
	}
	if !room.takes(0) {
		p.Next = encodeCursor(at)
		return
	}
	p.Items = append(p.Items, topicLevel{Name: "$SYS", Topic: "$SYS", More: true})
}

// A tree is the retained messages of a broker that match a filter.
type tree struct {
	b      *dunlin.Broker
	filter string
}

// next returns the first message whose topic does not come before a text, and the cursor behind it;
// nil if there is none.
func (t tree) next(from string) (m *dunlin.Message, behind string) {
	for behind, m := range t.b.RetainedFrom(t.filter, from) {
		return m, behind
	}
	return nil, ""
}

// retainedAt returns the retained message of a topic; nil if there is none.
func retainedAt(b *dunlin.Broker, topic string) *dunlin.Message {
	for m := range b.Retained(topic) {
		return m
	}
	return nil
}
