package dunlin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/tap"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A conn is one Network Connection. Its reader goroutine is all that it has while it is idle, so
// its size counts.
type conn struct {
	// Immutable after newConn.
	b    *Broker
	nc   link.Socket
	seat *seat          // on an event loop; nil: it has a goroutine
	from *guard.Address // what it counts for; nil: it has no IP address. Immutable after adopt
	via  *door          // the listener that accepted it; nil: one without a description
	// How many connections there were with it, for Taps. Immutable after adopt
	serial uint64

	// Set when the CONNECT is accepted, immutable then.
	sess           *session
	client         *hooks.Client
	keepAlive      time.Duration // one and a half times; 0: none
	maxPacket      int32         // the largest that the client accepts
	packetSize     int32         // the largest that is accepted from the client
	window         uint16        // how many deliveries may be in flight
	receiveMaximum uint16
	version        packets.Version
	noReasons      bool // Request Problem Information was 0
	maxQoS         packets.QoS

	// Owned by the reader.
	accepted    bool
	answered    bool          // a CONNACK has been written
	deep        bool          // the stack has grown; the next wait is left to a fresh goroutine
	aliasesIn   uint16        // the highest Topic Alias of the client; immutable then
	number      atomic.Uint32 // of the session in the tree; 0 until it subscribes
	open        atomic.Int32  // exchanges of this connection that count against receiveMaximum
	readHint    uint16        // the read buffer that the last large packet needed, in readSize
	routing     bool          // the reader has routes for itself
	first       [1]byte       // that Await has read
	restCounted int32         // how much of rest the count of memory knows of
	footprint   int32         // what the count of memory knows of c itself
	// The room that the packet which has come in part has taken, see expect
	partial int32
	// When partial was taken, in seconds since Broker.started, and 1; 0: none is, or endSlowest has
	// it.
	partialSince atomic.Int32
	// When the last whole packet came, since Broker.started; until c is accepted: when c came
	lastPacket time.Duration
	// The beginning of an incomplete packet, while the reader waits for more
	rest   *link.Buffer
	routes *routes    // nil: it has none. Others may take what they hold away, see there
	extra  *connExtra // see there

	// Guarded by sess.mu.
	out      out
	touched  *turn
	stopping *packets.Error // why the broker ends the connection

	meter // see there
}

func newConn(b *Broker, ctx context.Context, nc net.Conn) *conn {
	c := &conn{b: b, version: packets.V311, maxPacket: maxPacketSize}
	c.packetSize = int32(b.cfg().MaxConnectSize)
	if ctx != b.ctx {
		// end tells the connection first, and then its hooks
		c.makeExtra().base = context.WithoutCancel(ctx)
	}
	c.nc.Init(nc)
	c.watchBelow(nc)
	return c
}

// id is the Client Identifier for log lines.
func (c *conn) id() string {
	switch {
	case c.sess != nil:
		return c.sess.id
	case c.client != nil:
		return c.client.ID
	}
	return ""
}

// errAgain ends serve so that a fresh goroutine, with a small stack, does the waiting.
var errAgain = errors.New("wait on a fresh goroutine")

// A reader says which goroutine runs a connection.
type reader byte

const (
	callersReader reader = iota // one of the program, in ServeConn
	brokersReader               // one that another one can replace: run then returns errAgain
)

// run serves the connection until it ends and returns why.
func (c *conn) run(on reader) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = c.panicked(v)
		}
		if err != errAgain {
			c.finish(err)
			if err == errNormal {
				err = nil
			}
		}
	}()
	var look look
	rest := false // there may be whole packets in what was read before a pause
	for {
		if c.nc.Raw != nil {
			err = c.readRaw(reading{fresh: on == brokersReader, look: look.under, rest: rest})
		} else {
			err = c.readPlain(rest, on)
		}
		rest = err == errPause
		switch {
		case rest:
			err = c.pause()
		case err == errDry, errors.Is(err, os.ErrDeadlineExceeded):
			look, err = c.awoke(look, err == errDry)
		}
		if err != nil {
			return err
		}
	}
}

