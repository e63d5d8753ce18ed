package packets

import "time"

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
