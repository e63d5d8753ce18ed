package packets

import (
	"bytes"
	"math"
	"slices"
	"time"
)

// A Message is an Application Message as a publisher sends it and subscribers receive it, without
// the details of delivery. It is immutable once it has been given to a broker: neither the
// publisher nor a receiver may change it or the contents of its slices.
type Message struct {
	Topic   string // the Topic Name; must not be empty
	Payload []byte // may be empty
	// Properties travel with the message from publisher to subscriber: Payload Format Indicator,
	// Message Expiry Interval, Content Type, Response Topic, Correlation Data and User Property
	// (3.3.2.3). Nil: none.
	Properties Properties
	QoS        QoS  // as published
	Retain     bool // as published
}

// Clone returns a copy of m with a Payload and Properties of its own. A function that gets a
// Message for the time of a call keeps a Clone. The Clone of nil is nil.
func (m *Message) Clone() *Message {
	if m == nil {
		return nil
	}
	c := *m
	c.Payload, c.Properties = bytes.Clone(m.Payload), bytes.Clone(m.Properties)
	return &c
}

// ContentType returns the Content Type (3.3.2.3.9), or "" if there is none.
func (m *Message) ContentType() string {
	s, _ := m.Properties.Text(ContentType)
	return s
}

// ResponseTopic returns the Response Topic (3.3.2.3.5), or "" if the message is not a request.
func (m *Message) ResponseTopic() string {
	s, _ := m.Properties.Text(ResponseTopic)
	return s
}

// CorrelationData returns the Correlation Data (3.3.2.3.6), or nil. It must not be modified.
func (m *Message) CorrelationData() []byte {
	b, _ := m.Properties.Bytes(CorrelationData)
	return b
}

// Expiry returns the Message Expiry Interval (3.3.2.3.3), which counts from the moment the server
// received the message. ok is false if the message never expires.
func (m *Message) Expiry() (d time.Duration, ok bool) {
	n, ok := m.Properties.Uint(MessageExpiryInterval)
	return time.Duration(n) * time.Second, ok
}

// SetContentType sets the Content Type (3.3.2.3.9). An empty s removes it.
//
// This setter and the others give the Message new Properties. The ones that it had, which other
// Messages may share, stay as they are. No setter panics: a value of more than 65,535 bytes makes
// the Properties unusable (see Properties), and publishing the Message returns an error.
func (m *Message) SetContentType(s string) { setField(m, ContentType, s) }

// SetResponseTopic sets the Response Topic (3.3.2.3.5), which makes the Message a request. An empty
// topic removes it.
func (m *Message) SetResponseTopic(topic string) { setField(m, ResponseTopic, topic) }

// SetCorrelationData sets the Correlation Data (3.3.2.3.6), and copies b. An empty b removes it.
func (m *Message) SetCorrelationData(b []byte) { setField(m, CorrelationData, b) }

// SetExpiry sets the Message Expiry Interval (3.3.2.3.3) to d, rounded up to whole seconds, or to
// the largest interval that there is, 136 years. If d is not positive, the Message never expires.
func (m *Message) SetExpiry(d time.Duration) {
	m.Properties = m.Properties.Without(nil, MessageExpiryInterval)
	if d > 0 {
		seconds := min((d-1)/time.Second+1, math.MaxUint32)
		m.Properties = m.Properties.AppendUint(MessageExpiryInterval, uint32(seconds))
	}
}

// AddUser adds a User Property (3.3.2.3.7). Names may occur more than once. The method User of
// Properties yields all of them.
func (m *Message) AddUser(name, value string) {
	m.Properties = slices.Clip(m.Properties).AppendUser(name, value)
}

func setField[T text](m *Message, id Property, s T) {
	m.Properties = m.Properties.Without(nil, id)
	if len(s) > 0 {
		m.Properties = appendBytes(m.Properties, id, s)
	}
}
