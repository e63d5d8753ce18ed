package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A pipe is one connection of a link: what the Session here and the Session there say to each
// other. Packet Identifiers go through unchanged. So an acknowledgement is that of the broker at
// the other end, and what neither has acknowledged is sent again by the Session that has it.
type pipe struct {
	l             *link
	local, remote *side
	window        int
	askThere      bool // a SUBSCRIBE has to go there
	up            atomic.Bool

	retainHere, retainThere bool // that broker keeps retained messages

	// Identifiers to release first, because the other Session has forgotten what they stand for.
	sweepLocal, sweepRemote bool

	mu      sync.Mutex
	out     map[uint16]exchange // guarded by mu; what the remote broker has to acknowledge
	swept   [2]map[uint16]bool  // guarded by mu; PUBCOMPs to come that are for nobody: here, there
	waiting int                 // guarded by mu; SUBACKs to come

	told sync.Mutex // held while notifications are published
	over bool       // guarded by told: the last ones are those of the end
}

// An exchange is a QoS 1 or 2 message on its way to the remote broker.
type exchange struct {
	qos packets.QoS
	rel bool // PUBREL went
	at  time.Time
}

// The two sides, as indexes of pipe.swept.
const (
	atLocal = iota
	atRemote
)

func newPipe(l *link, local, remote *side) *pipe {
	return &pipe{l: l, local: local, remote: remote, out: map[uint16]exchange{}}
}

// prepare decides what has to be said before anything else. Where one Session remembers QoS 2
// identifiers and the other one does not, or is at another broker than before, these identifiers
// stand for nothing any more: a new message with one of them would be taken for an old one.
func (p *pipe) prepare(here, there *packets.Connack, to string) {
	l := p.l
	p.retainHere = number(here, packets.RetainAvailable, 1) == 1
	p.retainThere = number(there, packets.RetainAvailable, 1) == 1 && !l.cfg.DisableRetain
	moved := l.last != to && len(l.cfg.Addresses) > 1
	known := here.SessionPresent && !l.made
	l.made = false
	p.sweepLocal = known && (!there.SessionPresent || moved) &&
		l.cfg.highest(true) == packets.QoS2
	p.sweepRemote = there.SessionPresent && (!known || moved) &&
		l.cfg.highest(false) == packets.QoS2
	// Before 5.0 each SUBSCRIBE brings the retained messages once more.
	p.askThere = !there.SessionPresent || moved || !l.asked || l.cfg.Version == packets.V5
	l.asked = l.asked && !moved
}

// run carries packets until a side fails or ctx ends.
func (p *pipe) run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var tasks sync.WaitGroup
	for _, f := range []func(context.Context) error{p.outward, p.inward, p.watch, p.primary,
		p.idle} {
		tasks.Go(func() {
			if err := f(work); err != nil {
				cancel(err)
			}
		})
	}
	<-work.Done()
	err := context.Cause(work)
	if ctx.Err() != nil || errors.Is(err, errPrimary) || errors.Is(err, errIdle) {
		p.farewell()
	}
	p.remote.nc.Close()
	p.local.nc.Close()
	tasks.Wait()
	p.l.counters.inflight.Store(0)
	return err
}

// farewell ends both connections in good order.
func (p *pipe) farewell() {
	p.remote.closing.Store(true)
	p.remote.nc.SetWriteDeadline(p.remote.until())
	p.told.Lock()
	p.over = true
	p.notify("0")
	p.told.Unlock()
	p.remote.bye()
	p.local.bye()
	p.l.inform("0")
}

// notify publishes the state at the remote broker.
func (p *pipe) notify(state string) error {
	if c := p.l.cfg; c.DisableNotifications || c.LocalNotifications {
		return nil
	}
	m := &packets.Publish{Topic: []byte(p.l.cfg.StateTopic), Payload: []byte(state),
		Retain: p.retainThere}
	return p.remote.send(m)
}

// subscribe asks both brokers for what the link carries.
func (p *pipe) subscribe() error {
	here, there := p.l.cfg.filters(false, packets.QoS2), p.l.cfg.filters(true, packets.QoS2)
	for i := range here {
		if p.l.fresh[here[i].Filter] {
			here[i].RetainHandling = 0
		}
	}
	if err := p.unsubscribe(); err != nil {
		return err
	}
	if len(here) == 0 && (len(there) == 0 || !p.askThere) {
		return p.ready()
	}
	for _, x := range []struct {
		at   *side
		subs []packets.Subscription
		ask  bool
	}{{p.local, here, true}, {p.remote, there, p.askThere}} {
		if len(x.subs) == 0 || !x.ask {
			continue
		}
		p.mu.Lock()
		p.waiting++
		p.mu.Unlock()
		ask := &packets.Subscribe{PacketID: subscribeID, Subscriptions: x.subs}
		if err := x.at.send(ask); err != nil {
			return err
		}
		if err := x.at.flush(); err != nil {
			return err
		}
	}
	return nil
}

// unsubscribe ends subscriptions of an earlier setting: here those that the Session still has,
// there those to what now only goes out.
func (p *pipe) unsubscribe() error {
	c := p.l.cfg
	info, _ := p.l.n.at().Session(p.l.id)
	if err := p.drop(p.local, info.Subscriptions, c.filters(false, 0)); err != nil {
		return err
	}
	if !c.Unsubscribe || !p.askThere {
		return nil
	}
	var out []packets.Subscription
	for i := range c.Topics {
		if t := &c.Topics[i]; !t.in() {
			out = append(out, packets.Subscription{Filter: t.RemotePrefix + t.Filter})
		}
	}
	return p.drop(p.remote, out, c.filters(true, 0))
}

