package webhook

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// EventOptions are which events are sent, and how.
type EventOptions struct {
	// URL is where they go. Required.
	URL string
	// Client makes the requests. Nil: one that follows no redirects.
	Client *http.Client
	// Header is added to the requests. It must not be modified afterwards.
	Header http.Header
	// Secret signs the requests. Empty: they are not signed.
	Secret []byte
	// Timeout is how long one attempt may take. Zero: 5 s.
	Timeout time.Duration
	// Only are the names of the events to send. Empty: all but those about single messages, which are published, delivered, acknowledged
	// and dropped.
	Only []string
	// Payloads sends the payloads of messages, too.
	Payloads bool
	// Batch is the most events in one request, Interval how long one may wait for others. Zero: 100 and 1 s.
	Batch    int
	Interval time.Duration
	// Queue is how many events may wait, those of the request under way not counted. Further ones are dropped. Zero: 10,000.
	Queue int
	// Attempts is how often a request is made before its events are dropped, RetryMin the pause after the first, which doubles up to
	// RetryMax, each shortened by up to a half at random. Zero: 10, 500 ms and 30 s.
	Attempts           int
	RetryMin, RetryMax time.Duration
	// Logger is told of events that are dropped because the server would not have them. Nil: slog.Default().
	Logger *slog.Logger
}

// An Event is one thing that happened, as it is sent. Which fields there are depends on Event:
//
//	connected, refused, disconnected, subscribed, unsubscribed, denied, revoked, published, panicked   the client's, and
//	connected                     session_present
//	refused, disconnected         reason_code, and error if there was one
//	subscribed, unsubscribed      topic, which is a Topic Filter; qos
//	denied                        action, topic, error
//	revoked                       topic, error
//	published                     the message's, and matched: how many sessions it went to
//	panicked                      error
//	session_ended                 client_id
//	store_failed                  error
//	store_recovered               nothing more
//	banned                        kind, value, error, which is why, and until, missing if the ban does not end by itself
//	delivered                     client_id, the message's
//	acknowledged                  client_id, packet_id
//	dropped                       client_id, error, and the message's if it is known
//
// The client's are client_id, user and remote_ip; the message's topic, qos, retain, size and payload.
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
	QoS            *packets.QoS        `json:"qos,omitempty"`
	Retain         bool                `json:"retain,omitempty"`
	Size           *int                `json:"size,omitempty"` // of the payload, in bytes
	Payload        []byte              `json:"payload,omitempty"`
	Matched        *int                `json:"matched,omitempty"`
	PacketID       uint16              `json:"packet_id,omitempty"`
	Kind           string              `json:"kind,omitempty"`
	Value          string              `json:"value,omitempty"`
	Until          time.Time           `json:"until,omitzero"`
}

// Events sends what happens to a server. Its Observer never waits: events go to a queue, and one goroutine sends them.
type Events struct {
	poster
	o       EventOptions
	queue   chan Event
	seq     atomic.Uint64
	dropped atomic.Uint64

	ctx     context.Context // ends when Close gives up
	cancel  context.CancelFunc
	closing chan struct{} // closed by Close
	done    chan struct{} // closed when the goroutine has ended

	mu     sync.RWMutex // held by add, so that nothing is queued after Close has begun
	closed bool         // guarded by mu
}

// NewEvents returns one that sends from now on until Close. It fails if the options make no sense.
func NewEvents(o EventOptions) (*Events, error) {
	for _, d := range []struct {
		of  *time.Duration
		def time.Duration
	}{{&o.Interval, time.Second}, {&o.RetryMin, 500 * time.Millisecond}, {&o.RetryMax, 30 * time.Second}} {
		if *d.of <= 0 {
			*d.of = d.def
		}
	}
	for _, n := range []struct {
		of  *int
		def int
	}{{&o.Batch, 100}, {&o.Queue, 10_000}, {&o.Attempts, 10}} {
		if *n.of <= 0 {
			*n.of = n.def
		}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	for _, name := range o.Only {
		if !slices.Contains(eventNames, name) {
			return nil, fmt.Errorf("webhook: EventOptions.Only: %q is none of %q", name, eventNames)
		}
	}
	e := &Events{
		poster:  poster{client: o.Client, url: o.URL, header: o.Header, secret: o.Secret, timeout: o.Timeout},
		o:       o,
		queue:   make(chan Event, o.Queue),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	go e.run() // Close waits for it
	return e, nil
}

// Dropped returns how many events the server has not got and will not get.
func (e *Events) Dropped() uint64 { return e.dropped.Load() }

// Close sends what is queued, and returns when that is done or ctx has ended, with an error in the latter case. Events that come
// after the beginning of Close are dropped. Further calls do the same.
func (e *Events) Close(ctx context.Context) error {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		close(e.closing)
	}
	e.mu.Unlock()
	defer e.client.CloseIdleConnections()
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
	}
	e.cancel()
	<-e.done
	return fmt.Errorf("webhook: %d events were not sent: %w", e.Dropped(), ctx.Err())
}

