package dunlin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the end of a Broker.

// ErrStillClosing is in the chain of what Close and Shutdown return if they cannot wait for the end
// of the Broker, because code that the Broker has called has not returned, and may be what has
// called them. The Broker takes no more connections, and goes on closing. The text says which case
// it is and what to do. Call Close again to wait for the end.
var ErrStillClosing = errors.New("dunlin: the Broker is still closing")

var (
	errCalledBack = fmt.Errorf(
		"%w: it was closed by a function that a Broker has called and waits for, such as a hook, "+
			"a handler "+
			"or a Store; it ends when that function has returned. To wait for that, call Close on a "+
			"goroutine that no Broker waits for", ErrStillClosing)
	errNoReturn = fmt.Errorf(
		"%w: a hook, a handler, a Store or the Close of a net.Conn does not return, although its "+
			"context has ended. "+
			"It must not wait for the end of the Broker", ErrStillClosing)
)

// closing is what Close and Shutdown share.
type closing struct {
	drain atomic.Pointer[draining] // nil: Drain was not called, or Undrain was
	once  sync.Once
	// Closed when only the Store is left to be closed. Immutable after New, as is the next
	quiet chan struct{}
	ended chan struct{} // closed when no goroutine of the Broker is left
	left  atomic.Uint64 // how many connections have ended
	err   error         // of the Store; set before ended is closed
}

// How long Close waits for code of the program while no connection ends, and Shutdown when its
// context has ended.
const (
	closePatience    = 10 * time.Second
	shutdownPatience = time.Second
)

// These begin the names of the functions of this package in a stack, and of the journal, which
// calls the Store.
var (
	packageName = strings.TrimSuffix(nameOf(cause), "cause")
	journalName = strings.TrimSuffix(nameOf(journal.New), "New")
)

func nameOf(f any) string { return runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name() }

// calledBack says whether this package is above its caller, Close or Shutdown, in the stack: then a
// hook, or whatever else it is, has been called with a goroutine or a lock that the end of the
// Broker needs. The bodies of loops over Messages and Retained are not meant: nothing is held while
// they run.
func calledBack() bool {
	pcs := make([]uintptr, 64)
	n := runtime.Callers(3, pcs) // not Callers, calledBack, and its caller
	for n == len(pcs) {
		pcs = make([]uintptr, 2*len(pcs))
		n = runtime.Callers(3, pcs)
	}
	for frames, more := runtime.CallersFrames(pcs[:n]), n > 0; more; {
		var f runtime.Frame
		f, more = frames.Next()
		name, ours := strings.CutPrefix(f.Function, packageName)
		ours = ours || strings.HasPrefix(f.Function, journalName)
		if ours && !strings.HasSuffix(f.File, "_test.go") && !strings.Contains(name, ".Messages") &&
			!strings.Contains(name, ".Retained") {
			return true
		}
	}
	return false
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
		lock.NoneHeld("Close of a net.Listener")
		l.Close()
	}
	return early, conns
}

// Shutdown closes the listeners, sends every 5.0 client DISCONNECT with Server shutting down
// (0x8B), waits until what was queued for the wire is written, and closes the connections. A client
// that takes nothing is waited for until WriteTimeout, and one that took all has a second to close
// from its side. If ctx ends first Shutdown closes the connections at once and returns the cause of
// that. Messages that still wait for acknowledgements of the client stay in its Session, and
// outlive the Broker with a Store. Wills are published to in-process subscribers only. Otherwise
// Shutdown returns the error of Store.Close, as Close does.
//
// When it returns without ErrStillClosing no goroutine of the Broker is left. If a hook, a handler,
// a Store or a Close of a net.Conn does not return when its own context has ended, Shutdown returns
// an error with ErrStillClosing, at the latest about a second after the end of ctx. Called by such
// a function itself it returns that at once, and the Broker shuts down as it should when the
// function has returned.
func (b *Broker) Shutdown(ctx context.Context) error {
	if calledBack() {
		return b.calledBack(func() { b.shutdown(ctx) })
	}
	return b.shutdown(ctx)
}

