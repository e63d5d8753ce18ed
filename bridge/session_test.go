package bridge

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// The remote broker forgets its Session. Its next message has the Packet Identifier of one that the
// Session here still knows, and is a new one all the same.
func TestAnIdentifierOfAForgottenSessionIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := 0
		x := newLiar(t, func(p *publisher, _ *packets.Connect) {
			n++
			p.accept(false, nil)
			p.send(&packets.Publish{Topic: []byte("t/x"), Payload: fmt.Append(nil, n), QoS: 2,
				PacketID: 1})
			for {
				m, err := p.r.ReadPacket()
				if err != nil {
					return
				}
				if a, ok := m.(*packets.Ack); ok && a.Kind == packets.TypePubrec && n < 3 {
					return // without a PUBREL
				}
			}
		})
		defer x.l.Close()
		defer w.close()
		s := w.add("a", x.link())
		w.until("all three have come", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.got["1"] == 1 && s.got["2"] == 1 && s.got["3"] == 1
		})
	})
}

// The broker here forgets its Session. The remote one still knows its Packet Identifiers.
func TestTheRemoteBrokerIsToldThatIdentifiersAreFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		known, present, answer := map[uint16]bool{}, false, false
		got := make(chan string, 100)
		x := newLiar(t, func(p *publisher, _ *packets.Connect) {
			p.accept(present, nil)
			present = true
			for {
				m, err := p.r.ReadPacket()
				if err != nil {
					return
				}
				switch m := m.(type) {
				case *packets.Publish:
					if !known[m.PacketID] {
						got <- string(m.Payload)
					}
					known[m.PacketID] = true
					if answer {
						p.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: m.PacketID})
					}
				case *packets.Ack: // PUBREL
					delete(known, m.PacketID)
					p.send(&packets.Ack{Kind: packets.TypePubcomp, PacketID: m.PacketID})
				}
			}
		})
		defer x.l.Close()
		defer w.close()
		s := &spot{w: w, got: map[string]int{}, cfg: Config{Name: "a", Links: []Link{x.link()}},
			config: func(c *dunlin.Config) { c.Store = nil }}
		w.spots["a"] = s
		s.start()
		w.ready()
		publish := func(payload string) {
			t.Helper()
			p := s.client("publisher")
			p.publish(2, payload, nil)
			p.bye()
			synctest.Wait()
			select {
			case m := <-got:
				if m != payload {
					t.Fatalf("expected %q, got %q", payload, m)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%q did not come", payload)
			}
		}
		publish("before")
		answer = true
		s.restart() // without a Store
		w.ready()
		publish("after")
		w.until("it is acknowledged", func() bool {
			l := s.node.Stats().Links[0]
			return l.Acknowledged == 1 && l.Inflight == 0
		})
	})
}

// With an Authenticator and an Authorizer of the program a link needs no account, and nobody else
// may use its Client Identifier.
func TestALinkPassesTheRulesOfItsBrokerAndNobodyElseDoesInItsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		b := w.add("b")
		l := both("b", packets.QoS2)
		l.Name = "b"
		s := &spot{w: w, got: map[string]int{}, cfg: Config{Name: "a", Links: []Link{l}},
			config: func(c *dunlin.Config) {
				c.Authenticator = hooks.AuthenticatorFunc(
					func(_ context.Context, r *hooks.ConnectRequest) error {
						if r.Client.Username == localUser || r.Client.Username == "good" {
							return nil
						}
						return packets.Errorf(packets.NotAuthorized, "no")
					})
				c.Authorizer = hooks.AuthorizerFunc(func(context.Context,
					*hooks.AccessRequest) error {
					return packets.Errorf(packets.NotAuthorized, "no")
				})
			}}
		s.cfg.Links[0].Dial = func(ctx context.Context, to string) (net.Conn, error) {
			return w.dial(ctx, "a.b", to)
		}
		w.spots["a"] = s
		s.start()
		w.ready()
		for _, id := range []string{"$bridge/b", "$bridge/other"} {
			nc, err := s.l.Dial()
			if err != nil {
				t.Fatal(err)
			}
			p := &publisher{t, nc, packets.NewReader(nc, packets.Limits{})}
			p.r.SetVersion(packets.V5)
			p.send(&packets.Connect{Version: packets.V5, ClientID: id, HasUsername: true,
				Username: localUser, HasPassword: true, Password: []byte("guess")})
			if a := p.read().(*packets.Connack); a.Code != packets.ClientIdentifierNotValid {
				t.Errorf("%s: %v", id, a.Code)
			}
			nc.Close()
		}
		p := b.client("publisher")
		p.publish(2, "x", nil)
		p.bye()
		w.until("the message has come, and the link is still up", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			st := s.node.Stats().Links[0]
			return s.got["x"] == 1 && st.State == StateUp && st.Connects == 1
		})
	})
}

func TestALinkThatStartsOnceStaysDownAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.build(graphs["two"], func(l *Link) { l.Start = StartOnce })
		w.sever("a.to-b0", true)
		w.sever("a.to-b0", false)
		time.Sleep(10 * time.Minute)
		if s := w.spots["a"].node.Stats().Links[0]; s.State != StateStopped || s.Connects != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// slow delays what is read from a connection, without limiting how much is on the way.
type slow struct {
	net.Conn
	chunks chan chunk
	rest   []byte
}

type chunk struct {
	b   []byte
	due time.Time
}

func newSlow(nc net.Conn, delay time.Duration) *slow {
	s := &slow{Conn: nc, chunks: make(chan chunk, 100_000)}
	go func() { // ends with the connection
		defer close(s.chunks)
		for {
			b := make([]byte, 4096)
			n, err := nc.Read(b)
			if n > 0 {
				s.chunks <- chunk{b[:n], time.Now().Add(delay)}
			}
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *slow) SetReadDeadline(time.Time) error { return nil }

func (s *slow) Read(b []byte) (int, error) {
	if len(s.rest) == 0 {
		c, ok := <-s.chunks
		if !ok {
			return 0, net.ErrClosed
		}
		time.Sleep(time.Until(c.due))
		s.rest = c.b
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// A link with a round trip of 50 ms carries a Window in each, and no more. DUNLIN_FULL=1 sends
// 100,000 messages.
func TestTheWindowExplainsTheTimeThatMessagesTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		b := w.add("b")
		l := both("b", packets.QoS1)
		l.Window = 200
		l.Dial = func(ctx context.Context, to string) (net.Conn, error) {
			nc, err := w.dial(ctx, "a.to-b", to)
			if err != nil {
				return nil, err
			}
			return newSlow(nc, 50*time.Millisecond), nil
		}
		a := w.add("a", l)
		w.ready()
		n := 10_000
		if os.Getenv("DUNLIN_FULL") != "" {
			n = 100_000
		}
		begin := time.Now()
		for i := range n {
			m := &dunlin.Message{Topic: "t/x", Payload: fmt.Append(nil, i), QoS: 1}
			if err := a.b.Publish(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
		var took time.Duration
		for took == 0 {
			time.Sleep(10 * time.Millisecond)
			if s := a.node.Stats().Links[0]; s.Acknowledged == uint64(n) {
				took = time.Since(begin)
			}
		}
		want := time.Duration(n/200) * 50 * time.Millisecond
		if took < want || took > want*3/2 {
			t.Errorf("%d messages took %v, the window and the round trip explain %v", n, took, want)
		}
		t.Logf("%d messages took %v, the window and the round trip explain %v", n, took, want)
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.got) != n {
			t.Errorf("%d messages have come", len(b.got))
		}
	})
}
