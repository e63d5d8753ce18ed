// Package presence publishes when clients connect and disconnect, and why.
//
//	seen := presence.New(presence.Options{})
//	config.Observer = seen.Observer() // or hooks.Join(seen.Observer(), another)
//	b, err := dunlin.New(config)
//	...
//	go seen.Run(ctx, b)
//
// By default each event is a message: to $SYS/broker/clients/ID/connected and
// $SYS/broker/clients/ID/disconnected. With Options.Retain there is one retained message for each
// client instead, at $SYS/broker/clients/ID. The payload is a JSON object with the fields of Event.
// Access rules should say who may read these topics. An empty retained message says that the broker
// has forgotten a client that has disconnected, see Options.MaxKept.
//
// ID is the Client Identifier, in which "%", "/", "+" and "#" are written as "%25", "%2F", "%2B"
// and "%23", and control characters likewise. The client field has the Client Identifier as it is.
//
// Retained messages can be wrong: a Store has kept them over a crash, or an event could not be
// published. Run corrects them. For a client that is not connected, though its retained message
// says so, it publishes an event "disconnected" with the Reason Code 0x80 and the time of the
// correction.
//
// The events of a client are in order. When one connection takes over from another, the event
// "disconnected" of the first comes before the event "connected" of the second.
package presence

import (
	"cmp"
	"container/list"
	"context"
	"encoding/json"
	"iter"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	defaultPrefix  = "$SYS/broker/clients"
	defaultKeep    = 24 * time.Hour
	defaultWaiting = 65536
	defaultKept    = 65536
	defaultBytes   = 64 << 20
	// patience is how long the event of a connection waits for the end of the one that it has taken
	// over: the broker gives a client a second to read its DISCONNECT.
	patience = 2 * time.Second
	// firstPause and lastPause are the shortest and the longest pause between two corrections of
	// the retained messages, if events were lost again meanwhile.
	firstPause, lastPause = time.Second, time.Minute
)

// Options are what New is given. The zero value is valid.
type Options struct {
	// Retain makes the broker keep the last event of each client, as the retained message of
	// Prefix/ID. Without it, events are messages to Prefix/ID/connected and Prefix/ID/disconnected,
	// and nothing is kept.
	Retain bool
	// Prefix is what the topics begin with. Empty: "$SYS/broker/clients". A Prefix that does not
	// begin with "$SYS/" is possible. Then clients may be able to publish there, and a broker with
	// a Store keeps what is retained over a restart.
	Prefix string
	// QoS is the QoS of the messages.
	QoS packets.QoS
	// Keep is how long the retained message of a client stays after the client has disconnected. It
	// is the Message Expiry Interval. Zero: 24 hours. Negative: for ever.
	Keep time.Duration
	// PerPrincipal is for brokers with Config.SessionPerPrincipal, where several clients may have
	// the same Client Identifier. The topics then have the user name behind ID, as a level of its
	// own. A token is replaced as hooks.ShownUser does.
	PerPrincipal bool
	// MaxWaiting is how many messages may wait to be published, and MaxWaitingBytes how much memory
	// they may take. Further ones are lost. Zero: 65,536, and 64 MiB. Negative: no such limit.
	MaxWaiting, MaxWaitingBytes int
	// MaxKept is how many retained messages there are of clients that have disconnected, and
	// MaxKeptBytes how much memory they take. Beyond that the broker forgets the client that
	// disconnected first: its retained message is cleared. Zero: 65,536, and 64 MiB. Negative: no
	// such limit. They matter only with Retain.
	MaxKept, MaxKeptBytes int
}

