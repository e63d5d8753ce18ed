package bridge

import (
	"context"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A liar is a remote broker that a test plays. serve has each connection, after its CONNECT.
type liar struct {
	t *testing.T
	l *listeners.Memory
}

func newLiar(t *testing.T, serve func(p *publisher, c *packets.Connect)) *liar {
	x := &liar{t, listeners.NewMemory()}
	go func() { // until the listener is closed
		for {
			nc, err := x.l.Accept()
			if err != nil {
				return
			}
			go func() { // until the link or serve ends the connection
				defer nc.Close()
				p := &publisher{t, nc, packets.NewReader(nc, packets.Limits{})}
				first, err := p.r.ReadPacket()
				if c, ok := first.(*packets.Connect); err == nil && ok {
					serve(p, c)
				}
			}()
		}
	}()
	return x
}

func (x *liar) link() Link {
	return Link{Name: "liar", Addresses: []string{"liar"}, DisableNotifications: true,
		Topics: []Topic{{Filter: "t/#", Direction: DirectionBoth, QoS: 2}},
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			return x.l.DialContext(ctx, "", "")
		}}
}

// accept answers the CONNECT and the SUBSCRIBE.
func (p *publisher) accept(present bool, props packets.Properties) {
	p.send(&packets.Connack{SessionPresent: present, Properties: props})
	for {
		x, err := p.r.ReadPacket()
		if err != nil {
			return
		}
		if s, ok := x.(*packets.Subscribe); ok {
			p.send(&packets.Suback{PacketID: s.PacketID, Codes: make([]packets.ReasonCode,
				len(s.Subscriptions))})
			return
		}
	}
}

// drain reads until the link ends the connection.
func (p *publisher) drain() {
	for {
		if _, err := p.r.ReadPacket(); err != nil {
			return
		}
	}
}

var lies = map[string]struct {
	serve func(p *publisher, c *packets.Connect)
	want  string // in LastError
}{
	"it refuses the CONNECT": {func(p *publisher, _ *packets.Connect) {
		p.send(&packets.Connack{Code: packets.BadUserNameOrPassword})
	}, "refuses the link: Bad User Name or Password"},
	"it answers nothing": {func(p *publisher, _ *packets.Connect) { p.drain() },
		"has not answered the CONNECT for 20s"},
	"it has a Session after Clean Start": {func(p *publisher, _ *packets.Connect) {
		p.accept(true, nil)
		p.send(&packets.Connack{})
		p.drain()
	}, "sent CONNACK, which a client must not get"},
	"it sends garbage": {func(p *publisher, _ *packets.Connect) {
		p.accept(false, nil)
		p.nc.Write([]byte("\xff\xff\xff\xff\xff\xff HTTP/1.1 400"))
		p.drain()
	}, "sent what it must not send"},
	"it declares a huge packet": {func(p *publisher, _ *packets.Connect) {
		p.accept(false, nil)
		p.nc.Write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f})
		p.drain()
	}, "Packet too large"},
	"it refuses the subscription": {func(p *publisher, _ *packets.Connect) {
		p.send(&packets.Connack{})
		p.send(&packets.Suback{PacketID: subscribeID, Codes: []packets.ReasonCode{0x87}})
		p.drain()
	}, `refuses the subscription to "t/#": Not authorized`},
	"it answers no SUBSCRIBE": {func(p *publisher, _ *packets.Connect) {
		p.send(&packets.Connack{})
		for {
			if x, err := p.r.ReadPacket(); err != nil {
				return
			} else if x.Type() == packets.TypePingreq {
				p.send(&packets.Pingresp{})
			}
		}
	}, "has not answered the SUBSCRIBE"},
	"it says nothing more": {func(p *publisher, _ *packets.Connect) {
		p.accept(false, nil)
		p.drain()
	}, "was silent for"},
	"it takes no QoS 2": {func(p *publisher, _ *packets.Connect) {
		p.accept(false, packets.Properties(nil).AppendUint(packets.MaximumQoS, 1))
	}, "takes QoS 1 at most: lower the QoS of the topics"},
	"it uses an alias": {func(p *publisher, _ *packets.Connect) {
		p.accept(false, nil)
		p.send(&packets.Publish{Topic: []byte("t/x"),
			Properties: packets.Properties(nil).AppendUint(packets.TopicAlias, 1)})
		p.drain()
	}, "Topic Alias"},
	"it goes away": {func(p *publisher, _ *packets.Connect) {
		p.accept(false, nil)
		p.send(&packets.Disconnect{Code: packets.ServerShuttingDown})
		p.drain()
	}, "has ended the connection: Server shutting down"},
	"it sends more at a time than it may": {func(p *publisher, _ *packets.Connect) {
		p.accept(false, nil)
		go p.drain() // ends with the connection
		for id := range uint16(2000) {
			b, _ := (&packets.Publish{Topic: []byte("t/x"), QoS: 2, PacketID: id + 1}).Append(nil,
				packets.V5)
			if _, err := p.nc.Write(b); err != nil {
				return
			}
		}
		time.Sleep(time.Minute)
	}, "Receive Maximum exceeded"},
	"it floods, and takes nothing": {func(p *publisher, _ *packets.Connect) {
		p.accept(false, nil)
		b, _ := (&packets.Publish{Topic: []byte("t/x"), QoS: 1, PacketID: 1}).Append(nil,
			packets.V5)
		for range 5_000 {
			if _, err := p.nc.Write(b); err != nil {
				return
			}
		}
		time.Sleep(time.Minute)
	}, "Receive Maximum exceeded|write: |silent|the broker here"},
}