// A look is reading what has come until a deadline has passed, before anything is concluded from
// that. A process that was stopped for a while finds its deadlines over, and what clients have sent
// meanwhile unread.
type look struct {
	under bool
	until time.Time // zero for a socket: it says by itself that there is nothing more
}

// lookTime is how long a look takes where only a Read that waits can tell that there is nothing.
const lookTime = 100 * time.Millisecond

// awoke is called when the read deadline has passed, or, with dry, when the look at what was there
// is over. It begins a look, which replaces was, or says why the connection ends.
func (c *conn) awoke(was look, dry bool) (look, error) {
	now := time.Now()
	for {
		if !dry && c.mustLook(was, now) {
			l := look{under: true}
			if c.nc.Raw == nil {
				l.until = now.Add(lookTime)
			}
			return l, c.setReadDeadline(l.until)
		}
		if err := c.expired(now); err != nil {
			return look{}, err
		}
		if !c.isAwaited() {
			return look{}, nil
		}
		dry = false // awaitReader has asked before the deadline was set again
	}
}

// mustLook says whether there may be something to read although the read deadline has passed.
func (c *conn) mustLook(was look, now time.Time) bool {
	if c.nc.Raw != nil {
		return true
	}
	due := c.dueAt()
	switch {
	case due.IsZero(), due.After(now):
		return false
	case was.under:
		return now.Sub(was.until) >= lookTime // the process was stopped once more
	}
	return now.After(due) // at the very instant this goroutine was waiting, and has missed nothing
}

// dueAt is when the client must have been heard of, zero: never.
func (c *conn) dueAt() time.Time {
	last, within := c.b.started.Add(c.lastPacket), c.keepAlive
	if !c.accepted {
		within = c.b.cfg().ConnectTimeout
	}
	if within <= 0 {
		return time.Time{}
	}
	return last.Add(within)
}

// panicked makes an error of what was recovered.
func (c *conn) panicked(v any) error {
	client := c.client
	if client == nil {
		client = c.via.stranger(c.nc.NetConn())
	}
	c.b.panicked("while serving a client", client, v)
	if c.sess != nil { // the client may send once more what this was about
		c.sess.mu.Lock()
		c.sess.in.abandon()
		c.sess.mu.Unlock()
	}
	return recent.As(hooks.EndPanic,
		&packets.Error{Code: packets.UnspecifiedError, Err: fmt.Errorf("panic: %v", v)})
}

// errDry ends a look at a socket: all is read.
var errDry = errors.New("nothing more is there to read")

// errPause makes the reader pause: the client has published more than it may in the time.
var errPause = errors.New("wait until the client may publish again")

// errNormal is a DISCONNECT from the client with Reason Code 0x00.
var errNormal = errors.New("the client disconnected")

// reading is how a socket is read.
type reading struct {
	fresh bool // return errAgain instead of waiting on a stack that has grown
	look  bool // return errDry instead of waiting
	rest  bool // begin with what was read before
}

// readRaw reads whenever there is something, and holds no buffer while there is nothing.
func (c *conn) readRaw(how reading) error {
	r := &rawReader{c: c, fresh: how.fresh, look: how.look}
	read := r.read // made once
	for {
		lock.NoneHeld("Read of a net.Conn")
		var err error
		if how.rest {
			how.rest, r.turn = false, c.b.getTurn()
			c.unpark(r.turn)
		} else if err = c.nc.Raw.Read(read); err == nil {
			err = r.err
		}
		t := r.turn
		if t == nil {
			return err // a deadline, or the end, came while there was nothing to read
		}
		if err == nil {
			if err = c.packets(t); err == nil && c.gather(t) {
				r.unflushed = true
				c.widen(t)
				continue
			}
		} else if err == errUnflushed {
			err = nil
		}
		r.unflushed = false
		if err = c.endTurn(t, err); err != nil {
			c.park(t)
			return err
		}
		// Only EAGAIN says that there is nothing more: the poller may have told of data and of the
		// end at once, and then tells no more.
		c.widen(t)
	}
}

// A rawReader is what a reader of a socket hands to RawConn.Read.
type rawReader struct {
	c         *conn
	turn      *turn // holds what was read; nil while the reader waits
	err       error // what read has found; nil: more bytes in turn
	fresh     bool
	look      bool
	unflushed bool // the turn has written to others, and has looked for more before it flushes
}

