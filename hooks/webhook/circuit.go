package webhook

import (
	"log/slog"
	"sync"
	"time"
)

// maxFailing bounds the peers whose failures are counted. Above it a random peer is removed, so
// that no peer can choose which one.
const maxFailing = 1024

// A circuit stops questions to a server that fails. Failures about one peer stop questions about
// that peer; other failures stop all questions. For the second count, a server that cannot be
// reached counts each time, and an answer that fails counts once for each peer: the server may fail
// because of the question.
type circuit struct {
	after int
	wait  time.Duration
	log   *slog.Logger

	mu    sync.Mutex
	all   failures             // guarded by mu
	row   int                  // how often all has ended; guarded by mu
	peers map[string]*failures // those with some; guarded by mu
}

// failures counts failures in a row.
type failures struct {
	n       int
	until   time.Time // the circuit is open, if n is enough for that
	probing bool      // a question tries whether the server is back
	row     int       // of a peer: in which row of all it is counted
}

// lets says whether a question may be asked.
func (f *failures) lets(after int, now time.Time) bool {
	return f.n < after || !f.probing && !now.Before(f.until)
}

// add counts a failure, and says whether this failure opens the circuit.
func (f *failures) add(after int, until time.Time) (opens bool) {
	f.n++
	if f.n >= after {
		f.until, f.probing = until, false
	}
	return f.n == after
}

// open says whether questions about peer are stopped now.
func (c *circuit) open(peer string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.letsLocked(peer, time.Now())
}

// enter says whether a question about peer may be asked. The caller must then call leave.
func (c *circuit) enter(peer string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.letsLocked(peer, time.Now()) {
		return false
	}
	c.all.probing = c.all.n >= c.after
	if p := c.peers[peer]; p != nil {
		p.probing = p.n >= c.after
	}
	return true
}

func (c *circuit) letsLocked(peer string, now time.Time) bool {
	p := c.peers[peer]
	return c.all.lets(c.after, now) && (p == nil || p.lets(c.after, now))
}

// answered records that a question about peer was answered.
func (c *circuit) answered(peer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all.n >= c.after {
		c.log.Info("webhook: the server answers again")
	}
	c.all = failures{}
	c.row++
	delete(c.peers, peer)
}

// failed records that a question about peer was not answered. unreachable says that it did not
// reach the server.
func (c *circuit) failed(peer string, unreachable bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peers[peer]
	if p == nil {
		if len(c.peers) >= maxFailing {
			for old := range c.peers {
				delete(c.peers, old)
				break
			}
		}
		p = &failures{row: c.row - 1}
		c.peers[peer] = p
	}
	until := time.Now().Add(c.wait)
	opens := p.add(c.after, until)
	counts := unreachable || p.row != c.row || c.all.n >= c.after
	p.row = c.row
	switch {
	case counts && c.all.add(c.after, until):
		c.log.Warn("webhook: the server fails, everything is refused for a while",
			"for", c.wait, "err", err)
	case opens:
		c.log.Info("webhook: the server fails for one peer, which is refused for a while",
			"peer", peer, "for", c.wait, "err", err)
	}
}
