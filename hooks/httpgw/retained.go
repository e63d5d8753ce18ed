package httpgw

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the retained messages: GET /topics and GET /retained.

// An event is a message as readers get it.
type event struct {
	Topic         string      `json:"topic"`
	Payload       []byte      `json:"payload"` // base64
	QoS           byte        `json:"qos"`
	Retain        bool        `json:"retain"`
	ContentType   string      `json:"contentType,omitempty"`
	ResponseTopic string      `json:"responseTopic,omitempty"`
	Correlation   []byte      `json:"correlation,omitempty"` // base64
	User          [][2]string `json:"user,omitempty"`
}

func newEvent(m *dunlin.Message, mount string) event {
	e := event{Topic: strings.TrimPrefix(m.Topic, mount), Payload: m.Payload, QoS: byte(m.QoS),
		Retain: m.Retain}
	if e.Payload == nil {
		e.Payload = []byte{}
	}
	if len(m.Properties) == 0 {
		return e
	}
	e.ContentType, _ = m.Properties.Text(packets.ContentType)
	e.ResponseTopic, _ = m.Properties.Text(packets.ResponseTopic)
	e.Correlation, _ = m.Properties.Bytes(packets.CorrelationData)
	for name, value := range m.Properties.User() {
		e.User = append(e.User, [2]string{name, value})
	}
	return e
}

// message returns the message of an event, as far as an event has it.
func (e *event) message(mount string) *dunlin.Message {
	m := &dunlin.Message{Topic: mount + e.Topic, Payload: e.Payload, QoS: packets.QoS(e.QoS),
		Retain: e.Retain}
	if e.ContentType != "" {
		m.SetContentType(e.ContentType)
	}
	if e.ResponseTopic != "" {
		m.SetResponseTopic(e.ResponseTopic)
	}
	if e.Correlation != nil {
		m.SetCorrelationData(e.Correlation)
	}
	for _, x := range e.User {
		m.AddUser(x[0], x[1])
	}
	return m
}

// shown returns what a visitor gets of a message, or why it gets nothing.
func (h *Handler) shown(
	ctx context.Context, v *visitor, m *dunlin.Message,
) (*dunlin.Message, error) {
	x := h.b.DeliveryInterceptor()
	if x == nil {
		return m, nil
	}
	return x.InterceptDelivery(ctx, v.client, m)
}

// encode returns the JSON of an event.
func (e *event) encode() []byte {
	b, err := json.Marshal(e)
	if err != nil {
		panic("BUG: " + err.Error()) // nothing in it can fail
	}
	return b
}

// retained is GET /topics/TOPIC.
func (h *Handler) retained(w http.ResponseWriter, r *http.Request, v *visitor) {
	topic := topicOf(r)
	group, _, err := packets.SplitShared(topic)
	if err != nil || group != "" || !packets.ValidTopicName(topic) {
		fail(w, packets.Errorf(packets.TopicNameInvalid, "%.100q is not a Topic Name; use "+
			"/retained for a filter", topic))
		return
	}
	if err = h.b.MayRead(r.Context(), v.client, &v.grant, topic); err == nil {
		err = h.b.MayReceive(r.Context(), v.client, &v.grant, topic)
	}
	if err != nil {
		fail(w, err)
		return
	}
	for m := range h.b.Retained(v.grant.MountPoint + topic) {
		if m, err = h.shown(r.Context(), v, m); err != nil {
			break
		}
		held := sending{h: h, v: v}
		defer held.free()
		if err := held.reserve(len(m.Payload)); err != nil {
			fail(w, err)
			return
		}
		// never one that a browser would run
		w.Header().Set("Content-Type", "application/octet-stream")
		patiently(w).Write(m.Payload)
		return
	}
	http.Error(w, "no retained message", http.StatusNotFound)
}

// filterOf is the Topic Filter of a request. A group is an error: what one member reads the others
// would not get.
func filterOf(r *http.Request) (string, error) {
	filter := r.URL.Query().Get("filter")
	group, _, err := packets.SplitShared(filter)
	if err == nil && group != "" {
		err = packets.Errorf(packets.TopicFilterInvalid, "a shared subscription is not possible")
	}
	return filter, err
}

// What one answer with retained messages has at most: so many, and so many bytes of JSON, but
// always the first.
const (
	maxSubtree      = 10_000
	maxSubtreeBytes = 8 << 20
)

// subtree is GET /retained.
func (h *Handler) subtree(w http.ResponseWriter, r *http.Request, v *visitor) {
	filter, err := filterOf(r)
	if err == nil {
		err = h.b.MayRead(r.Context(), v.client, &v.grant, filter)
	}
	if err != nil {
		fail(w, err)
		return
	}
	mount := v.grant.MountPoint
	after := r.URL.Query().Get("after")
	if after != "" {
		after = mount + after + "\x00" // no topic is between the two
	}
	out := patiently(w)
	held := sending{h: h, v: v}
	defer held.free()
	n, size, last, more := 0, 0, "", false
	for _, m := range h.b.RetainedFrom(mount+filter, after) {
		topic := strings.TrimPrefix(m.Topic, mount)
		if h.b.MayReceive(r.Context(), v.client, &v.grant, topic) != nil {
			continue
		}
		m, err := h.shown(r.Context(), v, m)
		if err != nil {
			continue
		}
		e := newEvent(m, mount)
		text := e.encode()
		if size += len(text); n > 0 && (n == maxSubtree || size > h.subtreeBytes) {
			more = true
			break
		}
		if err := held.reserve(len(m.Payload) + len(text)); err != nil && n == 0 {
			fail(w, err)
			return
		} else if err != nil {
			more = true
			break
		}
		before := ","
		if n++; n == 1 {
			before = beginSubtree(w)
		}
		if _, err := io.WriteString(out, before); err != nil {
			return // the client has gone
		}
		if _, err := out.Write(text); err != nil {
			return
		}
		last = topic
	}
	if n == 0 {
		io.WriteString(out, beginSubtree(w))
	}
	if !more {
		last = ""
	}
	end, _ := json.Marshal(last) // a string
	io.WriteString(out, `],"after":`+string(end)+"}\n")
}

// beginSubtree returns what an answer with retained messages begins with.
func beginSubtree(w http.ResponseWriter) string {
	w.Header().Set("Content-Type", "application/json")
	return `{"messages":[`
}

// sending is what an answer holds for a client that may take its time. It counts as bodies do that
// are being received.
type sending struct {
	h       *Handler
	v       *visitor
	counted int64
}

// reserve counts the n bytes that are sent next, if they are more than any before.
func (s *sending) reserve(n int) error {
	more := int64(n) - s.counted
	if more <= 0 {
		return nil
	}
	if err := s.h.users.carry(s.v.user, more); err != nil {
		return err
	}
	s.counted += more
	return nil
}

// free ends the counting.
func (s *sending) free() { s.h.users.carry(s.v.user, -s.counted) }
