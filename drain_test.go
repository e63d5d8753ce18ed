package dunlin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// drained is what a call of Drain has returned.
type drained struct {
	moved int
	err   error
}

// drain calls Drain on a goroutine of its own.
func (st *stage) drain(ctx context.Context, o DrainOptions) <-chan drained {
	done := make(chan drained, 1)
	go func() {
		moved, err := st.b.Drain(ctx, o)
		done <- drained{moved, err}
	}()
	synctest.Wait()
	return done
}

// farewells returns the DISCONNECTs that have come, and whether the connection has ended.
func (p *peerConn) farewells() (all []*packets.Disconnect) {
	for _, q := range p.got() {
		if d, ok := q.(*packets.Disconnect); ok {
			all = append(all, d)
		}
	}
	return all
}

func TestDrainMovesClientsAtItsRate(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		var peers []*peerConn
		for i := range 100 {
			v, id := packets.V5, fmt.Sprint("c", i)
			if i%3 == 0 {
				v = packets.V311
			}
			peers = append(peers, st.durable(id, v))
		}
		sub := mustSubscribe(t, st.b, "t", nil)
		require.NoError(t, st.b.Ready())
		began := time.Now()
		o := DrainOptions{PerSecond: 10, ServerReference: "other.example:1883"}
		done := st.drain(context.Background(), o)
		require.ErrorIs(t, st.b.Ready(), ErrDraining)
		require.NoError(t, st.b.Healthy(), "it need not be restarted")

		late := st.dial("late", packets.V5, true, 0)
		refused := late.want(packets.TypeConnack)[0].(*packets.Connack)
		require.Equal(t, packets.UseAnotherServer, refused.Code)
		to, _ := refused.Properties.Text(packets.ServerReference)
		require.Equal(t, "other.example:1883", to)
		older := st.dial("older", packets.V311, true, 0)
		refused = older.want(packets.TypeConnack)[0].(*packets.Connack)
		require.Equal(t, packets.ServerUnavailable, refused.Code)

		time.Sleep(5*time.Second - 1)
		synctest.Wait()
		require.InDelta(t, 60, st.b.Stats().Connections, 2,
			"half of the time, half of the clients, and some have a second to close")
		got := <-done
		require.NoError(t, got.err)
		require.Equal(t, 100, got.moved)
		require.InDelta(t, 10, time.Since(began).Seconds(), 1.5)
		for i, p := range peers {
			require.True(t, p.ended())
			told := p.farewells()
			if p.v == packets.V311 {
				require.Empty(t, told)
				continue
			}
			require.Len(t, told, 1)
			require.Equal(t, packets.UseAnotherServer, told[0].Code)
			to, _ := told[0].Properties.Text(packets.ServerReference)
			require.Equal(t, "other.example:1883", to)
			_, kept := st.b.Session(fmt.Sprint("c", i))
			require.True(t, kept, "Sessions are kept")
		}
		require.NoError(t, st.b.Publish(context.Background(), &Message{Topic: "t"}))
		require.NotNil(t, <-sub.c(), "the program goes on")

		require.ErrorIs(t, st.b.Ready(), ErrDraining, "until it is told otherwise")
		st.b.Undrain()
		require.NoError(t, st.b.Ready())
		c := st.dial("c1", packets.V5, false, 3600)
		require.True(t, c.want(packets.TypeConnack)[0].(*packets.Connack).SessionPresent)
	})
}

// c yields what the Subscription gets.
func (sub *Subscription) c() <-chan *Message {
	all := make(chan *Message, 1)
	go func() {
		m, err := sub.Next(context.Background())
		if err == nil {
			all <- &m.Message
		}
		close(all)
	}()
	return all
}

func TestDrainTellsClientsThatTheServerHasMoved(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		c := st.durable("c", packets.V5)
		got := <-st.drain(context.Background(), DrainOptions{Moved: true})
		require.Equal(t, drained{moved: 1}, got)
		told := c.farewells()
		require.Equal(t, packets.ServerMoved, told[0].Code)
		require.Empty(t, told[0].Properties)
	})
}

