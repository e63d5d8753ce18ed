package dunlin

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// While the end of an exchange waits for the Store, the client has not seen it, and the exchange is
// open. Each of these leaves two open; the Receive Maximum is 2.
func TestReceiveMaximumCountsExchangesWhoseEndWaitsForTheStore(t *testing.T) {
	type exchange struct {
		name string
		run  func(p *peerConn, hold func())
		ends []packets.Type // what comes once the Store has taken all
	}
	for _, tt := range []exchange{
		{"PUBACK", func(p *peerConn, hold func()) {
			hold()
			p.send(message2("t", "1", 1, 1), message2("t", "2", 1, 2))
		}, []packets.Type{packets.TypePuback, packets.TypePuback}},
		{"PUBACK of what needs no Store, behind one that waits", func(p *peerConn, hold func()) {
			hold()
			p.send(message2("t", "1", 1, 1), message2("other", "2", 1, 2))
		}, []packets.Type{packets.TypePuback, packets.TypePuback}},
		{"PUBREC that refuses, behind a PUBACK that waits", func(p *peerConn, hold func()) {
			hold()
			p.send(message2("t", "1", 1, 1), message2("$denied", "2", 2, 2))
		}, []packets.Type{packets.TypePuback, packets.TypePubrec}},
		{"PUBCOMP", func(p *peerConn, hold func()) {
			p.send(message2("t", "1", 2, 1), message2("t", "2", 2, 2))
			p.want(packets.TypePubrec, packets.TypePubrec)
			hold()
			p.send(ack(packets.TypePubrel, 1), ack(packets.TypePubrel, 2))
		}, []packets.Type{packets.TypePubcomp, packets.TypePubcomp}},
	} {
		onReceiveMaximum(t, tt.name, 2, func(st *stage, p *peerConn) {
			var release func()
			tt.run(p, func() { release = st.store.hold() })
			p.wantNothing("before the commit")
			p.send(message2("t", "3", 1, 3))
			d := p.want(packets.TypeDisconnect)[0].(*packets.Disconnect)
			require.Equal(t, packets.ReceiveMaximumExceeded, d.Code)
			release()
		})
		onReceiveMaximum(t, tt.name+", then the next one", 2, func(st *stage, p *peerConn) {
			var release func()
			tt.run(p, func() { release = st.store.hold() })
			release()
			p.want(tt.ends...)
			release = st.store.hold()
			p.send(message2("t", "3", 1, 3), message2("t", "4", 1, 4))
			p.wantNothing("two are allowed again")
			release()
			p.want(packets.TypePuback, packets.TypePuback)
		})
	}
}

// onReceiveMaximum runs f with a publisher whose Session lasts, as does the one that subscribes to
// t.
func onReceiveMaximum(t *testing.T, name string, n int, f func(st *stage, p *peerConn)) {
	t.Run(name, func(t *testing.T) {
		onStage(t, func(st *stage) {
			st.stop()
			st.cfg.ReceiveMaximum = n
			st.start()
			s := st.durable("s", packets.V5)
			s.subscribe("t", packets.QoS2)
			s.nc.Close()
			p := st.durable("p", packets.V5)
			time.Sleep(time.Second)
			f(st, p)
		})
	})
}

// A PUBREL of an exchange from before takes no place: the client may have as many others open.
func TestAnExchangeFromAnEarlierConnectionDoesNotCountForReceiveMaximum(t *testing.T) {
	onReceiveMaximum(t, "PUBREL", 2, func(st *stage, p *peerConn) {
		p.send(message2("t", "1", 2, 1), message2("t", "2", 2, 2))
		p.want(packets.TypePubrec, packets.TypePubrec)
		p.nc.Close()
		p = st.durable("p", packets.V5)
		release := st.store.hold()
		p.send(ack(packets.TypePubrel, 1), ack(packets.TypePubrel, 2))
		p.send(message2("t", "3", 1, 3), message2("t", "4", 1, 4))
		p.wantNothing("the commit runs")
		release()
		p.want(packets.TypePubcomp, packets.TypePubcomp, packets.TypePuback, packets.TypePuback)
	})
}

// Clients before 5.0 know no Receive Maximum.
func TestAnOlderClientIsNotHeldToReceiveMaximum(t *testing.T) {
	onReceiveMaximum(t, "3.1.1", 1, func(st *stage, _ *peerConn) {
		old := st.durable("old", packets.V311)
		release := st.store.hold()
		old.send(message2("t", "1", 1, 1), message2("t", "2", 1, 2))
		release()
		old.want(packets.TypePuback, packets.TypePuback)
	})
}

// A client that always has as many messages open as it may is never disconnected, however slow the
// Store is and whatever it refuses. In the end nothing is counted as open.
func TestAClientThatKeepsToReceiveMaximumStays(t *testing.T) {
	const most = 5
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	onReceiveMaximum(t, "random", most, func(st *stage, p *peerConn) {
		noise := rand.New(rand.NewPCG(seed, 2)) // the committer's own
		st.store.mu.Lock()
		st.store.before = func([]store.Op) error {
			time.Sleep(time.Duration(noise.IntN(3)) * time.Millisecond)
			if noise.IntN(8) == 0 {
				return store.ErrFull
			}
			return nil
		}
		st.store.mu.Unlock()
		open := map[uint16]packets.QoS{}
		next := uint16(0)
		for step := 0; step < 3000 || len(open) > 0; step++ {
			for _, q := range p.got() {
				a, ok := q.(*packets.Ack)
				require.True(t, ok, "step %d: %v", step, q)
				if a.Kind == packets.TypePubrec && !a.Code.Failed() {
					p.send(ack(packets.TypePubrel, a.PacketID))
					continue
				}
				require.Contains(t, open, a.PacketID)
				delete(open, a.PacketID)
			}
			for step < 3000 && len(open) < most && rng.IntN(4) > 0 {
				for next++; next == 0 || open[next] > 0; next++ {
				}
				q := packets.QoS(1 + rng.IntN(2))
				open[next] = q
				p.send(message2([]string{"t", "other", "$denied"}[rng.IntN(3)], "x", q, next))
			}
			time.Sleep(time.Duration(rng.IntN(2)) * time.Millisecond)
			require.Less(t, step, 100_000, "everything ends")
		}
		synctest.Wait()
		s := st.b.sessionAt("p")
		s.mu.Lock()
		defer s.mu.Unlock()
		require.Zero(t, s.conn.open.Load())
	})
}
