package guard

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// A Pace is what an owner may publish in time, over all its connections. What it owes outlives
// them.
type Pace struct {
	owner string // its key in the table; immutable
	users int    // connections; guarded by Paces.mu

	mu          lock.Mutex[paceLock] // guards what follows
	rate, bytes float64              // per second; 0: none. Those of the connection that came last
	messages    bucket
	volume      bucket
}

// Paces holds the paces of owners that are connected, and of MaxIdle others that owe something.
type Paces struct {
	mu   lock.Mutex[pacesLock]
	of   map[string]*Pace // guarded by mu
	idle int              // how many of them have no connection; guarded by mu
}

// NewPaces returns an empty table.
func NewPaces() *Paces { return &Paces{of: make(map[string]*Pace)} }

// Join returns the Pace of an owner for another connection, from now on with the given rates a
// second: of messages and of bytes, 0 for no limit. Leave must follow.
func (ps *Paces) Join(owner string, rate, bytes float64) *Pace {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	x := ps.of[owner]
	if x == nil {
		x = &Pace{owner: owner}
		ps.of[owner] = x
	} else if x.users == 0 {
		ps.idle--
	}
	x.users++
	x.mu.Lock()
	x.rate, x.bytes = rate, bytes
	x.mu.Unlock()
	return x
}

// Leave is the end of a connection of x, which may be nil.
func (ps *Paces) Leave(x *Pace, now time.Time) {
	if x == nil {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if x.users--; x.users > 0 {
		return
	}
	if x.full(now.UnixNano()) {
		delete(ps.of, x.owner)
		return
	}
	if ps.idle >= MaxIdle {
		// in no order: an attacker that fills the table cannot choose
		for owner, old := range ps.of {
			if old.users == 0 && old != x {
				delete(ps.of, owner)
				ps.idle--
				break
			}
		}
	}
	ps.idle++
}

// Len returns how many owners are known, and how many of them have no connection.
func (ps *Paces) Len() (all, idle int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return len(ps.of), ps.idle
}

// Rates returns the rates that hold.
func (p *Pace) Rates() (rate, bytes float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rate, p.bytes
}

// fillLocked adds what has come since. A second's worth may come at once. p.mu is held.
func (p *Pace) fillLocked(now int64) {
	p.messages.fill(now, p.rate, max(p.rate, 1))
	p.volume.fill(now, p.bytes, p.bytes)
}

// full says whether nothing of a second's worth is used.
func (p *Pace) full(now int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fillLocked(now)
	return (p.rate == 0 || p.messages.level >= max(p.rate, 1)) &&
		(p.bytes == 0 || p.volume.level >= p.bytes)
}

// Take counts a PUBLISH of n bytes if it is within the limits at now, in Unix nanoseconds, and says
// whether it is. One message may be larger than what is left of the bytes. The rest is a debt.
func (p *Pace) Take(now int64, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fillLocked(now)
	if p.rate > 0 && p.messages.level < 1 || p.bytes > 0 && p.volume.level <= 0 {
		return false
	}
	p.messages.level--
	p.volume.level -= float64(n)
	return true
}

// Delay returns how long it takes until the next PUBLISH is within the limits, at most an hour.
func (p *Pace) Delay(now int64) (d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fillLocked(now)
	until := func(level, rate float64) {
		if rate > 0 && level < 1 {
			d = max(d, time.Duration(min((1-level)/rate, 3600)*1e9)+1)
		}
	}
	until(p.messages.level, p.rate)
	if p.volume.level <= 0 {
		until(p.volume.level, p.bytes)
	}
	return d
}