// An Event is the payload of a message, as JSON.
type Event struct {
	// State is "connected" or "disconnected".
	State string `json:"state"`
	// Client is the Client Identifier. User is the verified name of the client, or else its User
	// Name; empty if it has neither.
	Client string `json:"client"`
	User   string `json:"user,omitempty"`
	// Address is the address of the client, Listener the name of the listener that accepted it.
	Address  string `json:"address,omitempty"`
	Listener string `json:"listener,omitempty"`
	// Protocol is the version of MQTT. CleanStart and KeepAlive, in seconds, are what the client
	// asked for. SessionPresent says that it resumed a Session.
	Protocol       string `json:"protocol"`
	CleanStart     bool   `json:"clean_start"`
	KeepAlive      uint16 `json:"keep_alive"`
	SessionPresent bool   `json:"session_present"`
	// ConnectedAt is when the broker accepted the client.
	ConnectedAt time.Time `json:"connected_at"`

	// The rest is nil or empty in the event "connected". DisconnectedAt is when the connection
	// ended.
	DisconnectedAt *time.Time `json:"disconnected_at,omitempty"`
	// ReasonCode says why, as in a DISCONNECT of MQTT 5.0, and Reason is its name. 128,
	// "Unspecified error", is a connection that broke. Error has details.
	ReasonCode *byte  `json:"reason_code,omitempty"`
	Reason     string `json:"reason,omitempty"`
	Error      string `json:"error,omitempty"`
}

// A Presence turns the events of a broker into messages.
type Presence struct {
	options Options

	mu sync.Mutex
	// Guarded by mu.
	clients map[string]*client  // those that are connected, by key
	held    []held              // connections that wait for the end of another one, oldest first
	ready   []*message          // to be published
	latest  map[string]*message // those of ready by topic, with Retain
	bytes   int                 // of ready
	// Bytes of held
	heldBytes int
	lost      uint64 // messages
	doubtful  bool   // with Retain: a retained message may be wrong

	news chan struct{} // capacity 1: there is something in ready or held

	// Owned by Run.
	kept  kept
	again time.Time // repair does nothing before
	pause time.Duration
}

// A client is who is connected with one Client Identifier.
type client struct {
	current *connection   // its event "connected" is published
	waiting []*connection // that came later, oldest first
}

type connection struct {
	Event
	ended *Event // nil: it is open
}

// held is a connection whose event waits.
type held struct {
	key   string
	of    *connection
	until time.Time
}

type message struct {
	topic string
	Event
}

// New returns a Presence. Its events wait until Run is called.
func New(o Options) *Presence {
	o.Prefix = cmp.Or(o.Prefix, defaultPrefix)
	o.Keep = cmp.Or(o.Keep, defaultKeep)
	o.MaxWaiting = bound(o.MaxWaiting, defaultWaiting)
	o.MaxWaitingBytes = bound(o.MaxWaitingBytes, defaultBytes)
	return &Presence{
		options: o, clients: make(map[string]*client), latest: make(map[string]*message),
		news: make(chan struct{}, 1),
		kept: kept{most: bound(o.MaxKept, defaultKept),
			mostBytes: bound(o.MaxKeptBytes, defaultBytes), topics: make(map[string]*list.Element)},
	}
}

// bound is what a limit stands for.
func bound(limit, otherwise int) int {
	if limit < 0 {
		return math.MaxInt
	}
	return cmp.Or(limit, otherwise)
}

// Lost returns how many messages were not published: too many waited, or Publish returned an error.
// With Retain, Run still publishes the last event of each client later.
func (p *Presence) Lost() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// Observer returns the Observer for the Config of the broker.
func (p *Presence) Observer() *hooks.Observer {
	return &hooks.Observer{Connected: p.connected, Disconnected: p.disconnected}
}

func (p *Presence) connected(e hooks.Connected) {
	x := &connection{Event: about(e.Client)}
	x.State, x.ConnectedAt, x.SessionPresent = "connected", e.At, e.SessionPresent
	p.mu.Lock()
	defer p.mu.Unlock()
	key := p.key(&x.Event)
	c := p.clients[key]
	switch {
	case c == nil:
		p.clients[key] = &client{current: x}
		p.sayLocked(&x.Event)
	case x.ConnectedAt.Before(c.current.ConnectedAt): // it was taken over before it could be told of
	default:
		i, _ := slices.BinarySearchFunc(c.waiting, x, func(a, b *connection) int {
			return a.ConnectedAt.Compare(b.ConnectedAt)
		})
		c.waiting = slices.Insert(c.waiting, i, x)
		p.held = append(p.held, held{key, x, time.Now().Add(patience)})
		p.heldBytes += x.size()
		for len(p.held) > p.options.MaxWaiting || p.heldBytes > p.options.MaxWaitingBytes {
			p.releaseLocked(time.Now()) // before its time
		}
		p.signal()
	}
}

