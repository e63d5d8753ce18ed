package webhook

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// EventOptions say which events are sent, and how. A negative number or duration means the default.
type EventOptions struct {
	// URL is the address of the server. Required.
	URL string
	// Client makes the requests. Nil: one that follows no redirects.
	Client *http.Client
	// Header is added to the requests. It must not be modified afterwards.
	Header http.Header
	// Secret signs the requests. Empty: they are not signed.
	Secret []byte
	// Timeout bounds the time of one attempt. Zero: 5 s.
	Timeout time.Duration
	// Only are the names of the events to send. Empty: all events, except those about single
	// messages: published, delivered, acknowledged, dropped and settled.
	Only []string
	// Payloads sends the payloads of messages too.
	Payloads bool
	// Batch is the maximum number of events in a request. RequestBytes is the maximum number of
	// bytes; a larger event gets a request of its own. Interval is how long an event may wait for
	// others. If the server refuses a request as too large (413), it gets the events in halves, and
	// later requests are smaller. Zero: 100, 1 MiB and 1 s.
	Batch, RequestBytes int
	Interval            time.Duration
	// Queue and QueueBytes bound the events that wait, without those of the request in progress.
	// Further events are dropped. Events about one address, or about one client if the address is
	// unknown, do not fill the last quarter. Zero: 10,000 and 16 MiB.
	Queue, QueueBytes int
	// Attempts is how often a request is made before its events are dropped. RetryMin is the pause
	// after the first attempt. The pause doubles up to RetryMax; each pause is shortened at random
	// by up to a half. Zero: 10, 500 ms and 30 s.
	Attempts           int
	RetryMin, RetryMax time.Duration
	// Logger logs events that are dropped because the server refused them. Nil: slog.Default().
	Logger *slog.Logger
}

// An Event is one thing that happened, as it is sent. Which fields there are depends on Event:
//
//	connected                   the client's, and session_present
//	refused, disconnected       the client's, reason_code, and error if there was one
//	session_ended               the client's
//	subscribed, unsubscribed    the client's, the topic's, which is a Topic Filter; qos if subscribed
//	denied                      the client's, action, the topic's, error
//	revoked                     the client's, the topic's, error
//	published                   the client's, the message's, and matched: how many Sessions it went to
//	delivered                   the client's, the message's, and packet_id if the QoS is not 0
//	acknowledged                the client's, packet_id
//	dropped                     the client's, error, and the message's if the broker still has it
//	settled                     the client's, receipt, qos; error if the client does not get it
//	panicked                    the client's, error
//	banned                      kind, value, error, which is why, and until, missing if the ban has no end
//	store_failed                error
//	store_recovered             nothing more
//
// The client's are client_id, user and remote_ip. The topic's are topic, as the client writes it,
// and mounted_topic, which has the mount point in front, and is missing if the client has none. The
// message's are the topic's, qos, retain, size and payload.
//
// Texts of more than 1,024 bytes are cut, and truncated names the fields that are: client_id, user,
// topic, mounted_topic, value or error. It names payload where the server has refused the event
// with its payload as too large.
type Event struct {
	Seq            uint64              `json:"seq"`
	Time           time.Time           `json:"time"`
	Event          string              `json:"event"`
	ClientID       string              `json:"client_id,omitempty"`
	User           string              `json:"user,omitempty"`
	RemoteIP       string              `json:"remote_ip,omitempty"`
	SessionPresent bool                `json:"session_present,omitempty"`
	ReasonCode     *packets.ReasonCode `json:"reason_code,omitempty"`
	Error          string              `json:"error,omitempty"`
	Action         string              `json:"action,omitempty"`
	Topic          string              `json:"topic,omitempty"`
	MountedTopic   string              `json:"mounted_topic,omitempty"`
	QoS            *packets.QoS        `json:"qos,omitempty"`
	Retain         bool                `json:"retain,omitempty"`
	Size           *int                `json:"size,omitempty"` // of the payload, in bytes
	Payload        []byte              `json:"payload,omitempty"`
	Matched        *int                `json:"matched,omitempty"`
	PacketID       uint16              `json:"packet_id,omitempty"`
	Receipt        string              `json:"receipt,omitempty"`
	Kind           string              `json:"kind,omitempty"`
	Value          string              `json:"value,omitempty"`
	Until          time.Time           `json:"until,omitzero"`
	Truncated      []string            `json:"truncated,omitempty"`
}

