package bridge

import (
	"context"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the queue of a link, which is there before the link connects for the first time, and
// StartLazy, which waits for it to fill.

// lazyCheck is how often a link looks whether enough messages wait.
const lazyCheck = 500 * time.Millisecond

// due waits until the link is to connect. It is false if the link is to end.
func (l *link) due(ctx context.Context) bool {
	for ctx.Err() == nil {
		select {
		case <-l.retired:
			return false
		default:
		}
		err := l.reserve(ctx)
		switch {
		case err == nil && (l.cfg.Start != StartLazy || l.waiting() >= l.cfg.Threshold):
			return true
		case err == nil:
			l.sleep(ctx, lazyCheck)
		case ctx.Err() == nil:
			l.set(StateDown, err)
			l.n.cfg.Logger.Warn("a bridge link has no queue", "link", l.cfg.Name, "err", err)
			l.pause(ctx)
		}
	}
	return false
}

// waiting is how many messages wait in the Session here.
func (l *link) waiting() int {
	info, _ := l.n.at().Session(l.id)
	return info.Queued + info.Inflight
}

// reserve subscribes at the broker here to what the Session there lacks, so that messages wait
// from now on. The retained ones come when the link connects.
func (l *link) reserve(ctx context.Context) error {
	if l.cfg.CleanStartHere {
		return nil
	}
	info, _ := l.n.at().Session(l.id)
	has := func(s packets.Subscription) bool {
		return slices.ContainsFunc(info.Subscriptions, func(had packets.Subscription) bool {
			return had.Filter == s.Filter
		})
	}
	lacking := slices.DeleteFunc(l.cfg.filters(false, packets.QoS2), has)
	if len(lacking) == 0 {
		return nil
	}
	for i := range lacking {
		lacking[i].RetainHandling = 2
	}
	if err := l.subscribeHere(ctx, lacking); err != nil {
		return err
	}
	for _, s := range lacking {
		l.fresh[s.Filter] = true
	}
	return nil
}

// subscribeHere subscribes over a connection of its own.
func (l *link) subscribeHere(ctx context.Context, subs []packets.Subscription) error {
	ack, s, err := l.connectHere(ctx, new(packets.Connack))
	if err != nil {
		return err
	}
	l.made = l.made || !ack.SessionPresent
	defer s.bye()
	defer context.AfterFunc(ctx, func() { s.nc.Close() })()
	_ = s.nc.SetReadDeadline(time.Now().Add(l.cfg.Timeout))
	if err := s.send(&packets.Subscribe{PacketID: subscribeID, Subscriptions: subs}); err != nil {
		return err
	}
	if err := s.flush(); err != nil {
		return err
	}
	for {
		x, err := s.read()
		if err != nil {
			return err
		}
		if a, ok := x.(*packets.Suback); ok {
			return s.refusal(a, subs)
		} // otherwise a message, which the broker sends again
	}
}

// idle ends the connection of a lazy link when nothing was to be carried for a while.
func (p *pipe) idle(ctx context.Context) error {
	c, most := &p.l.counters, p.l.cfg.IdleTimeout
	if p.l.cfg.Start != StartLazy {
		return nil
	}
	t := time.NewTicker(most/8 + time.Millisecond)
	defer t.Stop()
	carried, since := uint64(0), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		n := c.sent.Load() + c.received.Load() + c.acknowledged.Load()
		if n != carried || c.inflight.Load() > 0 {
			carried, since = n, time.Now()
		}
		if time.Since(since) > most {
			return errIdle
		}
	}
}