// A client goes when nothing is under way for it, or when it has had its time.
func TestDrainWaitsForWhatIsUnderWay(t *testing.T) {
	for _, tt := range []struct {
		name   string
		begins func(p, other *peerConn)
		ends   func(p *peerConn)
	}{
		{"a delivery that is not acknowledged", func(p, other *peerConn) {
			p.subscribe("t", packets.QoS1)
			other.send(message2("t", "", packets.QoS1, 1))
			p.want(packets.TypePublish)
		}, func(p *peerConn) { p.send(ack(packets.TypePuback, 1)) }},
		{"a QoS 2 message that is not released", func(p, _ *peerConn) {
			p.send(message2("t", "", packets.QoS2, 1))
			p.want(packets.TypePubrec)
		}, func(p *peerConn) { p.send(ack(packets.TypePubrel, 1)) }},
		{"a delivery of QoS 2 that is not complete", func(p, other *peerConn) {
			p.subscribe("t", packets.QoS2)
			other.send(message2("t", "", packets.QoS2, 1), ack(packets.TypePubrel, 1))
			p.want(packets.TypePublish)
			p.send(ack(packets.TypePubrec, 1))
			p.want(packets.TypePubrel)
		}, func(p *peerConn) { p.send(ack(packets.TypePubcomp, 1)) }},
		{"an acknowledgement that waits for the Store", func(p, other *peerConn) {
			other.subscribe("t", packets.QoS1)
			p.st.store.mu.Lock()
			p.st.store.gate = make(chan struct{})
			p.st.store.mu.Unlock()
			p.send(message2("t", "", packets.QoS1, 1))
			p.wantNothing("the store does not answer")
		}, func(p *peerConn) {
			p.st.store.mu.Lock()
			close(p.st.store.gate)
			p.st.store.gate = nil
			p.st.store.mu.Unlock()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				t := st.t
				p, other := st.durable("p", packets.V5), st.durable("other", packets.V5)
				tt.begins(p, other)
				if tt.name == "an acknowledgement that waits for the Store" {
					other.nc.Close() // gets the message, and does not acknowledge it
				}
				done := st.drain(context.Background(), DrainOptions{Patience: time.Minute})
				time.Sleep(30 * time.Second)
				require.False(t, p.ended())
				tt.ends(p)
				time.Sleep(time.Second)
				require.NoError(t, (<-done).err)
				require.Len(t, p.farewells(), 1)
			})
			onStage(t, func(st *stage) {
				t := st.t
				p, other := st.durable("p", packets.V5), st.durable("other", packets.V5)
				tt.begins(p, other)
				done := st.drain(context.Background(), DrainOptions{Patience: time.Minute})
				time.Sleep(59 * time.Second)
				require.Empty(t, p.farewells())
				time.Sleep(2 * time.Second)
				require.Len(t, p.farewells(), 1, "it has had its time")
				if st.store.gate != nil {
					tt.ends(p)
				}
				require.NoError(t, (<-done).err)
			})
		})
	}
}

func TestDrainEndsWithItsContextAndLeavesTheOthers(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		for i := range 10 {
			st.durable(fmt.Sprint("c", i), packets.V5)
		}
		over := errors.New("over")
		ctx, cancel := context.WithTimeoutCause(context.Background(), 4*time.Second+1, over)
		defer cancel()
		done := st.drain(ctx, DrainOptions{PerSecond: 1})
		_, err := st.b.Drain(context.Background(), DrainOptions{})
		require.ErrorIs(t, err, ErrDraining, "one at a time")
		got := <-done
		require.ErrorIs(t, got.err, over)
		require.InDelta(t, 5, got.moved, 1)
		time.Sleep(time.Minute)
		require.Equal(t, 10-got.moved, st.b.Stats().Connections, "the others stay")
		require.ErrorIs(t, st.b.Ready(), ErrDraining)

		next := st.drain(context.Background(), DrainOptions{PerSecond: 1})
		st.b.Undrain()
		require.ErrorIs(t, (<-next).err, errUndrained)
		require.NoError(t, st.b.Ready())
		last := st.drain(context.Background(), DrainOptions{PerSecond: -1})
		time.Sleep(time.Second)
		require.NoError(t, (<-last).err)
		require.Zero(t, st.b.Stats().Connections)
		st.b.Undrain()
		st.durable("c", packets.V5)
		ends := st.drain(context.Background(), DrainOptions{PerSecond: 1})
		require.NoError(t, st.b.Close())
		got = <-ends
		require.True(t, got.err == nil || errors.Is(got.err, ErrBrokerClosed), got.err)
		_, err = st.b.Drain(context.Background(), DrainOptions{})
		require.ErrorIs(t, err, ErrBrokerClosed)
		require.ErrorIs(t, st.b.Ready(), ErrBrokerClosed)
	})
}

