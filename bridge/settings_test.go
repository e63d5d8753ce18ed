package bridge

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// one is a link of one Topic to a broker of a world.
func one(to string, d Direction, qos packets.QoS) Link {
	return Link{Name: to, Addresses: []string{to},
		Topics: []Topic{{Filter: "t/#", Direction: d, QoS: qos}}}
}

// put publishes at the broker itself.
func (s *spot) put(m *dunlin.Message) {
	s.w.t.Helper()
	if err := s.b.Publish(s.w.t.Context(), m); err != nil {
		s.w.t.Fatal(err)
	}
}

// has says how often a payload has come to the broker.
func (s *spot) has(payload string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[payload]
}

func (s *spot) link() LinkStats { return s.node.Stats().Links[0] }

func TestSettingsThatMakeNoSense(t *testing.T) {
	for want, edit := range map[string]func(*Link){
		"a Name of 1 to 200 bytes": func(l *Link) { l.Name = strings.Repeat("n", 201) },
		"in UTF-8":                 func(l *Link) { l.Name = "a\x00" },
		"not a valid Topic Name":   func(l *Link) { l.ClientID = "a/#" },
		"set StateTopic":           func(l *Link) { l.StateTopic = "state/+" },
		"an IP address":            func(l *Link) { l.LocalAddress = "localhost" },
		"no CleanStartHere": func(l *Link) {
			l.Start, l.CleanStartHere = StartLazy, true
		},
		"a Topic that goes out": func(l *Link) {
			l.Start, l.Topics[0].Direction = StartLazy, DirectionIn
		},
		"is not a StartType":         func(l *Link) { l.Start = StartLazy + 1 },
		"a Threshold of at least 1":  func(l *Link) { l.Threshold = -1 },
		"-1ns is negative":           func(l *Link) { l.IdleTimeout = -1 },
		"a MaxSentSize of at least ": func(l *Link) { l.MaxSentSize = 10 },
	} {
		l := one("b", DirectionOut, 1)
		edit(&l)
		_, err := New(Config{Name: "a", Links: []Link{l}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q, got %v", want, err)
		}
	}
	l := one("b", DirectionOut, 1)
	l.Name = "site 7/cloud" // a level of a topic may not be that, a topic may
	if _, err := New(Config{Name: "a", Links: []Link{l}}); err != nil {
		t.Error(err)
	}
}

func TestALazyLinkConnectsWhenEnoughWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		b := w.add("b")
		l := one("b", DirectionOut, 1)
		l.Start, l.Threshold, l.IdleTimeout = StartLazy, 3, 20*time.Second
		w.sever("a.b", true)
		a := w.add("a", l)
		time.Sleep(time.Minute)
		if s := a.link(); s.Connects+s.Failures != 0 || s.State != StateDown {
			t.Fatalf("nothing waits, and the link connects: %+v", s)
		}
		a.put(&dunlin.Message{Topic: "t/1", Payload: []byte("1"), QoS: 1})
		a.put(&dunlin.Message{Topic: "t/2", Payload: []byte("2"), QoS: 1})
		time.Sleep(time.Minute)
		if s := a.link(); s.Connects+s.Failures != 0 || s.Queued != 2 {
			t.Fatalf("two messages wait, and the link connects: %+v", s)
		}
		a.put(&dunlin.Message{Topic: "t/3", Payload: []byte("3"), QoS: 1})
		w.until("it tries", func() bool { return a.link().Failures > 1 })
		w.sever("a.b", false)
		w.until("all have come", func() bool { return b.has("1")+b.has("2")+b.has("3") == 3 })
		a.put(&dunlin.Message{Topic: "t/4", Payload: []byte("4"), QoS: 1})
		w.until("one comes while the link is up", func() bool { return b.has("4") == 1 })
		time.Sleep(15 * time.Second)
		if s := a.link(); s.State != StateUp {
			t.Fatalf("the link was idle for 15 s only: %+v", s)
		}
		time.Sleep(10 * time.Second)
		failures := a.link().Failures
		if s := a.link(); s.State != StateDown || state(b.b, "a.b") != "0" {
			t.Fatalf("the link was idle: %+v", s)
		}
		a.restart()
		time.Sleep(time.Minute)
		for range 3 {
			a.put(&dunlin.Message{Topic: "t/5", Payload: []byte("5"), QoS: 1})
		}
		w.until("they come", func() bool { return b.has("5") == 3 })
		if s := a.link(); s.Connects != 1 || s.Failures != 0 || failures == 0 {
			t.Errorf("after the restart: %+v, before: %d failures", s, failures)
		}
	})
}

// A remote broker of 3.1.1 that does not know the bridge bit is asked without it.
func TestALinkDoesWithoutTheBridgeBit(t *testing.T) {
	for _, never := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			defer w.close()
			var asked []bool
			x := newLiar(t, func(p *publisher, c *packets.Connect) {
				p.r.SetVersion(packets.V311)
				asked = append(asked, c.Bridge)
				code := packets.Success
				if c.Bridge {
					code = packets.UnsupportedProtocolVersion
				}
				b, err := (&packets.Connack{Code: code}).Append(nil, packets.V311)
				if err != nil {
					t.Error(err)
				}
				p.nc.Write(b)
				if c.Bridge {
					return
				}
				b, err = (&packets.Suback{PacketID: subscribeID,
					Codes: []packets.ReasonCode{2}}).Append(nil, packets.V311)
				if err != nil {
					t.Error(err)
				}
				p.nc.Write(b)
				p.drain()
			})
			defer x.l.Close()
			l := x.link()
			l.Version, l.DisableBridgeBit = packets.V311, never
			a := w.add("a", l)
			w.until("it is up", func() bool { return a.link().State == StateUp })
			want := []bool{true, false}
			if never {
				want = want[1:]
			}
			if s := a.link(); !slices.Equal(asked, want) || s.Failures != 0 {
				t.Errorf("asked with the bit %v, expected %v; %+v", asked, want, s)
			}
		})
	}
}

