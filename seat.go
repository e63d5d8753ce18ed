package dunlin

import (
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/loop"
)

// This file is the turns of connections that have no goroutine of their own, see Config.EventLoops.
// A Worker of package loop runs each of them, in the place of a reader. What waits within a turn
// calls handOver first; the turn then goes on as on a goroutine of its own.

// What takes so long that no other connection of the event loop must wait for it.
const (
	manyTargets = 64   // receivers of a message
	manyReached = 1024 // receivers of all messages in a turn
	longBody    = 512  // bytes of a packet with Topic Filters
)

// Ready is a turn of the reader. It implements loop.User.
func (s *seat) Ready(w *loop.Worker, why loop.Event) (again loop.Event) {
	c := s.c
	s.worker = w
	over, err := true, error(nil)
	defer func() {
		if v := recover(); v != nil {
			c.handOver() // hooks are told
			err = c.panicked(v)
		}
		if over { // also after Goexit
			again = 0
			c.finish(err)
			s.Leave()
		}
		s.worker = nil
	}()
	if s.drains && why&loop.Readable != 0 {
		why |= loop.Drain
	}
	again, err = c.onLoop(why)
	over = err != nil
	return again
}

// onLoop is run for one turn. It returns the events that are to come again.
func (c *conn) onLoop(why loop.Event) (again loop.Event, err error) {
	rest := false // there may be whole packets in what was read before a pause
	for {
		again, err = c.readReady(why, rest)
		if rest = err == errPause; !rest {
			break
		}
		if err = c.pause(); err != nil {
			return 0, err
		}
	}
	if err != nil || why&(loop.Roused|loop.Alarm) == 0 {
		return again, err
	}
	if again != 0 { // first all that has come is read, see look
		return again | why, nil
	}
	now := time.Now()
	if due := c.dueAt(); !c.accepted && (due.IsZero() || due.After(now)) {
		return 0, c.setReadDeadline(due)
	}
	return 0, c.expired(now)
}

// readReady is readRaw for one read, or, with rest, for what was read before.
func (c *conn) readReady(why loop.Event, rest bool) (again loop.Event, err error) {
	t := c.b.getTurn()
	t.worker = c.seat.worker
	c.unpark(t)
	for fill := !rest; ; fill = true {
		again = loop.Readable | why&loop.Drain
		if fill {
			room := cap(t.read.B) - len(t.read.B)
			n, rerr := t.reader.Read(c.nc.Raw, t.read)
			if rerr == syscall.EAGAIN || rerr == nil && n < room && why&loop.Drain == 0 {
				again = 0
			}
			if rerr == syscall.EAGAIN {
				break
			}
			if err = rerr; err != nil {
				break
			}
		}
		if err = c.packets(t); err != nil || !c.gather(t) {
			break
		}
		c.widen(t)
	}
	err = c.endTurn(t, err)
	c.park(t)
	return again, err
}