// calledBack has f close the Broker, unless that is done.
func (b *Broker) calledBack(f func()) error {
	select {
	case <-b.closing.ended:
		return b.closing.err
	default:
		go f() // ends with the Broker: what has called Close cannot wait for it
		return errCalledBack
	}
}

func (b *Broker) shutdown(ctx context.Context) error {
	gone := make(chan struct{})
	go func() { // ends with the last reader
		defer close(gone)
		early, conns := b.shut()
		closeAll(early)
		for _, c := range conns {
			b.endConn(c, packets.Errorf(packets.ServerShuttingDown, ""))
		}
		lock.NoneHeld("a wait")
		b.serving.Wait()
	}()
	lock.NoneHeld("a wait")
	select {
	case <-gone:
	case <-ctx.Done():
		return cause(ctx, b.close(shutdownPatience, b.closing.ended))
	}
	closed := make(chan error, 1)
	go func() { // ends as Close does
		lock.NoneHeld("a wait")
		closed <- b.close(closePatience, b.closing.quiet)
	}()
	select {
	case err := <-closed:
		return err
	case <-ctx.Done():
		return cause(ctx, b.close(shutdownPatience, b.closing.ended))
	}
}

// cause returns why ctx has ended, and err with it if there is one.
func cause(ctx context.Context, err error) error {
	if err == nil {
		return context.Cause(ctx)
	}
	return errors.Join(context.Cause(ctx), err)
}

// Close closes listeners and connections at once and waits for their goroutines. It may be called
// several times, and after or during Shutdown. It returns the error of Store.Close, nil without a
// Store.
//
// A function that the Broker has called, such as a hook, a handler of Respond, a function of the
// Observer or a Store, cannot wait for the end of the Broker, which waits for it. To such a caller
// Close returns an error with ErrStillClosing at once, and the Broker closes when the function has
// returned. Close returns that error, too, if a hook or a handler has not returned ten seconds
// after its context ended, while no connection ends. For a call of the Store it waits as long as
// that takes.
func (b *Broker) Close() error {
	if calledBack() {
		return b.calledBack(func() { b.close(closePatience, b.closing.quiet) })
	}
	return b.close(closePatience, b.closing.quiet)
}

// close closes at once. It gives up waiting when until is not closed, and no connection has ended,
// for the time of patience.
func (b *Broker) close(patience time.Duration, until <-chan struct{}) error {
	lock.NoneHeld("a wait")
	b.closing.once.Do(func() {
		go b.closeAtOnce() // ends with the Broker
	})
	t := time.NewTicker(patience)
	defer t.Stop()
	for left := b.closing.left.Load(); ; {
		select {
		case <-until:
			<-b.closing.ended
			return b.closing.err
		case <-t.C:
		}
		n := b.closing.left.Load()
		if n == left {
			return errNoReturn
		}
		left = n
	}
}

// closeAtOnce is Close, called once.
func (b *Broker) closeAtOnce() {
	defer close(b.closing.ended)
	early, conns := b.shut()
	for _, c := range conns {
		c.abandon()
	}
	b.stats.taps.Close()
	b.cancel() // only now: what a hook could not decide because of that must not be answered
	closeAll(append(early, conns...))
	if b.rules.stop != nil {
		b.rules.stop()
	}
	lock.NoneHeld("a wait")
	b.serving.Wait()
	if b.loops != nil {
		b.loops.Close()
	}
	b.writers.Wait()
	b.due.Close()
	b.closeLocal()
	b.responders.Wait()
	if b.journal != nil {
		b.journal.AwaitErrands()
	}
	close(b.closing.quiet)
	if b.journal != nil {
		b.closing.err = b.journal.Close()
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
	c.out.Drop()
	c.wake()
	c.unpause()
	cancel := c.readExtra().cancel
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}
