package guard

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// Takeovers counts how often a Session was taken over, by a name of the Session.
type Takeovers struct {
	mu lock.Mutex[takeoversLock]
	of map[string]bucket // guarded by mu
}

// NewTakeovers returns an empty table.
func NewTakeovers() *Takeovers { return &Takeovers{of: make(map[string]bucket)} }

// Count counts one more, and says whether they are within the given number a minute. A name that
// was beyond it begins anew.
func (ts *Takeovers) Count(name string, perMinute int, now time.Time) (within bool) {
	most := float64(perMinute)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	k, known := ts.of[name]
	if !known && len(ts.of) >= MaxIdle {
		for old := range ts.of { // in no order
			delete(ts.of, old)
			break
		}
	}
	if within = k.take(now.UnixNano(), most/60, most); within {
		ts.of[name] = k
	} else {
		delete(ts.of, name)
	}
	return within
}