// add queues an event, if there is room.
func (e *Events) add(x Event) {
	x.Seq, x.Time = e.seq.Add(1), time.Now().UTC()
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		e.dropped.Add(1)
		return
	}
	select {
	case e.queue <- x:
	default:
		e.dropped.Add(1)
	}
}

// run sends until the queue is empty and Close has been called.
func (e *Events) run() {
	defer close(e.done)
	for {
		batch, more := e.gather()
		if len(batch) > 0 {
			e.send(batch)
		}
		if !more {
			return
		}
	}
}

// gather waits for a batch. more is false if it is the last.
func (e *Events) gather() (batch []Event, more bool) {
	var full <-chan time.Time
	for len(batch) < e.o.Batch {
		select {
		case x := <-e.queue:
			if batch = append(batch, x); full == nil {
				t := time.NewTimer(e.o.Interval)
				defer t.Stop()
				full = t.C
			}
		case <-full:
			return batch, true
		case <-e.closing:
			for len(batch) < e.o.Batch {
				select {
				case x := <-e.queue:
					batch = append(batch, x)
				default:
					return batch, false
				}
			}
		}
	}
	return batch, true
}

// send makes attempts at a request until the server has it.
func (e *Events) send(batch []Event) {
	delivery := rand.Text()
	pause := e.o.RetryMin
	for attempt := 1; ; attempt++ {
		err := e.attempt(batch, delivery)
		if err == nil {
			return
		}
		if _, never := err.(refused); never || attempt >= e.o.Attempts || e.ctx.Err() != nil {
			e.dropped.Add(uint64(len(batch)))
			e.o.Logger.Warn("webhook: events are dropped", "url", e.url, "events", len(batch), "attempts", attempt, "err", err)
			return
		}
		wait := time.NewTimer(pause/2 + mathrand.N(pause/2+1))
		select {
		case <-wait.C:
		case <-e.ctx.Done():
			wait.Stop()
		}
		pause = min(2*pause, e.o.RetryMax)
	}
}

// refused is the error of a status that will not become another one.
type refused int

func (r refused) Error() string { return fmt.Sprintf("status %d", int(r)) }

func (e *Events) attempt(batch []Event, delivery string) error {
	body, err := json.Marshal(struct {
		Sent    time.Time `json:"sent"`
		Dropped uint64    `json:"dropped"`
		Events  []Event   `json:"events"`
	}{time.Now().UTC(), e.Dropped(), batch})
	if err != nil {
		return err
	}
	status, _, err := e.post(e.ctx, body, delivery)
	switch {
	case err != nil && status == 0:
		return err
	case status >= 200 && status < 300:
		return nil
	case retry(status):
		return fmt.Errorf("status %d", status)
	}
	return refused(status)
}

// eventNames are the names in the order of the Observer's fields.
var eventNames = []string{
	"connected", "refused", "disconnected", "session_ended", "subscribed", "unsubscribed", "denied", "revoked", "banned", "panicked",
	"store_failed", "store_recovered", "published", "delivered", "acknowledged", "dropped",
}

// wants says whether an event is to be sent.
func (e *Events) wants(name string) bool {
	if len(e.o.Only) > 0 {
		return slices.Contains(e.o.Only, name)
	}
	return slices.Index(eventNames, name) < slices.Index(eventNames, "published")
}