func TestABrokerWhoseStoreFailsIsNotReady(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		p := st.durable("p", packets.V5)
		st.store.fail(errors.New("broken"))
		p.subscribe2("t", packets.QoS1)
		require.Error(t, st.b.Ready())
		require.Equal(t, st.b.Healthy(), st.b.Ready())
	})
}

// subscribe2 subscribes, whatever the answer.
func (p *peerConn) subscribe2(filter string, q packets.QoS) {
	p.send(subscribeTo(filter, q))
	p.got()
}

// A client that decides long about a CONNECT is not accepted after the drain has begun.
func TestDrainRefusesThoseWhoseConnectIsBeingDecided(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		st.restart(func(c *Config) {
			c.Authenticator = hooks.AuthenticatorFunc(func(context.Context,
				*hooks.ConnectRequest) error {
				time.Sleep(5 * time.Second)
				return nil
			})
		})
		c := st.dial("c", packets.V5, false, 3600)
		require.NoError(t, (<-st.drain(context.Background(), DrainOptions{})).err)
		time.Sleep(10 * time.Second)
		refused := c.want(packets.TypeConnack)[0].(*packets.Connack)
		require.Equal(t, packets.UseAnotherServer, refused.Code)
		_, found := st.b.Session("c")
		require.False(t, found)
	})
}

// A movingClient is a client that goes where it is told to, publishes or takes messages, and keeps account.
type movingClient struct {
	id       string
	dial     []func() net.Conn // by server
	mu       sync.Mutex
	acked    map[string]int // messages that were acknowledged to it, with the server that did
	received map[string]int // messages that it has acknowledged
	at       int            // which server
	moves    int
}

// travel serves connections until done is closed and everything is acknowledged. publish sends messages
// of its own, at QoS 1.
func (m *movingClient) travel(t *testing.T, publish int, interval time.Duration) {
	next, open := 0, map[uint16]string{}
	for {
		here := m.at
		nc := m.dial[here]()
		c := &testClient{t: t, nc: nc, r: packets.NewReader(nc, packets.Limits{}), v: packets.V5}
		c.r.SetVersion(packets.V5)
		p := connect(m.id)
		p.CleanStart = false
		p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 3600)
		c.send(p)
		ok := c.recv().(*packets.Connack)
		if ok.Code != packets.Success {
			nc.Close()
			m.at = 1
			continue
		}
		if publish == 0 {
			c.send(subscribeTo("t", packets.QoS1))
		}
		nc.SetReadDeadline(time.Time{})
		in := make(chan packets.Packet)
		go func() { // ends with the connection
			defer close(in)
			for {
				q, err := c.r.ReadPacket()
				if err != nil {
					return
				}
				in <- q
			}
		}()
		for id, payload := range open { // what has no answer is sent again
			again := message2("t", payload, packets.QoS1, id)
			again.Dup = true
			c.send(again)
		}
		tick := time.NewTicker(interval)
		for q, more := packets.Packet(nil), true; more; {
			select {
			case q, more = <-in:
			case <-tick.C:
				q = nil
				if next < publish {
					next++
					open[uint16(next)] = fmt.Sprint(m.id, " ", next)
					c.trySend(message2("t", open[uint16(next)], packets.QoS1, uint16(next)))
				}
			}
			m.mu.Lock()
			switch q := q.(type) {
			case *packets.Publish:
				m.received[string(q.Payload)]++
				c.trySend(ack(packets.TypePuback, q.PacketID))
			case *packets.Ack:
				m.acked[open[q.PacketID]] = here
				delete(open, q.PacketID)
			case *packets.Disconnect:
				m.at, m.moves = 1, m.moves+1
			}
			m.mu.Unlock()
			if publish > 0 && next == publish && len(open) == 0 {
				tick.Stop()
				c.trySend(&packets.Disconnect{})
				nc.Close()
				for range in {
				}
				return
			}
		}
		tick.Stop()
		nc.Close()
		m.mu.Lock()
		over := m.moves > 0 && m.at < 0
		m.mu.Unlock()
		if over {
			return
		}
	}
}

// trySend sends, if the connection is still there.
func (c *testClient) trySend(p packets.Packet) {
	b, err := p.Append(nil, c.v)
	require.NoError(c.t, err)
	c.nc.Write(b)
}

