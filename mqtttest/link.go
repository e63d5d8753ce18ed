package mqtttest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	maxLinks = 200     // connections whose packets are remembered
	maxTrace = 200     // packets that are remembered of one connection
	maxWhole = 2 << 20 // a larger packet passes without being looked at
)

// A Direction is one of the two ways a packet can go.
type Direction byte

const (
	// FromClient: from the client to the broker.
	FromClient Direction = iota
	// ToClient: from the broker to the client.
	ToClient
)

// String returns "from client" or "to client".
func (d Direction) String() string {
	if d == ToClient {
		return "to client"
	}
	return "from client"
}

// A link is the broker's end of a connection. It is a net.Conn that splits the stream into packets,
// records them, and applies the injected faults.
type link struct {
	// Immutable.
	b   *Broker
	nc  net.Conn
	via net.Listener
	num int

	done   chan struct{} // closed when the link is
	finish sync.Once
	dirs   [2]way

	// Guarded by mu, which is below Broker.mu.
	mu       sync.Mutex
	id       string
	version  packets.Version
	trace    []string
	dropped  int                // lines that trace no longer has
	refuse   packets.ReasonCode // what Refuse wants
	faulted  bool
	expected bool          // a Client has seen the end
	ended    bool          // ServeConn has returned
	err      error         // with this
	heard    bool          // something has come
	span     time.Duration // what was left of the write deadline when it was set
}

// A way is one direction of a link. It is owned by the goroutine that reads, or by the one that
// writes.
type way struct {
	in       []byte // has come and is not looked at
	out      []byte // may go on
	pass     int    // bytes of a large packet that pass as they come
	broken   bool   // the stream cannot be followed any more
	held     []byte // a packet that is late
	until    time.Time
	deadline deadline
}

func newLink(b *Broker, nc net.Conn, via net.Listener, num int) *link {
	k := &link{b: b, nc: nc, via: via, num: num, done: make(chan struct{}), version: packets.V311}
	return k
}

type linkKey struct{}

// serve gives the link to the broker.
func (k *link) serve(core *dunlin.Broker) {
	var nc net.Conn = k
	if x, ok := k.nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		nc = &tlsLink{k, x}
	}
	err := core.ServeConn(context.WithValue(context.Background(), linkKey{}, k), nc)
	k.Close()
	k.note("# ended: %v", reasonOf(err))
	k.mu.Lock()
	k.ended, k.err = true, err
	k.mu.Unlock()
	k.b.mu.Lock()
	k.b.notify()
	k.b.mu.Unlock()
}

func reasonOf(err error) any {
	if err == nil {
		return "the client disconnected"
	}
	return err
}

// refusal returns the Reason Code of the fault Refuse for the connection of a hook's context.
func refusal(ctx context.Context) error {
	k, ok := ctx.Value(linkKey{}).(*link)
	if !ok {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse == 0 {
		return nil
	}
	return packets.Errorf(k.refuse, "refused by a fault of the test")
}

// blamed are the Reason Codes that only an error of the client can cause.
var blamed = map[packets.ReasonCode]bool{
	packets.MalformedPacket: true, packets.ProtocolError: true,
	packets.ReceiveMaximumExceeded: true, packets.TopicAliasInvalid: true,
	packets.PacketTooLarge: true, packets.TopicNameInvalid: true, packets.TopicFilterInvalid: true,
	packets.PayloadFormatInvalid: true,
	packets.RetainNotSupported:   true, packets.QoSNotSupported: true,
	packets.SharedSubscriptionsNotSupported:     true,
	packets.SubscriptionIdentifiersNotSupported: true,
	packets.WildcardSubscriptionsNotSupported:   true,
}

// failure returns a text if the client broke the protocol and the test has not checked that. It
// returns the text once.
func (k *link) failure() string {
	k.mu.Lock()
	var pe *packets.Error
	bad := k.ended && !k.expected && !k.faulted && k.heard && errors.As(k.err, &pe) &&
		blamed[pe.Code]
	k.expected = k.expected || bad
	k.mu.Unlock()
	if !bad {
		return ""
	}
	return fmt.Sprintf("a client broke the protocol: %v\n%s", k.err, k.String())
}

// note writes a line into the trace.
func (k *link) note(format string, args ...any) {
	line := fmt.Sprintf("%10.3fs  ", time.Since(k.b.started).Seconds()) + fmt.Sprintf(format,
		args...)
	k.mu.Lock()
	if len(k.trace) == maxTrace {
		k.trace = append(k.trace[:0], k.trace[1:]...)
		k.dropped++
	}
	k.trace = append(k.trace, line)
	id := k.id
	k.mu.Unlock()
	if k.b.o.verbose {
		k.b.t.Logf("connection %d %q %s", k.num, id, line)
	}
}

// String returns the packets of the connection, one a line.
func (k *link) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var s strings.Builder
	fmt.Fprintf(&s, "connection %d, client %q, from %v by listener %v", k.num, k.id,
		k.nc.RemoteAddr(), k.via.Addr())
	if !k.ended {
		s.WriteString(", open")
	}
	s.WriteString(":\n")
	if k.dropped > 0 {
		fmt.Fprintf(&s, "  (%d earlier lines)\n", k.dropped)
	}
	for _, l := range k.trace {
		s.WriteString("  " + l + "\n")
	}
	return s.String()
}