// Observer returns what tells the broker's events to e. Of those that are not wanted the fields are nil.
func (e *Events) Observer() *hooks.Observer {
	o := e.everything()
	for name, field := range map[string]func(){
		"connected": func() { o.Connected = nil }, "refused": func() { o.Refused = nil }, "disconnected": func() { o.Disconnected = nil },
		"session_ended": func() { o.SessionEnded = nil }, "subscribed": func() { o.Subscribed = nil },
		"unsubscribed": func() { o.Unsubscribed = nil }, "denied": func() { o.Denied = nil },
		"revoked": func() { o.Revoked = nil }, "banned": func() { o.Banned = nil }, "panicked": func() { o.Panicked = nil },
		"store_failed": func() { o.StoreFailed = nil }, "store_recovered": func() { o.StoreRecovered = nil },
		"published": func() { o.Published = nil }, "delivered": func() { o.Delivered = nil },
		"acknowledged": func() { o.Acknowledged = nil }, "dropped": func() { o.Dropped = nil },
	} {
		if !e.wants(name) {
			field()
		}
	}
	return o
}

// lastYear is the last one that a time in JSON can have.
const lastYear = 9999

// everything returns an Observer of all events.
func (e *Events) everything() *hooks.Observer {
	return &hooks.Observer{
		Connected: func(c *hooks.Client, present bool) {
			x := of(c, "connected")
			x.SessionPresent = present
			e.add(x)
		},
		Refused:      e.ended("refused"),
		Disconnected: e.ended("disconnected"),
		SessionEnded: func(id string) { e.add(Event{Event: "session_ended", ClientID: id}) },
		Subscribed: func(c *hooks.Client, filter string, qos packets.QoS) {
			x := of(c, "subscribed")
			x.Topic, x.QoS = filter, &qos
			e.add(x)
		},
		Unsubscribed: func(c *hooks.Client, filter string) {
			x := of(c, "unsubscribed")
			x.Topic = filter
			e.add(x)
		},
		Denied: func(c *hooks.Client, action hooks.Action, topic string, err error) {
			x := of(c, "denied")
			x.Action, x.Topic, x.Error = action.String(), topic, message(err)
			e.add(x)
		},
		Revoked: func(c *hooks.Client, filter string, err error) {
			x := of(c, "revoked")
			x.Topic, x.Error = filter, message(err)
			e.add(x)
		},
		Banned: func(kind, value, why string, until time.Time) {
			if until.Year() > lastYear {
				until = time.Date(lastYear, time.December, 31, 23, 59, 59, 0, time.UTC)
			}
			e.add(Event{Event: "banned", Kind: kind, Value: value, Error: why, Until: until})
		},
		Panicked: func(c *hooks.Client, value any) {
			x := of(c, "panicked")
			x.Error = fmt.Sprint(value)
			e.add(x)
		},
		StoreFailed:    func(err error) { e.add(Event{Event: "store_failed", Error: message(err)}) },
		StoreRecovered: func() { e.add(Event{Event: "store_recovered"}) },
		Published: func(c *hooks.Client, m *packets.Message, matched int) {
			x := e.about(of(c, "published"), m)
			x.Matched = &matched
			e.add(x)
		},
		Delivered: func(id string, m *packets.Message) { e.add(e.about(Event{Event: "delivered", ClientID: id}, m)) },
		Acknowledged: func(id string, packetID uint16) {
			e.add(Event{Event: "acknowledged", ClientID: id, PacketID: packetID})
		},
		Dropped: func(id string, m *packets.Message, why hooks.DropReason) {
			e.add(e.about(Event{Event: "dropped", ClientID: id, Error: why.String()}, m))
		},
	}
}

func (e *Events) ended(name string) func(*hooks.Client, packets.ReasonCode, error) {
	return func(c *hooks.Client, code packets.ReasonCode, err error) {
		x := of(c, name)
		x.ReasonCode, x.Error = &code, message(err)
		e.add(x)
	}
}

// of begins an event of a client, nil for one of the host program.
func of(c *hooks.Client, name string) Event {
	x := Event{Event: name}
	if c != nil {
		x.ClientID, x.RemoteIP = c.ID, remoteIP(c)
		x.User, _ = c.User()
	}
	return x
}

// about adds a message, which is immutable, and may be nil.
func (e *Events) about(x Event, m *packets.Message) Event {
	if m == nil {
		return x
	}
	size, qos := len(m.Payload), m.QoS
	x.Topic, x.QoS, x.Retain, x.Size = m.Topic, &qos, m.Retain, &size
	if e.o.Payloads {
		x.Payload = m.Payload
	}
	return x
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
