package admin

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"
)

// This file is how much is done at a time: a request that looks at many things needs a place, and
// a page has a bounded number of bytes.

const (
	// looksAtOnce is how many requests look at a broker's Sessions, topics and subscriptions at a
	// time, and sortsAtOnce how many of them look at all of one broker.
	looksAtOnce = 16
	sortsAtOnce = 2
	// maxQueue is how many requests wait for a place, and maxWait for how long.
	maxQueue = 64
	maxWait  = 5 * time.Second
)

// places are the right to do something that takes a while.
type places struct {
	taken   chan struct{}
	waiting atomic.Int32
}

func newPlaces(n int) *places { return &places{taken: make(chan struct{}, n)} }

// take takes a place, and waits for one. give gives it back. The error says that too many others
// wait, or that ctx has ended.
func (p *places) take(ctx context.Context) (give func(), err error) {
	give = func() { <-p.taken }
	select {
	case p.taken <- struct{}{}:
		return give, nil
	default:
	}
	if p.waiting.Add(1) > maxQueue {
		p.waiting.Add(-1)
		return nil, busy()
	}
	defer p.waiting.Add(-1)
	timer := time.NewTimer(maxWait)
	defer timer.Stop()
	select {
	case p.taken <- struct{}{}:
		return give, nil
	case <-timer.C:
		return nil, busy()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func busy() error {
	return &problem{status: http.StatusServiceUnavailable, code: "busy", retryAfter: maxWait,
		message: "too many requests that take long are under way: try again in a while"}
}

// pageBytes is about how many bytes of names and topics a page has.
const pageBytes = 1 << 20

// A pager says what a page has room for.
type pager struct {
	items, bytes int // that there is room for
	some         bool
}

func newPager(limit int) *pager { return &pager{items: limit, bytes: pageBytes} }

// takes says whether there is room for one more thing of so many bytes. The first one always has.
func (p *pager) takes(n int) bool {
	if p.items <= 0 || p.some && n > p.bytes {
		return false
	}
	p.items--
	p.bytes -= n
	p.some = true
	return true
}