func TestALyingBrokerIsToldFromAGoodOne(t *testing.T) {
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer time.Sleep(2 * time.Minute) // the liar ends
				x := newLiar(t, lie.serve)
				defer x.l.Close()
				defer w.close()
				s := w.add("a", x.link())
				w.until("the link names the error", func() bool {
					said := s.node.Stats().Links[0].LastError
					return slices.ContainsFunc(strings.Split(lie.want, "|"), func(one string) bool {
						return strings.Contains(said, one)
					})
				})
				if n := s.node.Stats().Links[0].Failures; n == 0 {
					t.Error("the failure was not counted")
				}
			})
		})
	}
}

// A broker that acknowledges nothing gets a window of messages, is left, and gets them again.
func TestMessagesWaitForABrokerThatDoesNotAcknowledge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		got := make(chan string, 100_000)
		good := make(chan struct{})
		x := newLiar(t, func(p *publisher, _ *packets.Connect) {
			p.accept(false, nil)
			for {
				m, err := p.r.ReadPacket()
				if err != nil {
					return
				}
				switch m := m.(type) {
				case *packets.Pingreq:
					p.send(&packets.Pingresp{})
				case *packets.Publish:
					select {
					case <-good:
						got <- string(m.Payload)
						p.send(&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID})
					default: // lies: acknowledgements of what it has not got
						p.send(&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID + 1000})
						p.send(&packets.Ack{Kind: packets.TypePubcomp, PacketID: m.PacketID + 2000})
					}
				}
			}
		})
		defer x.l.Close()
		defer w.close()
		s := w.add("a", x.link())
		w.ready()
		w.burst("m", 1, 500)
		w.until("the link gives up", func() bool {
			st := s.node.Stats().Links[0]
			if st.Inflight > 20 {
				t.Fatalf("%d messages are under way, the window is 20", st.Inflight)
			}
			return strings.Contains(st.LastError, "has not acknowledged")
		})
		close(good)
		seen := map[string]bool{}
		w.until("all have come", func() bool {
			for len(got) > 0 {
				seen[<-got] = true
			}
			return len(seen) == 500
		})
	})
}

// What a link holds does not grow with what it carries.
func TestALinkHoldsNoMoreThanItsBuffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		x := newLiar(t, func(p *publisher, _ *packets.Connect) {
			p.accept(false, nil)
			b, _ := (&packets.Publish{Topic: []byte("other/x"),
				Payload: make([]byte, 60_000)}).Append(nil, packets.V5)
			for range 5000 { // 300 MB
				if _, err := p.nc.Write(b); err != nil {
					return
				}
			}
			p.drain()
		})
		defer x.l.Close()
		defer w.close()
		s := w.add("a", x.link())
		w.until("the flood is over", func() bool {
			return s.node.Stats().Links[0].Unmapped >= 5000
		})
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if m.HeapAlloc > 64<<20 {
			t.Errorf("%d bytes are in use", m.HeapAlloc)
		}
	})
}

func TestTheNextAddressStandsInForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		b, c := w.add("b"), w.add("c")
		l := both("b", packets.QoS2)
		l.Addresses, l.Remote = []string{"b", "c"}, ""
		a := w.add("a", l)
		w.ready()
		at := func() string { return a.node.Stats().Links[0].Address }
		if at() != "b" {
			t.Fatalf("it is connected to %s", at())
		}
		b.stop()
		w.until("it is connected to c", func() bool {
			return at() == "c" && a.node.Stats().Links[0].State == StateUp
		})
		p := a.client("publisher")
		for i := range 50 {
			p.publish(2, string(rune('A'+i)), nil)
		}
		p.bye()
		w.until("c has the messages", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.got) == 50
		})
		b.start()
		w.until("it is back at b", func() bool {
			return at() == "b" && a.node.Stats().Links[0].State == StateUp
		})
		p = a.client("publisher")
		for i := range 50 {
			p.publish(2, string(rune('a'+i)), nil)
		}
		p.bye()
		w.until("b has the new messages", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.got) >= 50
		})
	})
}