// maxText is the maximum length of a text that is sent, in bytes.
const maxText = 1024

// cut shortens the texts of x. It copies them, so that the long texts can be freed.
func (x *Event) cut() {
	for _, f := range []struct {
		name string
		text *string
	}{
		{"client_id", &x.ClientID}, {"user", &x.User}, {"topic", &x.Topic},
		{"mounted_topic", &x.MountedTopic}, {"value", &x.Value}, {"error", &x.Error},
	} {
		if len(*f.text) > maxText {
			*f.text = strings.ToValidUTF8(strings.Clone((*f.text)[:maxText]), "")
			x.Truncated = append(x.Truncated, f.name)
		}
	}
}

// eventSize is the memory of an Event, without its texts and payload, in bytes.
const eventSize = 512

func (x *Event) size() int {
	return eventSize + len(x.ClientID) + len(x.User) + len(x.Topic) + len(x.MountedTopic) +
		len(x.Value) + len(x.Error) + len(x.Payload) + len(x.Receipt)
}

// peer returns the peer that x is about, for its share of the queue.
func (x *Event) peer() string {
	if x.RemoteIP != "" {
		return x.RemoteIP
	}
	return "client " + x.ClientID
}

// eventNames are the names in the order of the Observer's fields.
var eventNames = []string{
	"connected", "refused", "disconnected", "session_ended", "subscribed", "unsubscribed", "denied",
	"revoked", "banned", "panicked",
	"store_failed", "store_recovered", "published", "delivered", "acknowledged", "dropped",
	"settled",
}

// wants says whether an event is to be sent.
func (e *Events) wants(name string) bool {
	if len(e.o.Only) > 0 {
		return slices.Contains(e.o.Only, name)
	}
	return slices.Index(eventNames, name) < slices.Index(eventNames, "published")
}

// Observer returns an Observer that sends the broker's events with e. Its fields for unwanted
// events are nil.
func (e *Events) Observer() *hooks.Observer {
	o := e.everything()
	for name, field := range map[string]func(){
		"connected": func() {
			o.Connected = nil
		}, "refused": func() { o.Refused = nil }, "disconnected": func() { o.Disconnected = nil },
		"session_ended": func() { o.SessionEnded = nil },
		"subscribed":    func() { o.Subscribed = nil },
		"unsubscribed":  func() { o.Unsubscribed = nil }, "denied": func() { o.Denied = nil },
		"revoked": func() {
			o.Revoked = nil
		}, "banned": func() { o.Banned = nil }, "panicked": func() { o.Panicked = nil },
		"store_failed": func() {
			o.StoreFailed = nil
		}, "store_recovered": func() { o.StoreRecovered = nil },
		"published": func() { o.Published = nil }, "delivered": func() { o.Delivered = nil },
		"acknowledged": func() { o.Acknowledged = nil }, "dropped": func() { o.Dropped = nil },
		"settled": func() { o.Settled = nil },
	} {
		if !e.wants(name) {
			field()
		}
	}
	return o
}

// lastYear is the last year that a time in JSON can have.
const lastYear = 9999