// errUnflushed says that nothing more is there to read, and that the turn has to be flushed first.
var errUnflushed = errors.New("flush, then wait")

// read is called by RawConn.Read with the lock of the descriptor, for which Close waits: it only
// reads. It returns false, and holds no buffer, if the reader has to wait for something to read.
func (r *rawReader) read(fd uintptr) bool {
	defer link.InsideDescriptor()()
	c := r.c
	if r.turn == nil {
		r.turn = c.b.getTurn()
		c.unpark(r.turn)
	}
	x := r.turn.read
	for {
		n, err := link.ReadFD(fd, x.B[len(x.B):cap(x.B)])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN && r.unflushed:
			r.err = errUnflushed
		case err == syscall.EAGAIN && r.look:
			r.err = errDry
		case err == syscall.EAGAIN && c.deep && r.fresh:
			r.err = errAgain
		case err == syscall.EAGAIN:
			c.park(r.turn)
			r.turn = nil
			return false
		case err != nil:
			r.err = err
		case n <= 0:
			r.err = io.EOF
		default:
			x.B = x.B[:len(x.B)+n]
			r.err = nil
		}
		return true
	}
}

// The read buffer of a turn, and how much of an incomplete packet is copied rather than kept in its
// buffer.
const (
	readSize = 64 << 10
	keepSize = 4 << 10
)

// unpark gives the turn a read buffer that begins with what is there of an incomplete packet.
func (c *conn) unpark(t *turn) {
	t.read, c.rest = c.rest, nil
	if x := t.read; x == nil || cap(x.B) <= keepSize {
		n := keepSize // the answer to a CONNECT can take long
		if c.accepted {
			n = max(1, int(c.readHint)) * readSize
		}
		t.read = link.NewBuffer(n)
		if x != nil {
			t.read.B = append(t.read.B, x.B...)
		}
	}
	c.widen(t)
}

// widen makes room for more bytes. Memory follows what was received: a buffer that is full is
// followed by the next class, up to that of the packet which it holds the beginning of. A buffer
// that fit has made small gets the size for a socket again.
func (c *conn) widen(t *turn) {
	x, n := t.read, 2*cap(t.read.B)
	little := cap(x.B)-len(x.B) < cap(x.B)/4
	switch {
	case c.partial > 0:
		n = min(n, int(c.partial))
	case c.accepted && c.nc.Raw != nil && len(x.B) <= keepSize && n <= readSize:
		n, little = readSize, true
	}
	if n > cap(x.B) && little {
		t.read = link.NewBuffer(n)
		t.read.B = append(t.read.B, x.B...)
		x.Free()
		c.readHint = uint16(cap(t.read.B) / readSize)
	}
}

// park gives the turn back. What is left of an incomplete packet is kept: a short one in a copy of
// its own, a long one in the buffer that it grows in, so that it is not copied each time a little
// more comes.
func (c *conn) park(t *turn) {
	x := t.read
	if len(x.B) > keepSize {
		c.rest = x
	} else {
		if len(x.B) > 0 {
			c.rest = &link.Buffer{B: append([]byte(nil), x.B...)}
		}
		x.Free()
	}
	t.read, t.worker = nil, nil
	c.countRest()
	c.parkRoutes()
	c.b.putTurn(t)
}

// readPlain reads a net.Conn that is no socket. It holds a buffer meanwhile, unless that can be
// waited for without one. With rest it begins with what was read before.
func (c *conn) readPlain(rest bool, on reader) error {
	for {
		var n int
		var err error
		if !rest && c.nc.CanAwait() && (c.rest == nil || len(c.rest.B) == 0) {
			if c.deep && on == brokersReader {
				return errAgain
			}
			c.dropRest()
			if n, err = c.nc.Await(c.first[:]); err != nil {
				return err
			}
		}
		if c.rest == nil {
			c.rest = link.NewBuffer(4 << 10)
			c.rest.B = append(c.rest.B, c.first[:n]...)
		}
		if !rest {
			n, err = c.nc.Read(c.rest.B[len(c.rest.B):cap(c.rest.B)])
		}
		if n > 0 || rest {
			rest = false
			c.deliveredBelow()
			t := c.b.getTurn()
			t.read = c.rest
			t.read.B = t.read.B[:len(t.read.B)+n]
			ierr := c.input(t)
			c.widen(t)
			c.rest, t.read = t.read, nil
			if len(c.rest.B) == 0 && cap(c.rest.B) > readSize { // a large packet is over
				c.rest.Free()
				c.rest = link.NewBuffer(4 << 10)
			}
			c.countRest()
			c.parkRoutes()
			c.b.putTurn(t)
			if ierr != nil {
				return ierr
			}
		}
		if err != nil {
			return err
		}
	}
}

