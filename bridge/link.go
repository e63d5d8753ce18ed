package bridge

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A link is a Link at work.
type link struct {
	n    *Node
	cfg  *Link // immutable
	id   string
	stop context.CancelFunc // ends run; guarded by Node.mu, nil before Start

	before *link // guarded by Node.mu; run begins when it has ended, nil: at once

	retired chan struct{} // closed when run is to end with its connection
	over    chan struct{} // closed when run has returned

	counters counters

	// Owned by run.
	next     int    // of cfg.Addresses
	last     string // the address of the last connection, where Packet Identifiers are known
	asked    bool   // whether the subscriptions were granted there
	granted  int    // the Receive Maximum of the broker here, as the last connection told
	previous time.Duration
	informed string          // the last notification here
	fresh    map[string]bool // filters whose retained messages here are still to come
	// what the remote broker does not know: the bridge bit, or retained messages
	plain, unretained bool
	made              bool // the Session here is new: no Packet Identifier stands for anything

	mu        sync.Mutex
	state     State     // guarded by mu
	since     time.Time // guarded by mu
	address   string    // guarded by mu
	lastError string    // guarded by mu
}

func newLink(n *Node, cfg *Link) *link {
	return &link{n: n, cfg: cfg, id: localID + cfg.Name, over: make(chan struct{}),
		retired: make(chan struct{}), fresh: map[string]bool{},
		state: StateDown, since: time.Now(), granted: 65535}
}

// set notes what the link is doing.
func (l *link) set(s State, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.since = s, time.Now()
	if why != nil {
		l.lastError = why.Error()
	}
}

var (
	errPrimary  = errors.New("bridge: the first address can be reached again")
	errNarrower = errors.New("bridge: the broker takes fewer messages at a time")
	errLesser   = errors.New("bridge: the remote broker does not know all that was asked for")
	errIdle     = errors.New("bridge: there was nothing to carry")
	errStopped  = errors.New("bridge: the Node was closed")
)

// run keeps the link connected until ctx ends.
func (l *link) run(ctx context.Context) {
	defer close(l.over)
	defer l.set(StateStopped, nil)
	for l.due(ctx) {
		at := l.next
		up, err := l.attempt(ctx, l.cfg.Addresses[at])
		if ctx.Err() != nil {
			return
		}
		l.inform("0")
		switch {
		case errors.Is(err, errNarrower), errors.Is(err, errLesser):
			continue // at the same address, at once
		case errors.Is(err, errIdle):
			l.set(StateDown, nil)
			continue
		case errors.Is(err, errPrimary):
			l.next = 0
			continue
		}
		l.counters.failures.Add(1)
		again := l.advance(at, up)
		l.set(StateDown, err)
		l.n.cfg.Logger.Warn("a bridge link has ended", "link", l.cfg.Name,
			"address", l.cfg.Addresses[at], "was up", up, "err", err)
		if up && l.cfg.Start == StartOnce {
			return
		}
		if !again && !l.pause(ctx) {
			return
		}
	}
}

// advance chooses the next address, and says whether to try it at once.
func (l *link) advance(at int, up bool) bool {
	if up && time.Since(l.sinceNow()) > l.cfg.MaxBackoff {
		l.previous = 0 // it worked for a while
	}
	if up && !l.cfg.RoundRobin {
		l.next = 0
		return false
	}
	l.next = (at + 1) % len(l.cfg.Addresses)
	return l.next != 0 && !up
}

// pause waits for the back-off, which is random and grows. It is false if ctx has ended.
func (l *link) pause(ctx context.Context) bool {
	least := l.cfg.MinBackoff
	most := min(l.cfg.MaxBackoff, max(3*l.previous, 2*least))
	d := least
	if most > least {
		d += rand.N(most - least)
	}
	l.previous = d
	return l.sleep(ctx, d)
}

// sleep waits. It is false if the link is to end.
func (l *link) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-l.retired:
	}
	return false
}

