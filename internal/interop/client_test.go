package interop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// patience is how long anything may take that must happen. It is long, since machines are slow;
// nothing waits it out that works.
const patience = 15 * time.Second

// A version of the protocol, by the number that CONNECT carries.
type version byte

const (
	v31  version = 3
	v311 version = 4
	v5   version = 5
)

func (v version) String() string {
	return map[version]string{v31: "3.1", v311: "3.1.1", v5: "5.0"}[v]
}

// A program is one implementation of clients.
type program interface {
	// name is how the implementation calls itself.
	name() string
	// versions lists what it speaks.
	versions() []version
	// can says whether it offers f in v.
	can(f feature, v version) bool
	// prepare makes the program ready. Its error says what is missing on this machine.
	prepare() error
	// dial connects a client to 127.0.0.1:o.port. What the client then receives goes to in.
	dial(ctx context.Context, o options, in *inbox) (client, error)
	// close ends what prepare started.
	close()
}

// A client is one client that has been connected.
type client interface {
	// session says whether CONNACK had Session Present set. known is false for programs that do not
	// tell.
	session() (present, known bool)
	// subscribe returns the Reason Codes of SUBACK.
	subscribe(ctx context.Context, s ...subscription) ([]byte, error)
	// unsubscribe returns the Reason Codes of UNSUBACK, none before 5.0.
	unsubscribe(ctx context.Context, filters ...string) ([]byte, error)
	// publish sends messages in order and returns when all of them have been acknowledged as their
	// QoS demands.
	publish(ctx context.Context, m ...message) error
	// disconnect sends DISCONNECT and closes the Network Connection.
	disconnect(ctx context.Context) error
	// kill frees what the client holds, in whatever state it is. The scenario has ended.
	kill()
}

// A requester is a client with its own way to send a request and await the response.
type requester interface {
	request(ctx context.Context, request message) (message, error)
}

// A feature is something that not every program offers.
type feature string

const (
	canAwaitLoss     feature = "notices a lost connection" // and does not just end
	canTellReason    feature = "tells the Reason Code of the broker's DISCONNECT"
	canReconnect     feature = "reconnects by itself"
	canUnsubscribe   feature = "unsubscribes"
	canKeepAlive     feature = "has a Keep Alive of a few seconds"
	canRequest       feature = "has a request command of its own"
	canSendAlias     feature = "sends Topic Aliases"
	canReceiveAlias  feature = "receives Topic Aliases"
	canSubscribeWith feature = "sets subscription options"
	canSubscribeID   feature = "tells Subscription Identifiers"
)

// options are those of a connection.
type options struct {
	version   version
	port      int
	clientID  string
	resume    bool          // Clean Session or Clean Start is 0
	expiry    uint32        // Session Expiry Interval in seconds, 5.0
	keepAlive uint16        // in seconds
	will      *message      // nil for none
	willDelay uint32        // in seconds, 5.0
	reconnect bool          // come back when the connection is lost
	aliases   uint16        // Topic Alias Maximum, 5.0
	tap       *tap          // what port belongs to
	extraTap  func() *tap   // for programs that publish on a Network Connection of its own
	log       func(...any)  // for what the program prints
	patience  time.Duration // for one step
}

// A subscription is one entry of SUBSCRIBE.
type subscription struct {
	filter            string
	qos               byte
	noLocal           bool
	retainAsPublished bool
	retainHandling    byte
	identifier        int // of the whole SUBSCRIBE packet
}

// A message is an Application Message, as a client sends or receives it.
type message struct {
	topic       string
	payload     string
	qos         byte
	retain      bool
	user        [][2]string
	contentType string
	response    string
	correlation string
	expiry      uint32 // seconds, 0 for none
	// sent with: the Topic Name goes along only with the first message of a publish call
	alias       uint16
	identifiers []int // of the subscriptions, received with
}

// String describes everything that a receiver must see unchanged: all but expiry, which counts
// down, and alias.
func (m message) String() string {
	payload := fmt.Sprintf("%q", m.payload)
	if len(m.payload) > 100 {
		payload = fmt.Sprintf("%d bytes (sha256 %.8x)", len(m.payload),
			sha256.Sum256([]byte(m.payload)))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s qos=%d %s", m.topic, m.qos, payload)
	if m.retain {
		b.WriteString(" RETAIN")
	}
	for _, u := range m.user {
		fmt.Fprintf(&b, " user(%s=%s)", u[0], u[1])
	}
	for _, p := range [][2]string{{"content type", m.contentType}, {"response topic", m.response},
		{"correlation data", m.correlation}} {
		if p[1] != "" {
			fmt.Fprintf(&b, " %s=%q", p[0], p[1])
		}
	}
	if len(m.identifiers) > 0 {
		fmt.Fprintf(&b, " subscription identifiers=%v", m.identifiers)
	}
	return b.String()
}

// An inbox gathers what happens to a client.
type inbox struct {
	mu       sync.Mutex
	messages []message // guarded by mu: received and not taken
	// guarded by mu: Reason Code of the broker's DISCONNECT, -1 if the client tells none
	code    int
	lost    int           // guarded by mu: how often the connection was lost
	up      int           // guarded by mu: how often it was made
	changed chan struct{} // guarded by mu: closed, and made anew, at each change
}

func newInbox() *inbox { return &inbox{code: -1, changed: make(chan struct{})} }

func (b *inbox) note(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	close(b.changed)
	b.changed = make(chan struct{})
}

// received notes a message.
func (b *inbox) received(m message) { b.note(func() { b.messages = append(b.messages, m) }) }

// connected notes that a connection was made.
func (b *inbox) connected() { b.note(func() { b.up++ }) }

// disconnected notes that the broker sent a DISCONNECT, as far as the client tells.
func (b *inbox) disconnected(code int) { b.note(func() { b.code = code }) }

// closed notes that the connection was lost.
func (b *inbox) closed() { b.note(func() { b.lost++ }) }

// await waits until cond, which runs under the inbox's lock, is true; it is false if that is not so
// after d.
func (b *inbox) await(d time.Duration, cond func() bool) bool {
	timeout := time.After(d)
	for {
		b.mu.Lock()
		ok, changed := cond(), b.changed
		b.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-timeout:
			return false
		}
	}
}

// take waits for n messages and removes them. If fewer come it gives those.
func (b *inbox) take(n int, d time.Duration) []message {
	b.await(d, func() bool { return len(b.messages) >= n })
	b.mu.Lock()
	defer b.mu.Unlock()
	n = min(n, len(b.messages))
	taken := append([]message(nil), b.messages[:n]...)
	b.messages = b.messages[n:]
	return taken
}

var errNotOffered = errors.New("this program does not offer that")