// everything returns an Observer of all events.
func (e *Events) everything() *hooks.Observer {
	return &hooks.Observer{
		Connected: func(h hooks.Connected) {
			x := of(h.Client, "connected")
			x.SessionPresent = h.SessionPresent
			e.add(x)
		},
		Refused: func(h hooks.Refused) { e.ended(of(h.Client, "refused"), h.Code, h.Err) },
		Disconnected: func(h hooks.Disconnected) {
			e.ended(of(h.Client, "disconnected"), h.Code, h.Err)
		},
		SessionEnded: func(h hooks.SessionEnded) { e.add(of(h.Client, "session_ended")) },
		Subscribed: func(h hooks.Subscribed) {
			x := at(of(h.Client, "subscribed"), h.Filter, h.MountedFilter)
			x.QoS = &h.QoS
			e.add(x)
		},
		Unsubscribed: func(h hooks.Unsubscribed) {
			e.add(at(of(h.Client, "unsubscribed"), h.Filter, h.MountedFilter))
		},
		Denied: func(h hooks.Denied) {
			x := at(of(h.Client, "denied"), h.Topic, h.MountedTopic)
			x.Action, x.Error = h.Action.String(), message(h.Err)
			e.add(x)
		},
		Revoked: func(h hooks.Revoked) {
			x := at(of(h.Client, "revoked"), h.Filter, h.MountedFilter)
			x.Error = message(h.Err)
			e.add(x)
		},
		Banned: func(h hooks.Banned) {
			if h.Until.Year() > lastYear {
				h.Until = time.Date(lastYear, time.December, 31, 23, 59, 59, 0, time.UTC)
			}
			e.add(Event{Event: "banned", Kind: h.Kind.String(), Value: h.Value, Error: h.Reason,
				Until: h.Until})
		},
		Panicked: func(h hooks.Panicked) {
			x := of(h.Client, "panicked")
			x.Error = fmt.Sprint(h.Value)
			e.add(x)
		},
		StoreFailed: func(h hooks.StoreFailed) {
			e.add(Event{Event: "store_failed", Error: message(h.Err)})
		},
		StoreRecovered: func(hooks.StoreRecovered) { e.add(Event{Event: "store_recovered"}) },
		Published: func(h hooks.Published) {
			x := e.about(of(h.Client, "published"), h.Topic(), h.Message)
			x.Matched = &h.Matched
			e.add(x)
		},
		Delivered: func(h hooks.Delivered) {
			x := e.about(of(h.Client, "delivered"), h.Topic(), h.Message)
			x.QoS, x.PacketID = &h.QoS, h.PacketID
			e.add(x)
		},
		Acknowledged: func(h hooks.Acknowledged) {
			x := of(h.Client, "acknowledged")
			x.PacketID = h.PacketID
			e.add(x)
		},
		Dropped: func(h hooks.Dropped) {
			x := e.about(of(h.Client, "dropped"), h.Topic(), h.Message)
			x.Error = h.Reason.String()
			e.add(x)
		},
		Settled: func(h hooks.Settled) {
			x := of(h.Client, "settled")
			x.Receipt, x.QoS = h.Receipt, &h.QoS
			if h.Reason != 0 {
				x.Error = h.Reason.String()
			}
			e.add(x)
		},
	}
}

func (e *Events) ended(x Event, code packets.ReasonCode, err error) {
	x.ReasonCode, x.Error = &code, message(err)
	e.add(x)
}

// of begins an event about a client.
func of(c *hooks.Client, name string) Event {
	user, _ := c.User()
	return Event{Event: name, ClientID: c.ID, User: user, RemoteIP: remoteIP(c)}
}

// at adds a topic to an event.
func at(x Event, topic, mounted string) Event {
	if x.Topic = topic; mounted != topic {
		x.MountedTopic = mounted
	}
	return x
}

// about adds a message to an event, whose client knows it by that topic. The message is lent, and
// may be nil.
func (e *Events) about(x Event, topic string, m *packets.Message) Event {
	if m == nil {
		return x
	}
	x = at(x, topic, m.Topic)
	size, qos := len(m.Payload), m.QoS
	x.QoS, x.Retain, x.Size = &qos, m.Retain, &size
	if e.o.Payloads {
		x.Payload = bytes.Clone(m.Payload)
	}
	return x
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