// drop ends the subscriptions among old that are not among kept.
func (p *pipe) drop(at *side, old, kept []packets.Subscription) error {
	ask := &packets.Unsubscribe{PacketID: unsubscribeID}
	for _, s := range old {
		if !slices.ContainsFunc(kept, func(k packets.Subscription) bool {
			return k.Filter == s.Filter
		}) {
			ask.Filters = append(ask.Filters, s.Filter)
		}
	}
	if len(ask.Filters) == 0 {
		return nil
	}
	return errors.Join(at.send(ask), at.flush())
}

// These are the Packet Identifiers of the SUBSCRIBE and UNSUBSCRIBE packets at both brokers.
const (
	subscribeID   = 65535
	unsubscribeID = 65534
)

// granted handles a SUBACK.
func (p *pipe) granted(from *side, a *packets.Suback, subs []packets.Subscription) error {
	if len(a.Codes) != len(subs) || a.PacketID != subscribeID {
		return fmt.Errorf("%s: a SUBACK that answers no SUBSCRIBE", from.name)
	}
	if err := from.refusal(a, subs); err != nil {
		return err
	}
	p.mu.Lock()
	p.waiting--
	ready := p.waiting == 0
	p.mu.Unlock()
	if ready {
		return p.ready()
	}
	return nil
}

// refusal is the error of a SUBACK that does not grant everything.
func (s *side) refusal(a *packets.Suback, subs []packets.Subscription) error {
	for i, code := range a.Codes {
		if code.Failed() && i < len(subs) {
			return fmt.Errorf("%s refuses the subscription to %q: %w", s.name, subs[i].Filter,
				&packets.Error{Code: code})
		}
	}
	return nil
}

// ready notes that both brokers have granted the subscriptions.
func (p *pipe) ready() error {
	if p.up.Swap(true) {
		return nil
	}
	l := p.l
	clear(l.fresh)
	l.counters.connects.Add(1)
	l.set(StateUp, nil)
	l.n.cfg.Logger.Info("a bridge link is up", "link", l.cfg.Name)
	p.told.Lock()
	defer p.told.Unlock()
	if p.over {
		return nil
	}
	if err := p.notify("1"); err != nil {
		return err
	}
	l.inform("1")
	return p.remote.flush()
}

// sweep releases all Packet Identifiers of a side.
func (p *pipe) sweep(at *side, which int) error {
	p.mu.Lock()
	p.swept[which] = make(map[uint16]bool, 65535)
	for id := range 65535 {
		p.swept[which][uint16(id+1)] = true
	}
	p.mu.Unlock()
	for id := range 65535 {
		rel := &packets.Ack{Kind: packets.TypePubrel, PacketID: uint16(id + 1)}
		if err := at.send(rel); err != nil {
			return err
		}
	}
	return at.flush()
}

// unswept says whether a PUBCOMP is for the Session at the other side.
func (p *pipe) unswept(id uint16, which int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	swept := p.swept[which][id]
	delete(p.swept[which], id)
	return !swept
}

// pump reads from one side until it fails, and flushes both when nothing more is there to read.
func (p *pipe) pump(from *side, handle func(packets.Packet) error) error {
	for {
		if !from.whole() {
			if err := errors.Join(p.local.flush(), p.remote.flush()); err != nil {
				return err
			}
		}
		packet, err := from.read()
		if err == nil {
			err = handle(packet)
		}
		if err != nil {
			return err
		}
	}
}

// watch keeps the connections alive, and ends those that are not.
func (p *pipe) watch(ctx context.Context) error {
	alive := p.l.cfg.KeepAlive
	t := time.NewTicker(min(alive/4, p.l.cfg.AckTimeout/2+time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := time.Now()
		if silent := now.Sub(time.Unix(0, p.remote.heard.Load())); silent > alive*3/2 {
			return fmt.Errorf("the remote broker was silent for %v", silent.Round(time.Second))
		}
		if err := p.overdue(now); err != nil {
			return err
		}
		for _, s := range []*side{p.local, p.remote} {
			if now.Sub(time.Unix(0, s.said.Load())) < alive/2 {
				continue
			}
			if err := errors.Join(s.send(&packets.Pingreq{}), s.flush()); err != nil {
				return err
			}
		}
	}
}

// overdue is the error of a remote broker that does not acknowledge.
func (p *pipe) overdue(now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, x := range p.out {
		if d := now.Sub(x.at); d > p.l.cfg.AckTimeout {
			return fmt.Errorf("the remote broker has not acknowledged message %d for %v", id,
				d.Round(time.Second))
		}
	}
	if !p.up.Load() && now.Sub(p.l.sinceNow()) > p.l.cfg.AckTimeout {
		return errors.New("a broker has not answered the SUBSCRIBE")
	}
	return nil
}

// primary looks, from another address, whether the first one can be reached again.
func (p *pipe) primary(ctx context.Context) error {
	l := p.l
	if l.cfg.RoundRobin || l.last == l.cfg.Addresses[0] {
		return nil
	}
	t := time.NewTicker(l.cfg.PrimaryCheck)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		dialing, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
		nc, err := l.dial(dialing, l.cfg.Addresses[0])
		cancel()
		if err == nil {
			nc.Close()
			return errPrimary
		}
	}
}
