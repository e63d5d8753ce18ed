package crash

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// A mortal is a Store in memory that dies with its broker. What was committed before stays.
type mortal struct {
	*memory.Store
	dead *atomic.Bool
}

var errDead = errors.New("the broker is dead")

func (m mortal) Commit(ctx context.Context, ops []store.Op) error {
	if m.dead.Load() {
		return errDead
	}
	return m.Store.Commit(ctx, ops)
}

func (m mortal) Close() error { return nil }

// A severed is a listener whose connections can all be cut.
type severed struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
	cut   bool
}

func (l *severed) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns = append(l.conns, nc); l.cut {
		nc.Close()
	}
	return nc, nil
}

// sever cuts all connections, and those that come.
func (l *severed) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for _, nc := range l.conns {
		nc.Close()
	}
}

// A brief is a broker in this process that does not live long.
type brief struct {
	b      *dunlin.Broker
	l      *severed
	dead   *atomic.Bool
	served chan error
}

func begin(t *testing.T, st *memory.Store, addr *atomic.Value) *brief {
	t.Helper()
	x := &brief{dead: new(atomic.Bool), served: make(chan error, 1)}
	var err error
	x.b, err = dunlin.New(dunlin.Config{
		Authenticator: hooks.AllowAll, Logger: slog.New(slog.DiscardHandler),
		Store: mortal{st, x.dead}, MaxQueuedMessages: -1, MaxQueuedBytes: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x.l = &severed{Listener: l}
	go func() { x.served <- x.b.Serve(x.l) }()
	addr.Store(x.l.Addr().String())
	return x
}

// kill ends the broker without another word to its store.
func (x *brief) kill() {
	x.l.sever()
	x.dead.Store(true)
	x.b.Close()
	<-x.served
}

// TestKillInProcess is TestKill with brokers in this process: no disk and no start of a process
// slows it down, so that a kill meets many more moments.
func TestKillInProcess(t *testing.T) {
	tr := newTrial("")
	tr.haste = 15 // as the brokers live for a fifteenth of the time
	rnd := rand.New(rand.NewPCG(tr.seed, 0))
	st := new(memory.Store)
	x := begin(t, st, &tr.addr)
	tr.attend(t)
	n := 5 * kills(t)
	began := time.Now()
	leave := func() {}
	for i := range n {
		if i%awayFor == awayFor-1 && tr.offline.quit == nil {
			leave = tr.visit()
		}
		time.Sleep(time.Duration(1+rnd.IntN(40)) * time.Millisecond)
		x.kill()
		x = begin(t, st, &tr.addr)
		if tr.offline.quit != nil && tr.behind(tr.offline) < 256 {
			leave()
			tr.drained++
		}
		if len(tr.errs.all()) > 0 {
			t.Logf("after %d kills:", i+1)
			break
		}
	}
	close(tr.stop)
	if tr.offline.quit == nil {
		leave = tr.visit()
	}
	f := tr.finish(t, leave)
	x.b.Close()
	t.Logf("%d kills, %d acknowledged, each for %d subscribers: %d lost, %d QoS 2 twice, %d out "+
		"of order, %d QoS 1 again; %v, seed %d", n,
		tr.acked(), len(tr.subscribers), f.lost, f.twice, f.disorder, f.repeated,
		time.Since(began).Round(time.Second), tr.seed)
}
