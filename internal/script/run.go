package script

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A Harness is a broker as a script sees it.
type Harness interface {
	// Open makes a Network Connection. The name is that of the script, for messages.
	Open(name string) (Link, error)
	// Advance lets time pass, and what is due happen.
	Advance(d time.Duration)
	// Close ends the broker. Run does not call it: it belongs to whoever made the Harness.
	Close()
}

// A Link is the client's end of a Network Connection.
type Link interface {
	// Send sends b in one piece.
	Send(b []byte) error
	// Recv waits until the broker has come to rest and returns what has arrived since the last
	// call. Closed says that the broker has ended the connection, and that nothing comes after b.
	Recv() (b []byte, closed bool)
	// Close cuts the connection, without any packet.
	Close()
}

// A Waiter is a Link to a broker that cannot be seen to come to rest at every moment. Its Recv need
// not return all that the script expects.
type Waiter interface {
	Link
	// Await waits until something has arrived since the last call, of Recv as well, or the broker
	// has ended the connection. It returns what Recv returns, and nothing if it has waited too
	// long.
	Await() (b []byte, closed bool)
}

// logLines is how many packets a failure shows.
const logLines = 16

// Run lets s happen at h, which has been set up with s.Config. It returns what went wrong first,
// with the line of the script, its sentence, and the packets that went before.
func (s *Script) Run(h Harness) error {
	r := &runner{script: s, h: h, vars: map[string]string{}, conns: map[string]*peer{}}
	for i := range s.steps {
		r.follow = s.steps[i+1:]
		if err := r.step(&s.steps[i]); err != nil {
			return r.failure(&s.steps[i], err)
		}
	}
	last := s.steps[len(s.steps)-1]
	for _, name := range slices.Sorted(maps.Keys(r.conns)) {
		if err := r.conns[name].leftOver(); err != nil {
			return r.failure(&last, fmt.Errorf("at the end of the scenario: %w", err))
		}
	}
	return nil
}

type runner struct {
	script *Script
	h      Harness
	vars   map[string]string
	follow []step           // the steps behind this one
	conns  map[string]*peer // those that are open
	log    []string
}

// A peer is one connection of a script.
type peer struct {
	r      *runner
	name   string
	link   Link
	held   []byte     // to be sent with what comes next
	bytes  []byte     // received, not yet a whole packet
	queue  []received // packets that have not been expected yet
	closed bool       // by the broker
	watch  watch
}

type received struct {
	raw []byte
	p   packets.Packet // nil if it cannot be decoded
	err error          // why not
}

func (m received) String() string {
	if m.p == nil {
		return fmt.Sprintf("raw % x (%v)", short(m.raw), m.err)
	}
	return packets.Trace(m.p)
}

func (m received) kind() packets.Type { return packets.Type(m.raw[0] >> 4) }

func short(b []byte) []byte { return b[:min(len(b), 64)] }

func (r *runner) failure(st *step, err error) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d: %s\n", r.script.File, st.line, st.text)
	var in *inGroup
	if errors.As(err, &in) {
		fmt.Fprintf(&b, "\tline %d: %s\n", in.step.line, in.step.text)
	}
	if st.sentence != "" {
		fmt.Fprintf(&b, "\twanted: %s\n", st.sentence)
	}
	fmt.Fprintf(&b, "\tgot:    %v\n\tthe last packets:\n", err)
	for _, l := range r.log[max(0, len(r.log)-logLines):] {
		fmt.Fprintf(&b, "\t\t%s\n", l)
	}
	return errors.New(b.String())
}

// inGroup is an error at one line of a group.
type inGroup struct {
	step *step
	err  error
}

func (e *inGroup) Error() string { return e.err.Error() }

func (r *runner) note(format string, args ...any) {
	r.log = append(r.log, fmt.Sprintf(format, args...))
}

