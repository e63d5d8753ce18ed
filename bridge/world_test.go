package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// A world holds brokers that links connect by their names, without a network.
type world struct {
	t     *testing.T
	mu    sync.Mutex
	spots map[string]*spot
	cut   map[string]bool     // links that cannot be dialed
	conns map[string]net.Conn // of links
}

// A spot is a broker with its Node, which can be restarted.
type spot struct {
	w      *world
	cfg    Config
	store  memory.Store
	config func(*dunlin.Config)

	l    *listeners.Memory
	b    *dunlin.Broker
	node *Node
	mu   sync.Mutex
	got  map[string]int // how often each payload came
	over sync.WaitGroup
}

func newWorld(t *testing.T) *world {
	return &world{t: t, spots: map[string]*spot{}, cut: map[string]bool{},
		conns: map[string]net.Conn{}}
}

// add starts a broker. Its links are dialed by the name of the broker.
func (w *world) add(name string, links ...Link) *spot {
	for i := range links {
		id := name + "." + links[i].Name
		if links[i].Dial != nil {
			continue
		}
		links[i].Dial = func(ctx context.Context, to string) (net.Conn, error) {
			return w.dial(ctx, id, to)
		}
	}
	s := &spot{w: w, got: map[string]int{}, cfg: Config{Name: name, Links: links,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}}
	w.mu.Lock()
	w.spots[name] = s
	w.mu.Unlock()
	s.start()
	return s
}

// dial is the network. id is that of the link.
func (w *world) dial(ctx context.Context, id, to string) (net.Conn, error) {
	w.mu.Lock()
	s := w.spots[to]
	var l *listeners.Memory
	if s != nil && !w.cut[id] {
		l = s.l
	}
	w.mu.Unlock()
	if l == nil {
		return nil, errors.New("no route")
	}
	nc, err := l.DialContext(ctx, "", "")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[id] = nc
	return nc, err
}

// sever cuts the link with that id, or lets it connect again.
func (w *world) sever(id string, off bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[id] = off
	if nc := w.conns[id]; off && nc != nil {
		nc.Close()
	}
}

func (s *spot) start() {
	t := s.w.t
	t.Helper()
	s.store.Open() // fails the first time, when it is open
	cfg := dunlin.Config{Authenticator: hooks.AllowAll, Store: &s.store, Logger: s.cfg.Logger,
		MaxQueuedMessages: 100_000}
	if s.config != nil {
		s.config(&cfg)
	}
	node, err := New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	node.Install(&cfg)
	b, err := dunlin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := b.Subscribe(t.Context(), "t/#", &dunlin.SubscribeOptions{QoS: 2, Name: "watch",
		Buffer: 100_000, RetainHandling: dunlin.RetainHandlingSkip})
	if err != nil {
		t.Fatal(err)
	}
	s.over.Go(func() {
		for m := range sub.Messages() {
			s.mu.Lock()
			s.got[string(m.Payload)]++
			s.mu.Unlock()
		}
	})
	l := listeners.NewMemory()
	s.over.Go(func() { b.Serve(l) })
	s.w.mu.Lock()
	s.b, s.node, s.l = b, node, l
	s.w.mu.Unlock()
	if err := node.Start(b); err != nil {
		t.Fatal(err)
	}
}

func (s *spot) stop() {
	s.w.mu.Lock()
	l := s.l
	s.l = nil
	s.w.mu.Unlock()
	s.node.Close()
	s.b.Close()
	l.Close()
	s.over.Wait()
}

// restart ends the broker with its links and starts it with what its Store holds.
func (s *spot) restart() {
	s.stop()
	s.start()
}

// ready waits until all links of all brokers are up.
func (w *world) ready() {
	w.t.Helper()
	w.until("all links are up", func() bool {
		for _, s := range w.spots {
			for _, l := range s.node.Stats().Links {
				if l.State != StateUp {
					return false
				}
			}
		}
		return true
	})
}

// until waits in virtual time.
func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	for range 1200 {
		synctest.Wait()
		if is() {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	for name, s := range w.spots {
		w.t.Logf("%s: %+v", name, s.node.Stats())
	}
	w.t.Fatalf("it is not so after ten minutes that %s", what)
}

func (w *world) close() {
	for _, s := range w.spots {
		s.stop()
	}
}

// A publisher is a client that publishes.
type publisher struct {
	t  *testing.T
	nc net.Conn
	r  *packets.Reader
}

func (s *spot) client(id string) *publisher {
	s.w.t.Helper()
	nc, err := s.l.Dial()
	if err != nil {
		s.w.t.Fatal(err)
	}
	p := &publisher{s.w.t, nc, packets.NewReader(nc, packets.Limits{})}
	p.r.SetVersion(packets.V5)
	p.send(&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: id})
	p.read()
	return p
}

func (p *publisher) send(x packets.Packet) {
	p.t.Helper()
	b, err := x.Append(nil, packets.V5)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.nc.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *publisher) read() packets.Packet {
	p.t.Helper()
	x, err := p.r.ReadPacket()
	if err != nil {
		p.t.Fatal(err)
	}
	return x
}

// publish publishes and waits for the acknowledgements.
func (p *publisher) publish(qos packets.QoS, payload string, props packets.Properties) {
	p.t.Helper()
	m := &packets.Publish{Topic: []byte("t/x"), QoS: qos, Payload: []byte(payload),
		Properties: props}
	if qos > 0 {
		m.PacketID = 1
	}
	p.send(m)
	if qos == 0 {
		return
	}
	if a := p.read().(*packets.Ack); a.Code.Failed() {
		p.t.Fatalf("%s was refused: %v", payload, a.Code)
	}
	if qos == 2 {
		p.send(&packets.Ack{Kind: packets.TypePubrel, PacketID: 1})
		p.read()
	}
}

// bye ends the connection when the broker has read everything.
func (p *publisher) bye() {
	p.send(&packets.Disconnect{})
	io.Copy(io.Discard, p.nc)
	p.nc.Close()
}

// burst publishes n messages at each broker.
func (w *world) burst(name string, qos packets.QoS, n int) {
	w.t.Helper()
	for at, s := range w.spots {
		p := s.client("publisher")
		for i := range n {
			p.publish(qos, fmt.Sprintf("%s %s %d", at, name, i), nil)
		}
		p.bye()
	}
}

// once waits until every broker has total messages and no link has anything left, and fails if one
// came twice.
func (w *world) once(total int) {
	w.t.Helper()
	full := func() bool {
		for _, s := range w.spots {
			s.mu.Lock()
			n := len(s.got)
			s.mu.Unlock()
			if n < total {
				return false
			}
		}
		return true
	}
	w.until(fmt.Sprintf("each broker has %d messages", total), full)
	w.until("nothing is under way", func() bool {
		for _, s := range w.spots {
			for _, l := range s.node.Stats().Links {
				if l.Queued > 0 || l.Inflight > 0 {
					return false
				}
			}
		}
		return true
	})
	time.Sleep(time.Minute)
	synctest.Wait()
	for name, s := range w.spots {
		s.mu.Lock()
		if len(s.got) != total {
			w.t.Errorf("%s has %d messages, expected %d", name, len(s.got), total)
		}
		for payload, n := range s.got {
			if n != 1 {
				w.t.Errorf("%s: %q came %d times", name, payload, n)
			}
		}
		s.mu.Unlock()
	}
}
