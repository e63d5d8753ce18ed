package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is StartLazy.

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
		if l.cfg.Start != StartLazy || l.enough(ctx) {
			return true
		}
		l.sleep(ctx, lazyCheck)
	}
	return false
}

// enough says whether a lazy link has enough to carry. It makes the Session here if there is none.
func (l *link) enough(ctx context.Context) bool {
	info, ok := l.n.at().Session(l.id)
	if ok && l.reserved {
		return info.Queued+info.Inflight >= l.cfg.Threshold
	}
	err := l.reserve(ctx)
	if l.reserved = err == nil; err != nil && ctx.Err() == nil {
		l.set(StateDown, err)
		l.n.cfg.Logger.Warn("a bridge link has no queue", "link", l.cfg.Name, "err", err)
		l.pause(ctx)
	}
	return false
}

// reserve subscribes at the broker here, so that messages wait before the link has ever connected.
func (l *link) reserve(ctx context.Context) error {
	_, s, err := l.connectHere(ctx, new(packets.Connack))
	if err != nil {
		return err
	}
	defer s.bye()
	defer context.AfterFunc(ctx, func() { s.nc.Close() })()
	_ = s.nc.SetReadDeadline(time.Now().Add(l.cfg.Timeout))
	subs := l.cfg.filters(false, packets.QoS2)
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
		a, ok := x.(*packets.Suback)
		if !ok {
			continue // a message, which the broker sends again
		}
		for i, code := range a.Codes {
			if code.Failed() && i < len(subs) {
				return fmt.Errorf("the broker here refuses the subscription to %q: %w",
					subs[i].Filter, &packets.Error{Code: code})
			}
		}
		return nil
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
