package dunlin

import (
	"cmp"
	"context"
	"errors"
	"net"
	"sync"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the end of a Broker.

// closing is what Close and Shutdown share.
type closing struct {
	once  sync.Once
	ended chan struct{} // closed when no goroutine of the Broker is left. Immutable after New
	err   error         // of the Store; set before ended is closed
}

// shut takes no more connections, closes the listeners, and returns the connections that there are.
// Those that are not accepted are dismissed, and the caller closes them.
func (b *Broker) shut() (early, conns []*conn) {
	var ls []net.Listener
	b.mu.Lock()
	b.closed = true
	for l := range b.listeners {
		ls = append(ls, l)
	}
	for c := range b.early {
		b.dismissLocked(c)
		early = append(early, c)
	}
	for c := range b.conns {
		conns = append(conns, c)
	}
	b.mu.Unlock()
	for _, l := range ls {
		l.Close()
	}
	return early, conns
}

// Shutdown closes the listeners, sends every 5.0 client DISCONNECT with Server shutting down (0x8B), waits until what was queued for the wire is
// written, and closes the connections. A client that takes nothing is waited for until WriteTimeout, and one that took all has a second to
// close from its side. If ctx ends first Shutdown closes the connections at once and returns the cause of that. Messages that still wait for
// acknowledgements of the client stay in its Session, and outlive the Broker with a Store. Wills are published to in-process subscribers
// only. Otherwise Shutdown returns the error of Store.Close, as Close does.
//
// When it returns no goroutine of the Broker is left. So it waits, even beyond ctx, for a hook, a handler or a call of the Store that does not return
// when its own context ends.
func (b *Broker) Shutdown(ctx context.Context) error {
	early, conns := b.shut()
	closeAll(early)
	for _, c := range conns {
		b.end(c, packets.Errorf(packets.ServerShuttingDown, ""))
	}
	done := make(chan struct{})
	go func() { // ends when the last reader does, which Close sees to
		b.serving.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	closed := b.Close()
	<-done
	if err != nil && closed != nil {
		return errors.Join(err, closed)
	}
	return cmp.Or(err, closed)
}

// Close closes listeners and connections at once and waits for their goroutines. It may be called several times, and after or during Shutdown. It
// returns the error of Store.Close, nil without a Store.
func (b *Broker) Close() error {
	b.closing.once.Do(func() {
		b.closeAtOnce()
		close(b.closing.ended)
	})
	<-b.closing.ended
	return b.closing.err
}

// closeAtOnce is Close, called once.
func (b *Broker) closeAtOnce() {
	early, conns := b.shut()
	for _, c := range conns {
		c.abandon()
	}
	b.cancel() // only now: what a hook could not decide because of that must not be answered
	closeAll(append(early, conns...))
	if b.rules.stop != nil {
		b.rules.stop()
	}
	b.serving.Wait()
	b.writers.Wait()
	b.due.Close()
	b.closeLocal()
	b.responders.Wait()
	if b.journal != nil {
		b.closing.err = b.journal.close()
	}
}

// abandon makes an accepted connection end without another word: nothing is written to the client
// any more. It then ends the context of the hooks. The caller closes the net.Conn.
func (c *conn) abandon() {
	s := c.sess
	s.mu.Lock()
	if c.stopping == nil {
		c.stopping = packets.Errorf(packets.ServerShuttingDown, "")
	}
	c.out.dead = true
	c.out.dropHeld()
	c.wake()
	c.unpause()
	cancel := c.few().cancel
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}
