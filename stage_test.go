package dunlin_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// This file is a stage for Explain, Ended and Tap: a Broker with clients on pipes, in virtual time.

// quietly logs nothing.
var quietly = slog.New(slog.DiscardHandler)

// A stage is a Broker with clients on pipes, in virtual time.
type stage struct {
	t     *testing.T
	b     *dunlin.Broker
	store *holdStore // nil: none
	peers []*peer
}

// at is an address of a client.
func at(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 4000} }

// pipeEnd is the broker's end of a pipe, with an address.
type pipeEnd struct {
	net.Conn
	from net.Addr
}

func (p pipeEnd) RemoteAddr() net.Addr { return p.from }
func (p pipeEnd) LocalAddr() net.Addr  { return at("127.0.0.1") }

// A peer is the client's end. Its goroutine reads, and acknowledges unless it is told not to.
type peer struct {
	t     *testing.T
	nc    net.Conn
	v     packets.Version
	mu    sync.Mutex
	got   []packets.Packet
	acks  func(p *packets.Publish) packets.Packet // nil: as usual
	gate  gate                                    // stopped: the peer does not read
	ended chan error                              // what ServeConn has returned
}

// pipe begins a connection without a CONNECT.
func (s *stage) pipe(from net.Addr) *peer {
	mine, its := net.Pipe()
	p := &peer{t: s.t, nc: mine, v: packets.V5, ended: make(chan error, 1)}
	go func() { p.ended <- s.b.ServeConn(s.t.Context(), pipeEnd{its, from}) }()
	go p.read()
	s.peers = append(s.peers, p)
	return p
}

func (p *peer) read() {
	r := packets.NewReader(p.nc, packets.Limits{})
	r.SetVersion(p.v)
	for {
		p.gate.pass()
		q, err := r.ReadPacket()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.got = append(p.got, q)
		acks := p.acks
		p.mu.Unlock()
		m, ok := q.(*packets.Publish)
		switch {
		case !ok || m.QoS == 0:
		case acks != nil:
			if a := acks(m); a != nil {
				go p.write(a)
			}
		case m.QoS == 1:
			go p.write(&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID})
		}
	}
}

func (p *peer) send(q packets.Packet) {
	p.write(q)
	synctest.Wait()
}

// write fails where the broker has closed, as some tests want.
func (p *peer) write(q packets.Packet) {
	if b, err := q.Append(nil, p.v); err == nil {
		p.nc.Write(b)
	}
}

func (p *peer) raw(b []byte) {
	p.nc.Write(b)
	synctest.Wait()
}

// never acknowledges nothing.
func never(*packets.Publish) packets.Packet { return nil }

// an edit changes a CONNECT.
type edit = func(c *packets.Connect)

func lasting(seconds uint32) edit {
	return func(c *packets.Connect) {
		c.CleanStart = false
		c.Properties = c.Properties.AppendUint(packets.SessionExpiryInterval, seconds)
	}
}

func as(user string) edit {
	return func(c *packets.Connect) { c.HasUsername, c.Username = true, user }
}

// connect begins a connection with a CONNECT.
func (s *stage) connect(id string, edits ...edit) *peer {
	return s.connectFrom(at("10.0.0.1"), id, edits...)
}

func (s *stage) connectFrom(from net.Addr, id string, edits ...edit) *peer {
	p := s.pipe(from)
	c := &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: id}
	for _, f := range edits {
		f(c)
	}
	p.send(c)
	return p
}

func (p *peer) subscribe(filter string, qos packets.QoS,
	edits ...func(s *packets.Subscription)) *peer {
	x := packets.Subscription{Filter: filter, QoS: qos}
	for _, f := range edits {
		f(&x)
	}
	p.send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{x}})
	return p
}

func (p *peer) disconnect() {
	p.send(&packets.Disconnect{})
	synctest.Wait()
}

func (s *stage) publish(topic string, qos packets.QoS, edits ...func(m *dunlin.Message)) {
	m := &dunlin.Message{Topic: topic, QoS: qos, Payload: []byte("payload")}
	for _, f := range edits {
		f(m)
	}
	s.b.Publish(s.t.Context(), m) // some tests want it to fail
	synctest.Wait()
}

func retain(m *dunlin.Message) { m.Retain = true }

func large(n int) func(m *dunlin.Message) {
	return func(m *dunlin.Message) { m.Payload = make([]byte, n) }
}

// holdStore is a store whose commits can be made to wait or to fail.
type holdStore struct {
	memory.Store
	gate gate
	mu   sync.Mutex
	err  error
}

func (h *holdStore) Commit(ctx context.Context, ops []store.Op) error {
	h.gate.pass()
	h.mu.Lock()
	err := h.err
	h.mu.Unlock()
	if err != nil {
		return err
	}
	return h.Store.Commit(ctx, ops)
}

func (h *holdStore) Close() error { return nil }

func (h *holdStore) hold() { h.gate.stop() }

func (h *holdStore) fail(err error) {
	h.mu.Lock()
	h.err = err
	h.mu.Unlock()
}

// A gate lets pass unless it is told to stop.
type gate struct {
	mu   sync.Mutex
	wait chan struct{} // nil: it is open
}

func (g *gate) pass() {
	g.mu.Lock()
	wait := g.wait
	g.mu.Unlock()
	if wait != nil {
		<-wait
	}
}

func (g *gate) stop() {
	g.mu.Lock()
	g.wait = make(chan struct{})
	g.mu.Unlock()
}

func (g *gate) open() {
	g.mu.Lock()
	if g.wait != nil {
		close(g.wait)
		g.wait = nil
	}
	g.mu.Unlock()
}

// verified names each client by its User Name.
var verified = hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
	r.Grant.Identity.Principal = r.Client.Username
	if r.Client.Username == "mallory" {
		return packets.Errorf(packets.BadUserNameOrPassword, "no such user")
	}
	r.Grant.MountPoint = map[string]string{"tenant": "tenants/7/"}[r.Client.Username]
	return nil
})

func rules(t *testing.T, text string) *acl.ACL {
	l, err := acl.Parse(strings.NewReader(text), "acl.conf")
	require.NoError(t, err)
	return acl.New(l)
}

func withStore(_ *testing.T, c *dunlin.Config) { c.Store = new(holdStore) }

func onStage(t *testing.T, config func(t *testing.T, c *dunlin.Config), does func(s *stage)) {
	synctest.Test(t, func(t *testing.T) {
		cfg := dunlin.Config{
			Authenticator: hooks.AllowAll, Logger: quietly,
		}
		if config != nil {
			config(t, &cfg)
		}
		b, err := dunlin.New(cfg)
		require.NoError(t, err)
		s := &stage{t: t, b: b}
		s.store, _ = cfg.Store.(*holdStore)
		defer func() {
			if s.store != nil {
				s.store.gate.open()
			}
			for _, p := range s.peers {
				p.gate.open()
				p.nc.Close()
			}
			b.Close()
		}()
		does(s)
	})
}
