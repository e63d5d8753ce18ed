package memory

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// Call is that of cluster.Backend.
func (b *Backend) Call(ctx context.Context, name string, body []byte) ([]byte, error) {
	if len(body) > maxValue {
		return nil, cluster.ErrTooLarge
	}
	if err := b.enter(ctx); err != nil {
		return nil, err
	}
	at := slices.IndexFunc(b.live, func(n cluster.Node) bool { return n.Name == name })
	if at < 0 {
		b.e.mu.Unlock()
		return nil, cluster.ErrNoNode
	}
	c := &call{name: name, incarnation: b.live[at].Incarnation, done: make(chan struct{})}
	b.e.calls++
	id := b.e.calls
	b.bus.calls[id] = c
	b.e.carry(b, id, bytes.Clone(body))
	b.e.mu.Unlock()
	err := b.wait(ctx, c.done)
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	delete(b.bus.calls, id)
	select {
	case <-c.done:
		return c.body, c.err
	default:
		return nil, err
	}
}

// carry brings a call to its node. Engine.mu is held.
func (e *Engine) carry(b *Backend, id uint64, body []byte) {
	c := b.bus.calls[id]
	for _, n := range e.nodes {
		to := n.process
		if to == nil || to.name != c.name || to.incarnation != c.incarnation {
			continue
		}
		e.send(kindCall, b.node.i, n.i, func() {
			if !to.dead {
				to.serve(func() { to.answer(b, id, body) })
			}
		})
	}
}

// serve calls the Handler now or, if it has much to do, later. Engine.mu is held.
func (b *Backend) serve(answer func()) {
	switch {
	case b.running < maxCalled:
		b.running++
		b.goes(func() { b.answers(answer) })
	case len(b.asked) < maxWaiting:
		b.asked = append(b.asked, answer)
	default:
		b.node.dropped++
	}
}

// answers answers a call, and those that wait behind it.
func (b *Backend) answers(answer func()) {
	for answer != nil {
		answer()
		b.e.mu.Lock()
		answer = nil
		if len(b.asked) > 0 && !b.dead {
			answer, b.asked = b.asked[0], b.asked[1:]
		} else {
			b.running--
		}
		b.e.mu.Unlock()
	}
}

// answer calls the Handler and sends what it returns.
func (b *Backend) answer(to *Backend, id uint64, body []byte) {
	if b.enter(b.ctx) != nil { // waits while the node is paused
		return
	}
	b.e.mu.Unlock()
	var back []byte
	err := error(&cluster.CallError{Node: b.name, Text: "there is no Handler.Called"})
	if b.h.Called != nil {
		back, err = b.h.Called(b.ctx, to.name, body)
		switch {
		case err != nil:
			err = &cluster.CallError{Node: b.name, Text: err.Error()}
		case len(back) > maxValue:
			err = &cluster.CallError{Node: b.name, Text: "the answer is too large"}
		}
	}
	if err != nil {
		back = nil
	}
	back = bytes.Clone(back)
	if b.enter(b.ctx) != nil {
		return
	}
	defer b.e.mu.Unlock()
	b.e.send(kindCall, b.node.i, to.node.i, func() {
		if c := to.bus.calls[id]; c != nil {
			c.finish(back, err)
		}
	})
}

// finish ends a call, unless it has ended. Engine.mu is held.
func (c *call) finish(body []byte, err error) {
	select {
	case <-c.done:
	default:
		c.body, c.err = body, err
		close(c.done)
	}
}

// left ends the calls to nodes that have left the list. Engine.mu is held.
func (b *Backend) left() {
	b.hear()
	for _, id := range slices.Sorted(maps.Keys(b.bus.calls)) {
		c := b.bus.calls[id]
		if !slices.ContainsFunc(b.live, func(n cluster.Node) bool {
			return n.Name == c.name && n.Incarnation == c.incarnation
		}) {
			c.finish(nil, cluster.ErrNoNode)
		}
	}
}