func TestMessagesAreNotRetainedWhereTheBrokerKeepsNone(t *testing.T) {
	for name, x := range map[string]struct {
		here, there, disable, wantHere, wantThere bool
	}{
		"both keep them":        {true, true, false, true, true},
		"the one here does not": {false, true, false, false, false},
		"the remote does not":   {true, false, false, false, false},
		"the link may not":      {true, true, true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				spots := map[string]*spot{}
				for _, n := range []string{"b", "a"} {
					keeps := n == "a" && x.here || n == "b" && x.there
					s := &spot{w: w, got: map[string]int{}, cfg: Config{Name: n},
						config: func(c *dunlin.Config) { c.DisableRetain = !keeps }}
					if n == "a" {
						l := one("b", DirectionBoth, 1)
						l.DisableRetain = x.disable
						l.Dial = func(ctx context.Context, to string) (net.Conn, error) {
							return w.dial(ctx, "a.b", to)
						}
						s.cfg.Links = []Link{l}
					}
					spots[n], w.spots[n] = s, s
					s.start()
				}
				w.ready()
				for n, s := range spots {
					retain := n == "a" && x.here || n == "b" && x.there
					s.put(&dunlin.Message{Topic: "t/" + n, Payload: []byte(n), QoS: 1,
						Retain: retain})
				}
				w.until("they have come", func() bool {
					return spots["a"].has("b") == 1 && spots["b"].has("a") == 1
				})
				if got := retained(spots["b"], "t/a"); got != x.wantThere {
					t.Errorf("retained there: %v", got)
				}
				if got := retained(spots["a"], "t/b"); got != x.wantHere && x.there {
					t.Errorf("retained here: %v", got)
				}
				if s := spots["a"].link(); s.Connects != 1 || s.Failures != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func retained(s *spot, topic string) (found bool) {
	for range s.b.Retained(topic) {
		found = true
	}
	return found
}

func TestAMessageThatIsTooLargeForTheRemoteBrokerIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		b := w.add("b")
		l := one("b", DirectionOut, 1)
		l.MaxSentSize = 500
		a := w.add("a", l)
		w.ready()
		large := strings.Repeat("x", 500)
		a.put(&dunlin.Message{Topic: "t/1", Payload: []byte(large), QoS: 1})
		a.put(&dunlin.Message{Topic: "t/1", Payload: []byte("small"), QoS: 1})
		w.until("the small one has come", func() bool { return b.has("small") == 1 })
		if s := a.link(); b.has(large) != 0 || s.Connects != 1 {
			t.Errorf("%d came, %+v", b.has(large), s)
		}
	})
}

// A link of 3.1.1 that only fetches is up again after a cut, although it has nothing to subscribe
// to.
func TestALinkThatOnlyFetchesComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		b := w.add("b")
		l := one("b", DirectionIn, 1)
		l.Version = packets.V311
		a := w.add("a", l)
		w.ready()
		w.sever("a.b", true)
		w.sever("a.b", false)
		w.until("it is up again", func() bool {
			return a.link().State == StateUp && a.link().Connects == 2
		})
		b.put(&dunlin.Message{Topic: "t/1", Payload: []byte("1"), QoS: 1})
		w.until("it fetches", func() bool { return a.has("1") == 1 })
		time.Sleep(10 * time.Minute)
		if s := a.link(); s.Connects != 2 {
			t.Errorf("the connection did not last: %+v", s)
		}
	})
}

// What is published before a link has ever connected waits for it, and retained messages from
// before that come as well.
func TestMessagesWaitForTheFirstConnection(t *testing.T) {
	for _, start := range []StartType{StartAutomatic, StartLazy} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			defer w.close()
			b := w.add("b")
			l := one("b", DirectionOut, 1)
			l.Start, l.Threshold = start, 2
			w.sever("a.b", true)
			a := w.add("a")
			a.put(&dunlin.Message{Topic: "t/kept", Payload: []byte("kept"), Retain: true})
			l.Dial = func(ctx context.Context, to string) (net.Conn, error) {
				return w.dial(ctx, "a.b", to)
			}
			if err := a.node.SetLink(l, true); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			for _, payload := range []string{"1", "2"} {
				a.put(&dunlin.Message{Topic: "t/1", Payload: []byte(payload), QoS: 1})
			}
			w.sever("a.b", false)
			w.until("all have come", func() bool {
				return b.has("1") == 1 && b.has("2") == 1 && retained(b, "t/kept")
			})
			w.sever("a.b", true)
			w.sever("a.b", false)
			time.Sleep(time.Minute)
			if n := b.has("kept"); n != 1 {
				t.Errorf("the retained message has come %d times", n)
			}
		})
	}
}