func (r *runner) step(st *step) error {
	switch st.verb {
	case advance:
		r.note("advance %v", st.wait)
		r.h.Advance(st.wait)
		return nil
	case group:
		return r.group(st)
	}
	c, err := r.peer(st)
	if err != nil {
		return err
	}
	switch st.verb {
	case send, sendRaw:
		return c.send(st)
	case cut:
		return c.cut()
	}
	if c.held != nil {
		return errors.New("the script holds something back that it has not sent yet")
	}
	if st.verb == idle {
		return c.leftOver()
	}
	if st.optional && !r.comes(st.conn) {
		err = c.poll()
	} else {
		err = c.await(1)
	}
	if err != nil {
		return err
	}
	switch st.verb {
	case expect:
		return c.expect(st)
	case expectRaw:
		return c.expectRaw(st)
	case closed:
		if err := c.leftOver(); err != nil {
			return err
		}
		if !c.closed {
			return errors.New("the connection is still open")
		}
		c.link.Close()
		delete(r.conns, c.name)
	}
	return nil
}

// comes says whether something has to come on a connection, as the steps behind this one have it.
func (r *runner) comes(conn string) bool {
	for _, st := range r.follow {
		if st.conn != conn || st.optional {
			continue
		}
		return st.verb == expect || st.verb == expectRaw || st.verb == closed
	}
	return false
}

// peer returns the connection that st is about. A line that sends, or expects something, opens it.
func (r *runner) peer(st *step) (*peer, error) {
	if c := r.conns[st.conn]; c != nil {
		return c, nil
	}
	if st.verb == cut {
		return nil, fmt.Errorf("%s is not connected", st.conn)
	}
	link, err := r.h.Open(st.conn)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	c := &peer{r: r, name: st.conn, link: link, watch: watch{version: packets.V5}}
	r.conns[st.conn] = c
	return c, nil
}