// Publishers and subscribers are moved to another server in the middle of their work. Each message
// that was acknowledged to its publisher reaches each subscriber: from the server that has
// acknowledged it, before or after the move.
func TestDrainLosesNoMessageThatWasAcknowledged(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		other := newTestBroker(t, nil)
		l, stop := serveMemory(t, other)
		defer stop()
		dials := []func() net.Conn{
			func() net.Conn { nc, _ := st.l.Dial(); return nc },
			func() net.Conn { nc, _ := l.Dial(); return nc },
		}
		newClient := func(id string) *movingClient {
			return &movingClient{id: id, dial: dials, acked: map[string]int{}, received: map[string]int{}}
		}
		var publishers, subscribers []*movingClient
		var publishing, subscribing sync.WaitGroup
		for i := range 5 {
			s := newClient(fmt.Sprint("s", i))
			subscribers = append(subscribers, s)
			subscribing.Go(func() { s.travel(t, 0, time.Hour) })
		}
		synctest.Wait()
		for i := range 5 {
			p := newClient(fmt.Sprint("p", i))
			publishers = append(publishers, p)
			publishing.Go(func() { p.travel(t, 200, 10*time.Millisecond) })
		}
		time.Sleep(time.Second)
		got := <-st.drain(context.Background(), DrainOptions{PerSecond: 10})
		require.Equal(t, drained{moved: 10}, got)
		publishing.Wait()
		time.Sleep(10 * time.Second)
		for _, s := range subscribers {
			s.mu.Lock()
			s.at = -1 // the next end of its connection is its last
			s.mu.Unlock()
		}
		other.Close()
		subscribing.Wait()
		// What is left in the Sessions of the first server comes when their clients come back.
		st.b.Undrain()
		for _, s := range subscribers {
			c := st.dial(s.id, packets.V5, false, 3600)
			for _, payload := range c.payloads() {
				s.received[payload]++
			}
		}
		n := 0
		for _, p := range publishers {
			require.Equal(t, 1, p.moves)
			require.Len(t, p.acked, 200)
			for payload, server := range p.acked {
				if server != 0 {
					continue // the second server knows only those that are there
				}
				n++
				for _, s := range subscribers {
					require.Equal(t, 1, s.moves)
					require.Positive(t, s.received[payload], "%s gets %q", s.id, payload)
				}
			}
		}
		require.Greater(t, n, 300)
		require.Less(t, n, 1000)
	})
}

// The same over sockets.
func TestDrainOverTCP(t *testing.T) {
	const clients = 200
	b, other := newTestBroker(t, nil), newTestBroker(t, nil)
	addr, done := serveTCP(t, b)
	otherAddr, otherDone := serveTCP(t, other)
	var all sync.WaitGroup
	ready := make(chan struct{}, clients)
	for i := range clients {
		all.Go(func() {
			at := addr
			for {
				nc, err := net.Dial("tcp", at)
				require.NoError(t, err)
				p := connect(fmt.Sprint("c", i))
				if i%2 == 0 {
					p.Version = packets.V311
				}
				c, ok := newTestClient(t, nc, p)
				require.Equal(t, packets.Success, ok.Code)
				nc.SetReadDeadline(time.Time{})
				ready <- struct{}{}
				q, err := c.r.ReadPacket()
				nc.Close()
				if at == otherAddr {
					return
				}
				at = otherAddr
				if d, ok := q.(*packets.Disconnect); ok {
					require.Equal(t, packets.V5, p.Version)
					at, _ = d.Properties.Text(packets.ServerReference)
				} else {
					require.Error(t, err)
					require.Equal(t, packets.V311, p.Version)
				}
			}
		})
	}
	for range clients {
		<-ready
	}
	began := time.Now()
	within(t, "Drain", func() {
		o := DrainOptions{PerSecond: 2 * clients, ServerReference: otherAddr}
		moved, err := b.Drain(context.Background(), o)
		require.NoError(t, err)
		require.Equal(t, clients, moved)
	})
	require.Greater(t, time.Since(began), 400*time.Millisecond, "not faster than it was told")
	within(t, "the move", func() {
		for range clients {
			<-ready
		}
	})
	require.Equal(t, clients, other.Stats().Connections)
	require.Zero(t, b.Stats().Connections)
	within(t, "Close", otherDone)
	all.Wait()
	within(t, "Close", done)
}