func (c *conn) dropRest() {
	if c.rest != nil {
		c.rest.Free()
		c.rest = nil
	}
}

// input is a whole turn: it handles what is in the read buffer and flushes what that has led to.
func (c *conn) input(t *turn) error { return c.endTurn(t, c.packets(t)) }

// packets handles every whole packet in the read buffer, and leaves what remains at the front of
// the buffer.
func (c *conn) packets(t *turn) error {
	t.now = time.Now()
	b := t.read.B
	used, whole, shown, fits := 0, 0, 0, false
	var err error
	for used < len(b) && err == nil {
		var n int
		if !fits && c.b.mayWait(b[used]) {
			c.fit(t)
			b, fits = t.read.B, true
		}
		early := !c.accepted
		if n, err = c.packet(t, b[used:]); n == 0 {
			break
		}
		used += n
		whole++
		if early { // which has shown it
			shown = used
		}
		if len(t.blocked) > 0 && err == nil {
			c.fit(t)
			b, fits = t.read.B, true
			err = c.holdBack(t)
		}
		if t.full() {
			t.end()
		}
	}
	if used > 0 {
		if c.accepted {
			c.lastPacket = t.now.Sub(c.b.started)
		}
		x := t.traffic.Of(c.class)
		x.ReceivedPackets += uint64(whole)
		x.ReceivedBytes += uint64(used)
		if used < readSize/4 {
			c.readHint = 0
		}
	}
	c.show(tap.In, t.now, b[shown:used])
	t.read.B = b[:copy(b, b[used:])]
	t.gathered += used
	return err
}

// endTurn flushes what the turn has written to. It returns err, or, if that is nil, why the
// connection is being stopped.
func (c *conn) endTurn(t *turn, err error) error {
	t.end()
	c.easeOff(t)
	if c.accepted {
		if stop := c.settled(t); err == nil {
			err = stop
		}
	}
	if err == nil && (len(t.read.B) > 0 || c.partial > 0) {
		err = c.expect(t)
	}
	return err
}

// A turn that would write to so many connections, or make so many bytes for them together, first
// looks for more to send with them.
const (
	gatherConns  = 4
	gatherBytes  = 16 << 10
	gatherRounds = 4
)

// gather says whether to read on before the turn flushes: a write costs the same for one message
// and for many. It lets other readers run, whose messages may go to the same connections. A turn
// gathers no more than one read buffer holds and reads but a few times, so that nothing waits for
// long.
func (c *conn) gather(t *turn) bool {
	if n := len(t.dirty); n < gatherConns || n*t.gathered < gatherBytes || t.gathered >= readSize ||
		t.rounds == gatherRounds {
		return false
	}
	t.rounds++
	c.b.yield()
	return true
}

// holdBack waits, with nothing of this turn left unflushed, for the Subscriptions that ask their
// publishers to.
func (c *conn) holdBack(t *turn) error {
	t.end()
	t.trim()
	c.handOver()
	for i, sub := range t.blocked {
		sub.await(c.context().Done())
		t.blocked[i] = nil
	}
	t.blocked = t.blocked[:0]
	t.now = time.Now()
	return c.stopped()
}