// state returns the retained notification of a link.
func state(b *dunlin.Broker, id string) string {
	for m := range b.Retained("$SYS/broker/connection/" + id + "/state") {
		return string(m.Payload)
	}
	return ""
}

func TestBothBrokersAreToldOfTheStateOfALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.build(graphs["two"], nil)
		a, b := w.spots["a"], w.spots["b"]
		w.until("both say 1", func() bool {
			return state(a.b, "a.to-b0") == "1" && state(b.b, "a.to-b0") == "1"
		})
		w.sever("a.to-b0", true)
		w.until("both say 0", func() bool {
			return state(a.b, "a.to-b0") == "0" && state(b.b, "a.to-b0") == "0"
		})
		w.sever("a.to-b0", false)
		w.until("both say 1 again", func() bool {
			return state(a.b, "a.to-b0") == "1" && state(b.b, "a.to-b0") == "1"
		})
		a.node.Close()
		if here, there := state(a.b, "a.to-b0"), state(b.b, "a.to-b0"); here != "0" ||
			there != "0" {
			t.Errorf("after Close the brokers say %q and %q", here, there)
		}
	})
}

func TestPrefixesRenameTopicsBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		b := w.add("b")
		l := both("b", packets.QoS2)
		l.Topics = []Topic{
			{Filter: "x/#", Direction: DirectionOut, QoS: 1, LocalPrefix: "t/",
				RemotePrefix: "t/from-a/"},
			{Filter: "y/+", Direction: DirectionIn, LocalPrefix: "t/from-b/", RemotePrefix: "t/"},
			{Direction: DirectionOut, QoS: 2, LocalPrefix: "t/one", RemotePrefix: "t/two"},
		}
		a := w.add("a", l)
		w.ready()
		subscribe := func(s *spot) *dunlin.Subscription {
			sub, err := s.b.Subscribe(t.Context(), "t/#", &dunlin.SubscribeOptions{QoS: 2})
			if err != nil {
				t.Fatal(err)
			}
			return sub
		}
		atA, atB := subscribe(a), subscribe(b)
		next := func(sub *dunlin.Subscription, topic string, qos packets.QoS) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if m, err := sub.Next(ctx); err != nil || m.Topic != topic || m.QoS != qos {
				t.Fatalf("expected %s with QoS %d, got %+v, %v", topic, qos, m, err)
			}
		}
		for _, topic := range []string{"t/x/1", "t/one", "t/one/more"} {
			if err := a.b.Publish(t.Context(), &dunlin.Message{Topic: topic, QoS: 2}); err != nil {
				t.Fatal(err)
			}
			next(atA, topic, 2)
		}
		next(atB, "t/from-a/x/1", 1)
		next(atB, "t/two", 2)
		if err := b.b.Publish(t.Context(), &dunlin.Message{Topic: "t/y/2", QoS: 2}); err != nil {
			t.Fatal(err)
		}
		next(atB, "t/y/2", 2)
		next(atA, "t/from-b/y/2", 0)
	})
}

func TestAllPropertiesOfAMessageCrossALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.build(graphs["two"], nil)
		sub, err := w.spots["b"].b.Subscribe(t.Context(), "t/#", nil)
		if err != nil {
			t.Fatal(err)
		}
		props := packets.Properties(nil).AppendUint(packets.PayloadFormatIndicator, 1).
			AppendUint(packets.MessageExpiryInterval, 1000).
			AppendText(packets.ContentType, "text/plain").AppendText(packets.ResponseTopic, "r").
			AppendText(packets.CorrelationData, "c").AppendUser("k", "v").AppendUser("k", "w").
			AppendUser(idProperty, "0123456789abcdef").AppendUser(pathProperty, "b")
		p := w.spots["a"].client("publisher") // which is not a link: its mark does not count
		p.publish(1, "x", props)
		p.bye()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		m, err := sub.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		format, _ := m.Properties.Uint(packets.PayloadFormatIndicator)
		expiry, ok := m.Expiry()
		if format != 1 || !ok || expiry < 900*time.Second || m.ContentType() != "text/plain" ||
			m.ResponseTopic() != "r" || string(m.CorrelationData()) != "c" {
			t.Errorf("%v came", m.Properties)
		}
		var users []string
		for k, v := range m.Properties.User() {
			users = append(users, k+"="+v)
		}
		mark := readMark(m.Properties)
		if len(users) != 4 || users[0] != "k=v" || users[1] != "k=w" || mark.path != "a,b" ||
			mark.id == 0x0123456789abcdef {
			t.Errorf("the User Properties are %v", users)
		}
	})
}