func (p *Presence) disconnected(e hooks.Disconnected) {
	now, code := time.Now(), byte(e.Code)
	gone := about(e.Client)
	gone.State, gone.ConnectedAt, gone.DisconnectedAt = "disconnected", e.ConnectedAt, &now
	gone.ReasonCode, gone.Reason = &code, e.Code.String()
	if code == 0 {
		gone.Reason = "Normal disconnection"
	}
	if e.Err != nil {
		gone.Error = cut(e.Err.Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := p.key(&gone)
	c := p.clients[key]
	if c == nil {
		return
	}
	for _, x := range append([]*connection{c.current}, c.waiting...) {
		if x.ConnectedAt.Equal(e.ConnectedAt) {
			gone.SessionPresent = x.SessionPresent
			x.ended = &gone
		}
	}
	p.advanceLocked(key, c)
}

// advanceLocked publishes what no connection of c is in the way of. p.mu is held.
func (p *Presence) advanceLocked(key string, c *client) {
	for c.current.ended != nil {
		p.sayLocked(c.current.ended)
		if len(c.waiting) == 0 {
			delete(p.clients, key)
			return
		}
		c.current, c.waiting = c.waiting[0], c.waiting[1:]
		p.sayLocked(&c.current.Event)
	}
}

// release publishes the events that have waited long enough, and returns when the next one has;
// zero: none waits.
func (p *Presence) release(now time.Time) (next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.held) > 0 {
		if h := &p.held[0]; h.until.After(now) && p.waitsLocked(h) {
			return h.until
		}
		p.releaseLocked(now)
	}
	return time.Time{}
}

// waitsLocked says whether the event of h waits still. p.mu is held.
func (p *Presence) waitsLocked(h *held) bool {
	c := p.clients[h.key]
	return c != nil && slices.Contains(c.waiting, h.of)
}

// releaseLocked publishes the event that has waited longest, and what has to come before it. p.mu
// is held.
func (p *Presence) releaseLocked(now time.Time) {
	h := p.held[0]
	p.held = p.held[1:]
	p.heldBytes -= h.of.size()
	for p.waitsLocked(&h) {
		c := p.clients[h.key]
		gone, code := c.current.Event, byte(packets.SessionTakenOver)
		gone.State, gone.DisconnectedAt = "disconnected", &now
		gone.ReasonCode, gone.Reason = &code, packets.SessionTakenOver.String()
		c.current.ended = cmp.Or(c.current.ended, &gone)
		p.advanceLocked(h.key, c)
	}
}

// topic is where e is published.
func (p *Presence) topic(e *Event) string {
	topic := p.options.Prefix + "/" + level(e.Client)
	if p.options.PerPrincipal {
		topic += "/" + level(e.User)
	}
	if !p.options.Retain {
		topic += "/" + e.State
	}
	return topic
}

// loseLocked notes that a message is not published. p.mu is held.
func (p *Presence) loseLocked() {
	p.lost++
	p.doubtful = p.options.Retain
}

// sayLocked has e published. p.mu is held.
func (p *Presence) sayLocked(e *Event) {
	topic := p.topic(e)
	m, grown := p.latest[topic], 0 // not nil with Retain, if nobody has seen it yet
	if m != nil {
		grown = e.size() - m.size()
	} else {
		grown = len(topic) + e.size()
	}
	if m == nil && len(p.ready) >= p.options.MaxWaiting ||
		grown > 0 && grown > p.options.MaxWaitingBytes-p.bytes {
		p.loseLocked()
		return
	}
	p.bytes += grown
	if m != nil {
		m.Event = *e
		return
	}
	m = &message{topic, *e}
	p.ready = append(p.ready, m)
	if p.options.Retain {
		p.latest[topic] = m
	}
	p.signal()
}

func (p *Presence) signal() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// A Broker has the methods of a *dunlin.Broker that Run calls.
type Broker interface {
	Publish(ctx context.Context, m *packets.Message) error
	Retained(filter string) iter.Seq[*packets.Message]
}

// A Func is a Broker that retains nothing. It is for a program that wants the events for itself,
// without Options.Retain: Run calls the function for each of them.
type Func func(ctx context.Context, m *packets.Message) error

// Publish calls f.
func (f Func) Publish(ctx context.Context, m *packets.Message) error { return f(ctx, m) }

// Retained yields nothing.
func (f Func) Retained(string) iter.Seq[*packets.Message] {
	return func(func(*packets.Message) bool) {}
}

// Run publishes until ctx ends, and returns the cause of ctx. Call it once at a time. Only the
// goroutine that calls Run calls b.
func (p *Presence) Run(ctx context.Context, b Broker) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	p.mu.Lock()
	p.doubtful = p.options.Retain // a Store may have kept what was true before a crash
	p.mu.Unlock()
	for {
		for m := p.take(); m != nil; m = p.take() {
			if p.publish(ctx, b.Publish, m) != nil {
				p.mu.Lock()
				p.loseLocked()
				p.mu.Unlock()
			}
		}
		now := time.Now()
		next := p.release(now)
		repaired, again := p.repair(b, now)
		if repaired {
			continue // there may be something to publish
		}
		if next.IsZero() || !again.IsZero() && again.Before(next) {
			next = again
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.news:
		case <-timer.C:
		}
	}
}