func (c *peer) send(st *step) error {
	var b []byte
	if st.verb == sendRaw {
		b = narrow(st.raw)
		c.r.note("%s> raw % x", c.name, short(b))
	} else {
		if v := unbound(st.tokens, c.r.vars); v != "" {
			return fmt.Errorf("the variable %s has no value", v)
		}
		p, v, err := build(st.packet, substitute(st.tokens, c.r.vars))
		if err != nil {
			return err
		}
		if p.Type() != packets.TypeConnect {
			v = c.watch.version
		}
		if b, err = p.Append(nil, v); err != nil {
			return fmt.Errorf("encoding it: %w", err)
		}
		c.r.note("%s> %s", c.name, packets.Trace(p))
	}
	c.watch.sent(b)
	c.held = append(c.held, b...)
	if st.held {
		return nil
	}
	b, c.held = c.held, nil
	if err := c.link.Send(b); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

func (c *peer) cut() error {
	if err := c.poll(); err != nil {
		return err
	}
	if err := c.leftOver(); err != nil {
		return err
	}
	c.r.note("%s> close", c.name)
	c.link.Close()
	delete(c.r.conns, c.name)
	return nil
}

// poll takes over what has come and checks what holds for every packet.
func (c *peer) poll() error {
	if c.closed {
		return nil
	}
	return c.take(c.link.Recv())
}

// await polls until n packets are there to be expected, or nothing more comes.
func (c *peer) await(n int) error {
	w, ok := c.link.(Waiter)
	if !ok {
		return c.poll()
	}
	for len(c.queue) < n && !c.closed {
		b, closed := w.Await()
		if err := c.take(b, closed); err != nil {
			return err
		}
		if len(b) == 0 {
			break
		}
	}
	return nil
}

// take is given what a Link has returned.
func (c *peer) take(b []byte, closed bool) error {
	c.bytes = append(c.bytes, b...)
	c.closed = closed
	for len(c.bytes) > 0 {
		h, err := packets.ParseHeader(c.bytes, packets.V5)
		if errors.Is(err, packets.ErrShort) || err == nil && len(c.bytes) < h.Len+h.Remaining {
			break
		}
		if err != nil {
			return fmt.Errorf("% x, which is no packet: %w", short(c.bytes), err)
		}
		m := received{raw: bytes.Clone(c.bytes[:h.Len+h.Remaining])}
		c.bytes = c.bytes[len(m.raw):]
		m.p, _, m.err = packets.Decode(m.raw, c.watch.version, packets.Limits{})
		if m.err != nil {
			m.p = nil
		}
		c.r.note("%s< %s", c.name, m)
		c.queue = append(c.queue, m)
		if err := c.watch.received(m); err != nil {
			return fmt.Errorf("%s, which is against a rule that holds always: %w", m, err)
		}
	}
	if closed {
		c.r.note("%s< closed", c.name)
		if len(c.bytes) > 0 {
			return fmt.Errorf("the end of the connection inside a packet: % x", short(c.bytes))
		}
	}
	return nil
}

// next returns the packet that comes next, or says what there is instead.
func (c *peer) next() (received, error) {
	switch {
	case len(c.queue) > 0:
		return c.queue[0], nil
	case c.closed:
		return received{}, errors.New("the end of the connection")
	case len(c.bytes) > 0:
		return received{}, fmt.Errorf("a part of a packet: % x", short(c.bytes))
	}
	return received{}, errors.New("nothing")
}

func (c *peer) expect(st *step) error {
	m, err := c.next()
	if st.optional && (err != nil || m.kind().String() != st.packet) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.is(st, c.r.vars); err != nil {
		return fmt.Errorf("%s (%w)", m, err)
	}
	c.queue = c.queue[1:]
	return nil
}

// is says why m is not what st expects; nil if it is.
func (m received) is(st *step, vars map[string]string) error {
	if m.p == nil {
		if len(st.tokens) == 0 && m.kind().String() == st.packet {
			return nil
		}
		return errors.New("it cannot be decoded")
	}
	trace := packets.Trace(m.p)
	name, rest, _ := strings.Cut(trace, " ")
	if name != st.packet {
		return errors.New("another packet")
	}
	got, err := tokenize(rest)
	if err != nil {
		return fmt.Errorf("BUG: the trace %q: %w", trace, err)
	}
	return match(st.tokens, got, vars)
}

func (c *peer) expectRaw(st *step) error {
	m, err := c.next()
	if err != nil {
		return err
	}
	same := len(m.raw) == len(st.raw)
	for i := 0; same && i < len(m.raw); i++ {
		same = st.raw[i] < 0 || byte(st.raw[i]) == m.raw[i]
	}
	if !same {
		return fmt.Errorf("raw % x", short(m.raw))
	}
	c.queue = c.queue[1:]
	return nil
}

// leftOver says what has come and was not expected.
func (c *peer) leftOver() error {
	if err := c.poll(); err != nil {
		return err
	}
	switch {
	case len(c.queue) > 0:
		return fmt.Errorf("%s: %s", c.name, c.queue[0])
	case len(c.bytes) > 0:
		return fmt.Errorf("%s: a part of a packet: % x", c.name, short(c.bytes))
	}
	return nil
}

// group expects packets of one or several connections, those of each connection in any order.
func (r *runner) group(g *step) error {
	byConn := map[string][]*step{}
	for i := range g.steps {
		st := &g.steps[i]
		byConn[st.conn] = append(byConn[st.conn], st)
	}
	for _, name := range slices.Sorted(maps.Keys(byConn)) {
		want := byConn[name]
		c, err := r.peer(want[0])
		if err != nil {
			return err
		}
		if err := c.await(len(want)); err != nil {
			return err
		}
		n := min(len(want), len(c.queue))
		vars, left, err := assign(want, c.queue[:n], r.vars)
		if left != nil {
			if n < len(want) {
				return &inGroup{left, fmt.Errorf("only %d of %d packets", n, len(want))}
			}
			return &inGroup{left, err}
		}
		r.vars = vars
		c.queue = c.queue[n:]
	}
	return nil
}

// assign finds for every step of want its own packet. If that cannot be done it returns a step for
// which there is none, and why.
func assign(want []*step, have []received, vars map[string]string) (map[string]string, *step,
	error) {
	if len(want) == 0 {
		return vars, nil, nil
	}
	var stuck *step
	err := errors.New("none of the packets is left for it")
	for i, m := range have {
		try := maps.Clone(vars)
		if e := m.is(want[0], try); e != nil {
			err = fmt.Errorf("%s (%w)", m, e)
			continue
		}
		rest := append(slices.Clone(have[:i]), have[i+1:]...)
		found, left, e := assign(want[1:], rest, try)
		if left == nil {
			return found, nil, nil
		}
		stuck, err = left, e
	}
	if stuck == nil {
		stuck = want[0]
	}
	return nil, stuck, err
}
