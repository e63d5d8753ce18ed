package dunlin

import (
	"math"
	"time"

	"github.com/dunlin-mqtt/dunlin/store"
)

// A message is an Application Message on its way through the broker. It is immutable once it is
// shared: every queue, window and retained slot that holds the message holds this one. What differs
// per hop (DUP, QoS, RETAIN, Packet Identifier, aliases, subscription identifiers) is kept by those
// who send it. From is the Client Identifier of the publisher, for No Local; empty: in-process.
// Expires is in Unix nanoseconds; 0: never (3.3.2.3.3).
type message = store.Message

// unixNano returns t as Expires has it. A time before 1677 or after 2262, which Expires cannot say,
// is the first or the last that it can.
func unixNano(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}
