package dunlin

import "time"

// This file is the window of a connection: how many QoS 1 and 2 messages it has in flight at most
// (4.9). The client's Receive Maximum and MaxInflight bound it.

// A connection begins with firstWindow deliveries in flight at most. A window that is acknowledged
// within ableTime shows that the client can take more.
const (
	firstWindow = 256
	ableTime    = 500 * time.Millisecond
)

// A round is the time in which a client acknowledges a whole window.
type round struct {
	since time.Time
	acked int32
}

// widenLocked counts an acknowledgement of a client for which messages wait. After a window's worth
// of them it doubles the window if the client was quick. s.mu is held.
func (s *session) widenLocked(c *conn, now time.Time) {
	r := &s.makeExtraLocked().round
	if r.acked++; r.acked < s.out.quota {
		return
	}
	if now.Sub(r.since) < ableTime {
		s.out.quota = min(2*s.out.quota, int32(c.window))
	}
	*r = round{since: now}
}