// attempt connects to an address, and returns when the connection has ended.
func (l *link) attempt(ctx context.Context, to string) (up bool, err error) {
	l.mu.Lock()
	l.address = to
	l.mu.Unlock()
	l.set(StateConnecting, nil)
	dialing, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	nc, err := l.dial(dialing, to)
	cancel()
	if err != nil {
		return false, fmt.Errorf("%s: %w", to, err)
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	remote := newSide("the remote broker", nc, l.cfg.Version, l.cfg.MaxPacketSize, l.cfg.Timeout)
	window := min(l.cfg.Window, l.granted)
	ask := l.connectThere(window)
	there, err := remote.connect(ask)
	if err != nil {
		return false, l.lesser(ask, err)
	}
	here, local, err := l.connectHere(ctx, there)
	if err != nil {
		remote.bye()
		return false, err
	}
	defer local.nc.Close()
	if limit := number(here, packets.ReceiveMaximum, 65535); limit < window {
		l.granted = limit
		return false, errNarrower
	}
	if err := l.possible(here, there); err != nil {
		remote.bye()
		return false, err
	}
	if !stop() {
		return false, errStopped
	}
	p := newPipe(l, local, remote)
	p.window = window
	p.prepare(here, there, to)
	l.last = to
	err = p.run(ctx)
	return p.up.Load(), err
}

// lesser notes what the remote broker does not know, if err says so: the bridge bit, or retained
// messages. The link then connects without it.
func (l *link) lesser(ask *packets.Connect, err error) error {
	refused, ok := errors.AsType[*packets.Error](err)
	switch {
	case !ok:
	case refused.Code == packets.UnsupportedProtocolVersion && ask.Bridge &&
		ask.Version == packets.V311:
		l.plain = true
		return errLesser
	case refused.Code == packets.RetainNotSupported && ask.Will != nil && ask.Will.Retain:
		l.unretained = true
		return errLesser
	}
	return err
}

// number returns a property of a CONNACK, or what counts without it.
func number(p *packets.Connack, id packets.Property, without int) int {
	if n, ok := p.Properties.Uint(id); ok {
		return int(n)
	}
	return without
}

// possible says what the two brokers do not offer that the link needs.
func (l *link) possible(here, there *packets.Connack) error {
	if most := number(there, packets.MaximumQoS, 2); int(l.cfg.highest(false)) > most {
		return fmt.Errorf("the remote broker takes QoS %d at most: lower the QoS of the topics",
			most)
	}
	if most := number(here, packets.MaximumQoS, 2); int(l.cfg.highest(true)) > most {
		return fmt.Errorf("the broker here takes QoS %d at most: lower the QoS of the topics", most)
	}
	most := number(here, packets.MaximumPacketSize, 256<<20)
	if need := l.cfg.MaxPacketSize + l.cfg.growth(true); most < need {
		return fmt.Errorf(
			"the broker here takes packets of %d bytes: a MaxPacketSize of at most %d "+
				"is possible, got %d", most, most-l.cfg.growth(true), l.cfg.MaxPacketSize)
	}
	return nil
}

// connectThere is the CONNECT for the remote broker.
func (l *link) connectThere(window int) *packets.Connect {
	c := l.cfg
	p := &packets.Connect{
		Version: c.Version, Bridge: !c.DisableBridgeBit && !l.plain,
		CleanStart: c.CleanStart, ClientID: c.ClientID,
		KeepAlive: uint16(c.KeepAlive / time.Second), HasUsername: c.Username != "",
		Username: c.Username, HasPassword: c.Password != "", Password: []byte(c.Password),
	}
	if c.Version == packets.V5 {
		p.Properties = p.Properties.AppendUint(packets.ReceiveMaximum, uint32(window)).
			AppendUint(packets.MaximumPacketSize, uint32(c.MaxPacketSize)).
			AppendUser(peerProperty, l.n.cfg.Name)
		if !c.CleanStart {
			p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval,
				seconds(c.SessionExpiry))
		}
	}
	if !c.DisableNotifications && !c.LocalNotifications {
		p.Will = &packets.Will{Topic: c.StateTopic, Payload: []byte("0"), QoS: packets.QoS1,
			Retain: !c.DisableRetain && !l.unretained}
	}
	return p
}

// seconds is d as a Session Expiry Interval; zero is for ever.
func seconds(d time.Duration) uint32 {
	if d == 0 || d/time.Second >= 1<<32-1 {
		return 1<<32 - 1
	}
	return uint32((d + time.Second - 1) / time.Second)
}

// connectHere connects to the broker here, with the limits that the remote one has told.
func (l *link) connectHere(
	ctx context.Context, there *packets.Connack,
) (ack *packets.Connack, s *side, err error) {
	dialing, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	nc, err := l.n.door.DialContext(dialing, "", "")
	if err != nil {
		return nil, nil, fmt.Errorf("the broker here: %w", err)
	}
	window := min(l.cfg.Window, number(there, packets.ReceiveMaximum, 65535))
	size := number(there, packets.MaximumPacketSize, 256<<20)
	size = min(size, cmp.Or(l.cfg.MaxSentSize, size)) - l.cfg.growth(false)
	p := &packets.Connect{
		Version: packets.V5, CleanStart: l.cfg.CleanStartHere, ClientID: l.id,
		HasUsername: true, Username: localUser, HasPassword: true, Password: []byte(l.n.secret),
	}
	p.Properties = p.Properties.AppendUint(packets.ReceiveMaximum, uint32(max(window, 1))).
		AppendUint(packets.MaximumPacketSize, uint32(max(size, 64)))
	if !l.cfg.CleanStartHere {
		p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, seconds(0))
	}
	s = newSide("the broker here", nc, packets.V5, 0, l.cfg.Timeout)
	if ack, err = s.connect(p); err != nil {
		nc.Close()
		return nil, nil, err
	}
	return ack, s, nil
}

// dial opens a connection.
func (l *link) dial(ctx context.Context, to string) (net.Conn, error) {
	if l.cfg.Dial != nil {
		return l.cfg.Dial(ctx, to)
	}
	a, err := parseAddress(to)
	if err != nil {
		return nil, err
	}
	d := &net.Dialer{Timeout: l.cfg.Timeout}
	if ip := net.ParseIP(l.cfg.LocalAddress); ip != nil && a.network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: ip}
	}
	if !a.tls {
		return d.DialContext(ctx, a.network, a.host)
	}
	cfg := new(tls.Config)
	if l.cfg.TLS != nil {
		cfg = l.cfg.TLS.Clone()
	}
	cfg.ServerName = cmp.Or(cfg.ServerName, a.name)
	return (&tls.Dialer{NetDialer: d, Config: cfg}).DialContext(ctx, a.network, a.host)
}

// inform publishes the state of the link here.
func (l *link) inform(state string) {
	if l.cfg.DisableNotifications || l.informed == state {
		return
	}
	l.informed = state
	b := l.n.at()
	ctx, cancel := context.WithTimeout(context.Background(), l.cfg.Timeout)
	defer cancel()
	m := &dunlin.Message{Topic: l.cfg.StateTopic, Payload: []byte(state), Retain: true}
	if err := b.Publish(ctx, m); err != nil {
		l.n.cfg.Logger.Debug("no notification of a bridge link", "link", l.cfg.Name, "err", err)
	}
}

// sinceNow returns when the state of the link was set.
func (l *link) sinceNow() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since
}