// publish publishes m with send, and clears the retained messages that there is no room for then.
func (p *Presence) publish(
	ctx context.Context, send func(context.Context, *packets.Message) error, m *message,
) error {
	out := &packets.Message{Topic: m.topic, QoS: p.options.QoS, Retain: p.options.Retain}
	out.Payload, _ = json.Marshal(m.Event) // has only types that JSON knows
	out.SetContentType("application/json")
	gone := p.options.Retain && m.State == "disconnected"
	if gone && p.options.Keep > 0 {
		out.SetExpiry(p.options.Keep)
	}
	if err := send(ctx, out); err != nil || !p.options.Retain {
		return err
	}
	now := time.Now()
	if p.kept.forget(m.topic); gone {
		p.kept.add(out, now)
	}
	for topic := p.kept.surplus(now, p.options.Keep); topic != ""; {
		empty := &packets.Message{Topic: topic, QoS: p.options.QoS, Retain: true}
		if err := send(ctx, empty); err != nil {
			return err // it is tried again behind the next message
		}
		p.kept.forget(topic)
		topic = p.kept.surplus(now, p.options.Keep)
	}
	return nil
}

// take returns the next message, nil if there is none.
func (p *Presence) take() *message {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 {
		return nil
	}
	m := p.ready[0]
	p.ready = p.ready[1:]
	p.bytes -= len(m.topic) + m.size()
	delete(p.latest, m.topic)
	return m
}

// key is the key of the client of e in Presence.clients.
func (p *Presence) key(e *Event) string {
	if p.options.PerPrincipal {
		return e.Client + "\x00" + e.User
	}
	return e.Client
}

// about returns an Event with what is known of a client.
func about(c *hooks.Client) Event {
	e := Event{
		Client: c.ID, Protocol: c.Version.String(), CleanStart: c.CleanStart, KeepAlive: c.KeepAlive,
	}
	e.User, _ = c.User()
	e.User = hooks.ShownUser(e.User)
	if c.RemoteAddr != nil {
		e.Address = c.RemoteAddr.String()
	}
	if c.Listener != nil {
		e.Listener = c.Listener.Name
	}
	return e
}

// size is about how much memory e takes.
func (e *Event) size() int {
	return 512 + len(e.Client) + len(e.User) + len(e.Address) + len(e.Listener) + len(e.Error)
}

// cut returns at most 256 bytes of the text of an error.
func cut(s string) string { return strings.ToValidUTF8(s[:min(len(s), 256)], "") }

// level makes a level of a Topic Name of a text.
func level(s string) string {
	const hex = "0123456789ABCDEF"
	if !strings.ContainsFunc(s, reserved) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r < 0x80 && reserved(r) {
			b.WriteByte('%')
			b.WriteByte(hex[r>>4])
			b.WriteByte(hex[r&15])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func reserved(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune("%/+#", r) }