// packet handles the packet that b begins with and returns its length, 0 if it is not complete.
func (c *conn) packet(t *turn, b []byte) (int, error) {
	v := c.version
	if !c.accepted && c.readExtra().exchange == nil {
		v = 0
		if b[0] != byte(packets.TypeConnect)<<4 {
			return 0, recent.As(hooks.EndNotMQTT,
				packets.Errorf(packets.ProtocolError, "the first packet is no CONNECT"))
		}
	}
	h, err := packets.ParseHeader(b, v)
	if err == packets.ErrShort {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	n := h.Len + h.Remaining
	if n > int(c.packetSize) {
		err := packets.Errorf(packets.PacketTooLarge, "%v of %d bytes, %d are accepted", h.Type, n,
			c.packetSize)
		if v == 0 {
			return 0, c.refuseLarge(b[h.Len:], err)
		}
		return 0, err
	}
	if n > len(b) {
		return 0, nil
	}
	body := b[h.Len:n:n]
	switch {
	case !c.accepted:
		t.last = n == len(b)
		err = c.early(t, h, b[:n:n])
	case h.Type == packets.TypeDisconnect && len(body) == 0:
		// as nearly all are: no need for a deep stack
		err = errNormal
	case h.Type == packets.TypePublish && !c.within(t, n):
		return 0, errPause
	case h.Type == packets.TypePublish:
		if err = t.pub.DecodeKnowing(c.lastTopic(), h, body, c.version); err == nil {
			err = c.onPublish(t, &t.pub, b[:n:n])
		}
	case h.Type >= packets.TypePuback && h.Type <= packets.TypePubcomp:
		if err = t.ack.Decode(h, body, c.version); err == nil {
			err = c.onAck(t, &t.ack)
		}
	default:
		c.deep = true
		if c.b.callsOut && h.Type != packets.TypePingreq || len(body) > longBody {
			c.handOver()
		}
		err = c.other(t, h, body)
	}
	return n, err
}

// manyUnknown is how many acknowledgements with an unknown Packet Identifier a turn handles before
// it hands the event loop over: the search for each takes as long as many deliveries.
const manyUnknown = 64

// onAck handles the four packets that carry a Packet Identifier and nothing else.
func (c *conn) onAck(t *turn, a *packets.Ack) error {
	if a.Kind == packets.TypePubrel {
		return c.onPubrel(t, a)
	}
	err := c.sess.acked(t, c, a)
	if t.unknown == manyUnknown {
		t.unknown = 0
		c.handOver()
	}
	return err
}

// other handles the packets that are rare.
func (c *conn) other(t *turn, h packets.Header, body []byte) error {
	var p packets.Packet
	switch h.Type {
	case packets.TypePingreq:
		if len(body) > 0 {
			return packets.Errorf(packets.MalformedPacket, "PINGREQ with a body")
		}
		return c.reply(t, new(packets.Pingresp))
	case packets.TypeSubscribe:
		p = new(packets.Subscribe)
	case packets.TypeUnsubscribe:
		p = new(packets.Unsubscribe)
	case packets.TypeDisconnect:
		p = new(packets.Disconnect)
	case packets.TypeAuth:
		p = new(packets.Auth)
	case packets.TypeConnect:
		return packets.Errorf(packets.ProtocolError, "a second CONNECT")
	default:
		return packets.Errorf(packets.ProtocolError, "%v is not for a server", h.Type)
	}
	err := p.Decode(h, body, c.version)
	if err == nil {
		err = c.checked(t, p, len(body))
	}
	if err != nil {
		return err
	}
	switch p := p.(type) {
	case *packets.Subscribe:
		return c.onSubscribe(t, p)
	case *packets.Unsubscribe:
		return c.onUnsubscribe(t, p)
	case *packets.Disconnect:
		return c.onDisconnect(p)
	default:
		return c.onAuth(t, p.(*packets.Auth))
	}
}

// onDisconnect ends the connection as the client says (3.14).
func (c *conn) onDisconnect(p *packets.Disconnect) error {
	if n, ok := p.Properties.Uint(packets.SessionExpiryInterval); ok {
		s := c.sess
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.expiry == 0 && n != 0 {
			return packets.Errorf(packets.ProtocolError,
				"Session Expiry Interval %d in DISCONNECT after 0 in CONNECT", n)
		}
		if s.conn == c {
			s.expiry = min(n, c.b.cfg().maxExpiry(), cmp.Or(c.readExtra().expiry, noExpiry))
		}
	}
	if p.Code == packets.NormalDisconnection {
		return errNormal
	}
	return &clientLeft{p.Code}
}

// clientLeft is a DISCONNECT from the client that asks for its Will.
type clientLeft struct{ code packets.ReasonCode }

func (e *clientLeft) Error() string { return "the client disconnected: " + e.code.String() }

// expired is called when the read deadline has passed, or awaitReader asks, and what was there to
// read is read: it moves the deadline on if the client was heard of meanwhile, and otherwise says
// why the connection ends. Keep Alive is one and a half times what the client named, counted from
// its last whole packet [MQTT-3.1.2-22].
func (c *conn) expired(now time.Time) error {
	if !c.accepted {
		return recent.As(hooks.EndNoConnect, packets.Errorf(packets.ProtocolError,
			"no CONNECT within %v", c.b.cfg().ConnectTimeout))
	}
	if err := c.stopped(); err != nil {
		return err
	}
	c.readerDone()
	due := c.dueAt()
	if !due.IsZero() && !due.After(now) {
		if c.flows(now) {
			return c.setReadDeadline(now.Add(c.keepAlive))
		}
		return packets.Errorf(packets.KeepAliveTimeout, "nothing from the client for %v",
			c.keepAlive)
	}
	return c.setReadDeadline(due)
}

// setReadDeadline sets the deadline of the reader, and then says why the connection is being
// stopped, if it is: the deadline that rouse has set may be the one that this replaces.
func (c *conn) setReadDeadline(at time.Time) error {
	var err error
	if c.seat != nil {
		c.seat.SetAlarm(at)
	} else {
		err = c.nc.SetReadDeadline(at)
	}
	if err != nil || c.sess == nil {
		return err
	}
	return c.stopped()
}

// stop, with c.sess.mu held, makes the connection end with err, which a 5.0 client is told in
// DISCONNECT. The caller flushes when it has unlocked that, which rouses the reader. Only the first
// call counts.
func (c *conn) stop(err *packets.Error) {
	if c.stopping != nil || c.out.dead {
		return
	}
	c.stopping = err
	c.out.Drop() // it never leaves
	c.wake()     // and the reader may wait for that
	if cancel := c.readExtra().cancel; cancel != nil {
		cancel() // a hook may be waiting
	}
	if c.version == packets.V5 && !c.out.opening {
		code := fitting(err.Code, packets.TypeDisconnect)
		c.append(&packets.Disconnect{Code: code, Properties: c.farewell(err, code, 2)})
	}
	c.unpause()
}

// finish ends the connection: the client is told why where the protocol can, the session goes on or
// ends, the socket is closed.
func (c *conn) finish(err error) {
	code := packets.CodeOf(err)
	gentle := false
	if c.b.callsOut || c.accepted { // the end of a Session may take long
		c.handOver()
	}
	if c.accepted {
		if pe, ok := errors.AsType[*packets.Error](err); ok {
			c.sess.mu.Lock()
			c.stop(pe)
			c.sess.mu.Unlock()
			gentle = true
		}
		left, said := errors.AsType[*clientLeft](err)
		if said {
			code = left.code
		}
		told := c.b.detach(c, err == errNormal)
		c.b.expireAuth(c, time.Time{})
		if told && (said || err == errNormal) {
			// the end of the connection answers DISCONNECT; a store that fails has said so
			c.b.journal.Sync(c.b.ctx)
		}
	} else {
		gentle = c.answered
	}
	if gentle {
		c.handOver()
		c.closeGently()
	}
	c.nc.Close()
	if cancel := c.readExtra().cancel; cancel != nil {
		cancel()
	}
	if c.accepted {
		c.sess.mu.Lock()
		c.out.dead = true
		c.out.Drop()
		c.wake()
		c.discard()
		c.readExtra().outAliases.end(c.b)
		c.sess.mu.Unlock()
	}
	c.readExtra().aliases.end(c.b)
	c.dropRoutes()
	c.dropRest()
	c.countRest()
	c.b.guard.Paces.Leave(c.readExtra().pace, time.Now())
	c.givePartial()
	c.leaveBelow()
	c.b.leave(c, code, err)
}