// Read returns what the client has sent and the faults let pass.
func (k *link) Read(p []byte) (int, error) {
	w := &k.dirs[FromClient]
	for {
		if err := k.gate(FromClient); err != nil {
			return 0, err
		}
		if len(w.out) > 0 {
			n := copy(p, w.out)
			w.out = w.out[n:]
			return n, nil
		}
		if len(p) == 0 {
			return 0, nil
		}
		more, err := k.step(FromClient)
		if err != nil {
			return 0, err
		}
		if more {
			continue
		}
		var b [4096]byte
		n, err := k.nc.Read(b[:])
		if n > 0 {
			w.in = append(w.in, b[:n]...)
			k.mu.Lock()
			k.heard = true
			k.mu.Unlock()
		} else if err != nil {
			if len(w.in) > 0 && !errors.Is(err,
				os.ErrDeadlineExceeded) { // the beginning of a packet that will not end
				w.out, w.in = append(w.out, w.in...), nil
				continue
			}
			if err == io.EOF {
				k.note("> # the client closed the connection")
			}
			return 0, err
		}
	}
}

// Write sends to the client what the broker writes and the faults let pass.
func (k *link) Write(p []byte) (int, error) {
	w := &k.dirs[ToClient]
	w.in = append(w.in, p...)
	for {
		if err := k.gate(ToClient); err != nil {
			return 0, err
		}
		for len(w.out) > 0 {
			n, err := k.nc.Write(w.out)
			w.out = w.out[n:]
			if err != nil && !(n > 0 && errors.Is(err, os.ErrDeadlineExceeded) && k.extend()) {
				return 0, err
			}
		}
		more, err := k.step(ToClient)
		if err != nil {
			return 0, err
		}
		if !more && len(w.out) == 0 {
			return len(p), nil
		}
	}
}

// step moves the next packet from w.in to w.out, and applies the faults. It returns false if there
// is no whole packet.
func (k *link) step(d Direction) (more bool, err error) {
	w := &k.dirs[d]
	switch {
	case w.held != nil:
		if err := k.waitUntil(d, w.until); err != nil {
			return false, err
		}
		held := w.held
		w.held = nil
		return true, k.release(d, held)
	case len(w.in) == 0:
		return false, nil
	case w.broken, w.pass > 0:
		n := len(w.in)
		if !w.broken {
			n = min(n, w.pass)
			w.pass -= n
		}
		part := w.in[:n:n]
		w.in = w.in[n:]
		return true, k.release(d, part)
	}
	h, err := packets.ParseHeader(w.in, k.wireVersion())
	switch n := h.Len + h.Remaining; {
	case err == packets.ErrShort:
		return false, nil
	case err != nil:
		w.broken = true
		k.note("%s # no packet: %v", d.arrow(), err)
		return true, nil
	case n > maxWhole:
		w.pass = n
		k.note("%s %v of %d bytes", d.arrow(), h.Type, n)
		return true, nil
	case n > len(w.in):
		return false, nil
	default:
		whole := w.in[:n:n]
		w.in = w.in[n:]
		return true, k.packet(d, h, whole)
	}
}

func (d Direction) arrow() string {
	if d == ToClient {
		return "<"
	}
	return ">"
}

// wireVersion is the protocol version for decoding packets.
func (k *link) wireVersion() packets.Version {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.version
}

// packet applies the faults to one packet.
func (k *link) packet(d Direction, h packets.Header, whole []byte) error {
	v := k.wireVersion()
	if h.Type == packets.TypeConnect {
		v = 0
	}
	line := fmt.Sprintf("%v of %d bytes", h.Type, len(whole))
	p, _, err := packets.Decode(whole, v, packets.Limits{})
	if err != nil {
		line += fmt.Sprintf(", not valid: %v", err)
	} else {
		line = packets.Trace(p)
		k.learn(d, p)
	}
	do := k.b.faultsFor(k, d, h.Type)
	k.note("%s %s%s", d.arrow(), line, do)
	if do.forget {
		k.b.forget(k.client())
	}
	if do.drop {
		return nil
	}
	if do.duplicate {
		whole = append(whole[:len(whole):len(whole)], whole...)
	}
	if do.delay > 0 {
		w := &k.dirs[d]
		w.held, w.until = whole, time.Now().Add(do.delay)
		return nil
	}
	return k.release(d, whole)
}

// learn records which client the connection belongs to.
func (k *link) learn(d Direction, p packets.Packet) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch p := p.(type) {
	case *packets.Connect:
		k.id = p.ClientID
		if p.Version >= packets.V31 && p.Version <= packets.V5 {
			k.version = p.Version
		}
	case *packets.Connack:
		if id, ok := p.Properties.Text(packets.AssignedClientIdentifier); ok && d == ToClient {
			k.id = id
		}
	}
}

func (k *link) client() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.id
}

// release lets bytes pass, as many as the fault Cut allows, and then closes the connection.
func (k *link) release(d Direction, b []byte) error {
	w := &k.dirs[d]
	n, cut := k.b.allowance(k, d, len(b))
	w.out = append(w.out, b[:n]...)
	if !cut {
		return nil
	}
	if d == ToClient {
		k.nc.Write(w.out) // whatever of it arrives
		w.out = nil
	}
	k.note("%s # cut by a fault, %d bytes of the last packet passed", d.arrow(), n)
	k.nc.Close()
	if len(w.out) > 0 {
		return nil // the broker may still read these
	}
	return net.ErrClosed
}

// gate waits while the direction is stalled.
func (k *link) gate(d Direction) error {
	for {
		lifted := k.b.stalled(k, d)
		if lifted == nil {
			return nil
		}
		if err := k.wait(d, lifted, nil); err != nil {
			return err
		}
	}
}

// waitUntil waits until a point in time.
func (k *link) waitUntil(d Direction, at time.Time) error {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	return k.wait(d, nil, t.C)
}

// wait waits for one of two channels, at most until the deadline or the end of the link.
func (k *link) wait(d Direction, lifted <-chan struct{}, at <-chan time.Time) error {
	select {
	case <-k.done:
		return net.ErrClosed
	case <-k.dirs[d].deadline.passed():
		return os.ErrDeadlineExceeded
	case <-lifted:
	case <-at:
	}
	return nil
}

// Close closes the connection.
func (k *link) Close() error {
	k.finish.Do(func() {
		close(k.done)
		for i := range k.dirs {
			k.dirs[i].deadline.end()
		}
	})
	return k.nc.Close()
}

// CloseWrite closes the direction to the client, if the connection below can.
func (k *link) CloseWrite() error {
	if x, ok := k.nc.(interface{ CloseWrite() error }); ok {
		return x.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (k *link) LocalAddr() net.Addr  { return k.nc.LocalAddr() }
func (k *link) RemoteAddr() net.Addr { return k.nc.RemoteAddr() }

func (k *link) SetDeadline(t time.Time) error {
	return errors.Join(k.SetReadDeadline(t), k.SetWriteDeadline(t))
}

func (k *link) SetReadDeadline(t time.Time) error {
	k.dirs[FromClient].deadline.set(t)
	return k.nc.SetReadDeadline(t)
}

func (k *link) SetWriteDeadline(t time.Time) error {
	k.mu.Lock()
	k.span = time.Until(t)
	k.mu.Unlock()
	return k.setWriteDeadline(t)
}

func (k *link) setWriteDeadline(t time.Time) error {
	k.dirs[ToClient].deadline.set(t)
	return k.nc.SetWriteDeadline(t)
}

// extend moves the write deadline: it is as long after now as it was when the broker set it,
// because the client has read something. The broker would move it, but cannot see the progress: its
// bytes are split into packets here, and pass later.
func (k *link) extend() bool {
	k.mu.Lock()
	span := k.span
	k.mu.Unlock()
	return span > 0 && k.setWriteDeadline(time.Now().Add(span)) == nil
}

// tlsLink is a link over TLS.
type tlsLink struct {
	*link
	tls interface{ ConnectionState() tls.ConnectionState }
}

func (k *tlsLink) ConnectionState() tls.ConnectionState { return k.tls.ConnectionState() }

// A deadline is a point in time that can be moved and waited for. The zero value never passes.
type deadline struct {
	mu    sync.Mutex
	over  chan struct{} // closed when it has passed; replaced when it is moved after that
	timer *time.Timer
	ended bool // no timer any more: it would keep the link alive
}

// end stops the deadline for good.
func (d *deadline) end() {
	d.mu.Lock()
	d.ended = true
	d.mu.Unlock()
	d.set(time.Time{})
}

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channel()
}

func (d *deadline) channel() chan struct{} {
	if d.over == nil {
		d.over = make(chan struct{})
	}
	return d.over
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	over := d.channel()
	select {
	case <-over:
		d.over = make(chan struct{})
		over = d.over
	default:
	}
	switch left := time.Until(t); {
	case t.IsZero(), d.ended:
	case left <= 0:
		close(over)
	default:
		var timer *time.Timer
		timer = time.AfterFunc(left, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.timer == timer { // else it was moved
				close(over)
			}
		})
		d.timer = timer
	}
}
