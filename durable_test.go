package dunlin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// A stage is a Broker with a store that obeys, in a bubble of virtual time.
type stage struct {
	t      *testing.T
	store  *faultStore
	cfg    Config
	b      *Broker
	l      *listeners.Memory
	served chan error
	peers  []*peerConn
	failed []error // what Observer.StoreFailed was told
	works  int     // how often StoreRecovered was called
}

// onStage runs f in a bubble.
func onStage(t *testing.T, f func(st *stage)) {
	synctest.Test(t, func(t *testing.T) {
		st := &stage{t: t, store: &faultStore{Store: new(memory.Store)}}
		var mu sync.Mutex
		st.cfg = Config{Authenticator: hooks.AllowAll, Logger: quiet, Observer: &hooks.Observer{
			StoreFailed: func(e hooks.StoreFailed) {
				mu.Lock()
				st.failed = append(st.failed, e.Err)
				mu.Unlock()
			},
			StoreRecovered: func(hooks.StoreRecovered) { mu.Lock(); st.works++; mu.Unlock() },
		}}
		st.start()
		defer st.stop()
		f(st)
	})
}

func (st *stage) start() {
	st.cfg.Store = st.store
	b, err := New(st.cfg)
	require.NoError(st.t, err)
	st.b, st.l, st.served = b, listeners.NewMemory(), make(chan error, 1)
	go func() { st.served <- b.Serve(st.l) }()
}

func (st *stage) stop() {
	for _, p := range st.peers {
		p.nc.Close()
	}
	st.peers = nil
	for errors.Is(st.b.Close(), ErrStillClosing) { // a hook of the test takes its time
	}
	<-st.served
}

// crash ends the process and starts it again with what was committed.
func (st *stage) crash() {
	st.t.Helper()
	old := st.store
	st.store = old.kill()
	if old.gate != nil {
		close(old.gate)
	}
	st.stop()
	st.start()
}

// A peerConn is a client's end of a connection, driven by the test.
type peerConn struct {
	st *stage
	nc net.Conn
	v  packets.Version
	mu sync.Mutex
	in []byte // guarded by mu
	no bool   // the connection has ended. Guarded by mu
}

// dial opens a connection and sends CONNECT.
func (st *stage) dial(id string, v packets.Version, clean bool, expiry uint32,
	edit ...func(*packets.Connect)) *peerConn {
	st.t.Helper()
	nc, err := st.l.Dial()
	require.NoError(st.t, err)
	p := &peerConn{st: st, nc: nc, v: v}
	st.peers = append(st.peers, p)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := nc.Read(b)
			p.mu.Lock()
			p.in = append(p.in, b[:n]...)
			p.no = p.no || err != nil
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	c := &packets.Connect{Version: v, CleanStart: clean, ClientID: id}
	if v == packets.V5 && expiry > 0 {
		c.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, expiry)
	}
	for _, f := range edit {
		f(c)
	}
	p.send(c)
	return p
}

// durable connects a client whose Session lasts, and takes its CONNACK.
func (st *stage) durable(id string, v packets.Version) *peerConn {
	st.t.Helper()
	p := st.dial(id, v, false, 3600)
	p.want(packets.TypeConnack)
	return p
}

// clean connects a client whose Session ends with the connection.
func (st *stage) clean(id string) *peerConn {
	st.t.Helper()
	p := st.dial(id, packets.V5, true, 0)
	p.want(packets.TypeConnack)
	return p
}

func (p *peerConn) send(ps ...packets.Packet) {
	p.st.t.Helper()
	for _, q := range ps {
		b, err := q.Append(nil, p.v)
		require.NoError(p.st.t, err)
		_, err = p.nc.Write(b)
		require.NoError(p.st.t, err)
	}
	synctest.Wait()
}

// got returns what has come since the last call.
func (p *peerConn) got() (all []packets.Packet) {
	p.st.t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.in) > 0 {
		h, err := packets.ParseHeader(p.in, p.v)
		require.NoError(p.st.t, err)
		q := packetOf(h.Type)
		require.NoError(p.st.t, q.Decode(h, slices.Clone(p.in[h.Len:h.Len+h.Remaining]), p.v))
		p.in = p.in[h.Len+h.Remaining:]
		all = append(all, q)
	}
	return all
}

// want fails unless exactly packets of these types have come, which it returns.
func (p *peerConn) want(types ...packets.Type) []packets.Packet {
	p.st.t.Helper()
	got := p.got()
	var have []packets.Type
	for _, q := range got {
		have = append(have, q.Type())
	}
	require.Equal(p.st.t, types, have, "packets that have come: %v", got)
	return got
}

func (p *peerConn) wantNothing(why string) {
	p.st.t.Helper()
	require.Empty(p.st.t, p.got(), why)
}

func (p *peerConn) ended() bool {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.no
}

func (p *peerConn) subscribe(filter string, q packets.QoS) {
	p.st.t.Helper()
	p.send(subscribeTo(filter, q))
	ack := p.want(packets.TypeSuback)[0].(*packets.Suback)
	require.Equal(p.st.t, packets.ReasonCode(q), ack.Codes[0])
}

func subscribeTo(filter string, q packets.QoS) *packets.Subscribe {
	return &packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: filter, QoS: q}}}
}

func message2(topic, payload string, q packets.QoS, id uint16) *packets.Publish {
	return &packets.Publish{Topic: []byte(topic), Payload: []byte(payload), QoS: q, PacketID: id}
}

func toRetain(p *packets.Publish) *packets.Publish {
	p.Retain = true
	return p
}

func ack(k packets.Type, id uint16) *packets.Ack { return &packets.Ack{Kind: k, PacketID: id} }

func TestNothingLeavesBeforeItIsDurable(t *testing.T) {
	absent := func(st *stage) { // a durable Session without client that gets everything below t
		s := st.durable("absent", packets.V5)
		s.subscribe("t/#", packets.QoS2)
		s.nc.Close()
		synctest.Wait()
	}
	for _, tt := range []struct {
		name  string
		ready func(st *stage) (acts, waits *peerConn)
		act   func(st *stage, acts *peerConn)
		want  []packets.Type // at waits, once it is durable
	}{
		{"a PUBACK waits for the message", func(st *stage) (a, w *peerConn) {
			absent(st)
			a = st.clean("p")
			return a, a
		}, func(st *stage, a *peerConn) { a.send(message2("t/1", "x", packets.QoS1, 7)) },
			[]packets.Type{packets.TypePuback}},
		{"a PUBREC waits for the message", func(st *stage) (a, w *peerConn) {
			absent(st)
			a = st.clean("p")
			return a, a
		}, func(st *stage, a *peerConn) { a.send(message2("t/1", "x", packets.QoS2, 7)) },
			[]packets.Type{packets.TypePubrec}},
		{"a PUBREC waits for the identifier where nobody subscribes",
			func(st *stage) (a, w *peerConn) {
				a = st.durable("p", packets.V5)
				return a, a
			}, func(st *stage, a *peerConn) { a.send(message2("t/1", "x", packets.QoS2, 7)) },
			[]packets.Type{packets.TypePubrec}},
		{"a PUBREC for a repetition waits as well", func(st *stage) (a, w *peerConn) {
			a = st.durable("p", packets.V5)
			return a, a
		}, func(st *stage, a *peerConn) {
			m := message2("t/1", "x", packets.QoS2, 7)
			a.send(m)
			m.Dup = true
			a.send(m)
		}, []packets.Type{packets.TypePubrec, packets.TypePubrec}},
		{"a PUBCOMP waits until the identifier is forgotten", func(st *stage) (a, w *peerConn) {
			a = st.durable("p", packets.V5)
			a.send(message2("t/1", "x", packets.QoS2, 7))
			a.want(packets.TypePubrec)
			return a, a
		}, func(st *stage, a *peerConn) { a.send(ack(packets.TypePubrel, 7)) },
			[]packets.Type{packets.TypePubcomp}},
		{"a PUBREL to a subscriber waits for its PUBREC", func(st *stage) (a, w *peerConn) {
			a = st.durable("s", packets.V311)
			a.subscribe("t/#", packets.QoS2)
			st.clean("p").send(message2("t/1", "x", packets.QoS2, 7))
			a.want(packets.TypePublish)
			return a, a
		}, func(st *stage, a *peerConn) { a.send(ack(packets.TypePubrec, 1)) },
			[]packets.Type{packets.TypePubrel}},
		{"a QoS 2 message goes to a durable Session once it is", func(st *stage) (a, w *peerConn) {
			w = st.durable("s", packets.V5)
			w.subscribe("t/#", packets.QoS2)
			return st.clean("p"), w
		}, func(st *stage, a *peerConn) { a.send(message2("t/1", "x", packets.QoS2, 7)) },
			[]packets.Type{packets.TypePublish}},
		{"a QoS 2 message that is delivered at QoS 1 as well", func(st *stage) (a, w *peerConn) {
			w = st.durable("s", packets.V5)
			w.subscribe("t/#", packets.QoS1)
			return st.clean("p"), w
		}, func(st *stage, a *peerConn) { a.send(message2("t/1", "x", packets.QoS2, 7)) },
			[]packets.Type{packets.TypePublish}},
		{"a QoS 2 message goes to a clean Session once the publisher's identifier is durable",
			func(st *stage) (a, w *peerConn) {
				w = st.clean("s")
				w.subscribe("t/#", packets.QoS2)
				return st.durable("p", packets.V5), w
			}, func(st *stage, a *peerConn) { a.send(message2("t/1", "x", packets.QoS2, 7)) },
			[]packets.Type{packets.TypePublish}},
		{"a QoS 2 message that a durable Session shares goes to QoS 0 subscribers as late",
			func(st *stage) (a, w *peerConn) {
				absent(st)
				w = st.clean("s")
				w.subscribe("t/#", packets.QoS0)
				return st.clean("p"), w
			}, func(st *stage, a *peerConn) { a.send(message2("t/1", "x", packets.QoS2, 7)) },
			[]packets.Type{packets.TypePublish}},
		{"a SUBACK waits for the subscription", func(st *stage) (a, w *peerConn) {
			a = st.durable("s", packets.V5)
			return a, a
		}, func(st *stage, a *peerConn) { a.send(subscribeTo("t/#", packets.QoS1)) },
			[]packets.Type{packets.TypeSuback}},
		{"an UNSUBACK waits for the removal", func(st *stage) (a, w *peerConn) {
			a = st.durable("s", packets.V5)
			a.subscribe("t/#", packets.QoS1)
			return a, a
		}, func(st *stage, a *peerConn) {
			a.send(&packets.Unsubscribe{PacketID: 2, Filters: []string{"t/#"}})
		}, []packets.Type{packets.TypeUnsuback}},
		{"a PUBACK of a retained message waits for it", func(st *stage) (a, w *peerConn) {
			a = st.clean("p")
			return a, a
		}, func(st *stage, a *peerConn) { a.send(toRetain(message2("t/1", "x", packets.QoS1, 7))) },
			[]packets.Type{packets.TypePuback}},
		{"a PUBACK of what removes a retained message waits as well",
			func(st *stage) (a, w *peerConn) {
				a = st.clean("p")
				a.send(toRetain(message2("t/1", "x", packets.QoS1, 7)))
				a.want(packets.TypePuback)
				return a, a
			}, func(st *stage, a *peerConn) { a.send(toRetain(message2("t/1", "", packets.QoS1, 8))) },
			[]packets.Type{packets.TypePuback}},
		{"acknowledgements keep their order, also of what need not wait",
			func(st *stage) (a, w *peerConn) {
				absent(st)
				a = st.clean("p")
				return a, a
			}, func(st *stage, a *peerConn) {
				a.send(message2("t/1", "x", packets.QoS1, 7), message2("other", "x", packets.QoS1, 8))
			}, []packets.Type{packets.TypePuback, packets.TypePuback}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				acts, waits := tt.ready(st)
				time.Sleep(time.Second) // nothing is left to be written
				waits.wantNothing("before anything is done")
				release := st.store.hold()
				before := st.store.count()
				tt.act(st, acts)
				waits.wantNothing("while the commit runs")
				require.Equal(t, before+1, st.store.count(), "commits that have begun")
				release()
				waits.want(tt.want...)
			})
		})
	}
}

// What a connection holds for the store does not keep it from ending: it never leaves after that.
func TestAConnectionEndsWhateverItHolds(t *testing.T) {
	for _, v := range []packets.Version{packets.V311, packets.V5} {
		for name, end := range map[string]func(b *Broker){
			"disconnected": func(b *Broker) {
				b.Disconnect("p",
					packets.AdministrativeAction)
			},
			"told of a shutdown": func(b *Broker) { b.Disconnect("p", packets.ServerShuttingDown) },
		} {
			t.Run(fmt.Sprintf("%v %s", v, name), func(t *testing.T) {
				onStage(t, func(st *stage) {
					st.durable("s", v).subscribe("t", packets.QoS2)
					p := st.durable("p", v)
					release := st.store.hold()
					defer release()
					p.send(message2("t", "one", packets.QoS1, 1),
						message2("t", "two", packets.QoS2, 2))
					p.wantNothing("before the commit")
					end(st.b)
					require.True(t, p.ended(), "the connection waits for the store")
				})
			})
		}
	}
}

func TestACONNACKWaitsForItsSession(t *testing.T) {
	for name, again := range map[string]bool{"a new Session": false, "one that is resumed": true} {
		t.Run(name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				if again {
					st.durable("c", packets.V5).nc.Close()
					time.Sleep(time.Second)
				}
				release := st.store.hold()
				p := st.dial("c", packets.V5, false, 60)
				p.wantNothing("while the commit runs")
				release()
				a := p.want(packets.TypeConnack)[0].(*packets.Connack)
				require.Equal(t, again, a.SessionPresent)
			})
		})
	}
}

func TestAQoS1MessageGoesOutWhileItIsCommitted(t *testing.T) {
	onStage(t, func(st *stage) {
		s := st.durable("s", packets.V5)
		s.subscribe("t", packets.QoS1)
		p := st.clean("p")
		release := st.store.hold()
		p.send(message2("t", "x", packets.QoS1, 1))
		s.want(packets.TypePublish)
		p.wantNothing("the message is not durable yet")
		release()
		p.want(packets.TypePuback)
	})
}

func TestPublishReturnsWhenTheMessageIsDurable(t *testing.T) {
	onStage(t, func(st *stage) {
		st.durable("s", packets.V5).subscribe("t", packets.QoS1)
		release := st.store.hold()
		done := make(chan error, 1)
		go func() {
			done <- st.b.Publish(context.Background(),
				&Message{Topic: "t", Payload: []byte("x"), QoS: 1})
		}()
		synctest.Wait()
		require.Empty(t, done, "Publish has returned while the commit runs")
		release()
		require.NoError(t, <-done)

		release = st.store.hold()
		ctx, cancel := context.WithCancelCause(context.Background())
		go func() {
			done <- st.b.Publish(ctx,
				&Message{Topic: "t", Payload: []byte("x"), QoS: 1})
		}()
		synctest.Wait()
		gone := errors.New("gone")
		cancel(gone)
		require.ErrorIs(t, <-done, gone)
		release()

		st.store.fail(store.ErrFull)
		err := st.b.Publish(context.Background(),
			&Message{Topic: "t", Payload: []byte("x"), QoS: 1})
		require.ErrorIs(t, err, store.ErrFull)
		require.Equal(t, packets.QuotaExceeded, packets.CodeOf(err))
	})
}

func TestCleanSessionsAndQoS0MakeNoStoreCall(t *testing.T) {
	onStage(t, func(st *stage) {
		d := st.durable("durable", packets.V5)
		d.subscribe("t/#", packets.QoS0)
		time.Sleep(time.Second)
		before := st.store.count()
		s, p := st.clean("s"), st.clean("p")
		s.subscribe("t/#", packets.QoS2)
		p.send(message2("t/0", "x", packets.QoS0, 0), message2("t/1", "x", packets.QoS1, 1),
			message2("t/2", "x", packets.QoS2, 2))
		p.want(packets.TypePuback, packets.TypePubrec)
		p.send(ack(packets.TypePubrel, 2))
		p.want(packets.TypePubcomp)
		s.want(packets.TypePublish, packets.TypePublish, packets.TypePublish)
		d.want(packets.TypePublish, packets.TypePublish, packets.TypePublish)
		s.send(ack(packets.TypePuback, 1), ack(packets.TypePubrec, 2))
		s.want(packets.TypePubrel)
		s.nc.Close()
		p.nc.Close()
		time.Sleep(time.Second)
		require.Equal(t, before, st.store.count())
	})
}

func TestManyPublishersShareACommit(t *testing.T) {
	onStage(t, func(st *stage) {
		st.durable("s", packets.V5).subscribe("t/#", packets.QoS1)
		var ps []*peerConn
		for i := range 50 {
			ps = append(ps, st.clean(fmt.Sprint("p", i)))
		}
		time.Sleep(time.Second)
		release := st.store.hold()
		before := st.store.count()
		for _, p := range ps {
			p.send(message2("t/x", "x", packets.QoS1, 1))
		}
		release()
		for _, p := range ps {
			p.want(packets.TypePuback)
		}
		require.Equal(t, before+2, st.store.count(), "one commit for the first, one for all others")
	})
}

func TestPublishersWaitWhenTooMuchIsUncommitted(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		st.cfg.MaxUncommittedBytes = 4096
		st.start()
		st.durable("s", packets.V5).subscribe("t/#", packets.QoS1)
		p, q, r := st.clean("p"), st.clean("q"), st.clean("r")
		r.subscribe("q/#", packets.QoS0)
		time.Sleep(time.Second)
		release := st.store.hold()
		big := string(make([]byte, 3000))
		for i := range 20 {
			p.send(message2("t/1", big, packets.QoS1, uint16(i+1)))
		}
		require.Less(t, st.uncommitted(), 4*4096, "bytes that wait for the store")
		q.send(message2("q/1", "x", packets.QoS0, 0)) // others go on
		r.want(packets.TypePublish)
		release()
		require.Len(t, p.got(), 20)
	})
}

// What was refused is not received, also after a restart.
func TestARefusedRetainedMessageIsNotReceived(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		st.cfg.MaxRetained = 1
		st.start()
		s := st.durable("s", packets.V5)
		s.subscribe("t/#", packets.QoS1)
		p := st.durable("p", packets.V5)
		p.send(toRetain(message2("t/1", "x", packets.QoS1, 1)))
		p.want(packets.TypePuback)
		p.send(toRetain(message2("t/2", "y", packets.QoS2, 7)))
		a := p.want(packets.TypePubrec)[0].(*packets.Ack)
		require.Equal(t, packets.QuotaExceeded, a.Code) // the exchange is over, the identifier free
		s.want(packets.TypePublish)
		s.send(ack(packets.TypePuback, 1))
		time.Sleep(time.Second)
		st.crash()
		s, p = st.durable("s", packets.V5), st.durable("p", packets.V5)
		p.send(message2("t/3", "another message", packets.QoS2, 7))
		p.want(packets.TypePubrec)
		s.want(packets.TypePublish)
	})
}

// A 3.1.1 client repeats a QoS 2 message so often, while the store cannot take it, that its reader
// waits for what is held.
func TestAReaderIsToldThatNothingIsHeldAnyMore(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		st.cfg.MaxOutboundBytes = 1024
		st.start()
		st.durable("s", packets.V5).subscribe("t", packets.QoS2)
		p := st.durable("p", packets.V311)
		time.Sleep(time.Second)
		st.store.fail(store.ErrFull)
		release := st.store.hold()
		m := message2("t", "two", packets.QoS2, 2)
		p.send(m)
		m.Dup = true
		b, err := m.Append(nil, p.v)
		require.NoError(t, err)
		_, err = p.nc.Write(bytes.Repeat(b, 5000))
		require.NoError(t, err)
		synctest.Wait()
		release()
		time.Sleep(time.Minute)
		require.True(t, p.ended(), "the reader waits")
	})
}

// The end of a durable Session is durable before any connection with a new one is accepted, not
// only before the first.
func TestTheEndOfASessionIsDurableBeforeAnyCONNACK(t *testing.T) {
	onStage(t, func(st *stage) {
		s := st.durable("c", packets.V5)
		s.subscribe("t", packets.QoS1)
		s.nc.Close()
		time.Sleep(time.Second)
		st.store.hold() // crash ends it
		st.dial("c", packets.V5, true, 0).wantNothing("the end of the Session is not durable")
		accepted := len(st.dial("c", packets.V5, true, 0).got()) > 0
		st.crash()
		a := st.dial("c", packets.V5, false, 60).want(packets.TypeConnack)[0].(*packets.Connack)
		require.False(t, accepted && a.SessionPresent,
			"a client was told that its Session was over, and has it again")
	})
}

type slowDelivery struct {
	entered chan struct{}
	slow    func()
}

func (slowDelivery) Authorize(context.Context, *hooks.AccessRequest) error { return nil }

func (a slowDelivery) AuthorizeDelivery(_ context.Context, r *hooks.AccessRequest) error {
	if r.Topic == "slow" {
		close(a.entered)
		a.slow()
	}
	return nil
}

// A slow decision about a delivery delays who publishes, and nobody else.
func TestASlowDeliveryDecisionDelaysNoOtherCommit(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		a := slowDelivery{make(chan struct{}), func() { time.Sleep(time.Minute) }}
		st.cfg.Authorizer = a
		st.start()
		d := st.durable("d", packets.V5)
		d.subscribe("#", packets.QoS1)
		d.nc.Close()
		st.clean("w").subscribe("$share/g/slow", packets.QoS1)
		p, q := st.clean("p"), st.clean("q")
		time.Sleep(time.Second)
		b, _ := message2("slow", "x", packets.QoS1, 1).Append(nil, p.v)
		p.nc.Write(b)
		<-a.entered
		q.send(message2("other", "x", packets.QoS1, 1))
		time.Sleep(10 * time.Second)
		q.want(packets.TypePuback)
	})
}

// QoS 2 messages of a publisher keep their order, also when only the first has to wait for the
// store.
func TestAMessageThatNeedsNoStoreDoesNotOvertakeOneThatDoes(t *testing.T) {
	onStage(t, func(st *stage) {
		d := st.durable("d", packets.V5)
		d.subscribe("t", packets.QoS2)
		s := st.clean("s")
		s.subscribe("t", packets.QoS2)
		p := st.clean("p")
		time.Sleep(time.Second)
		release := st.store.hold()
		p.send(message2("t", "one", packets.QoS2, 1))
		d.send(&packets.Unsubscribe{PacketID: 2, Filters: []string{"t"}})
		p.send(message2("t", "two", packets.QoS2, 2))
		synctest.Wait()
		release()
		got := s.want(packets.TypePublish, packets.TypePublish)
		require.Equal(t, "one", string(got[0].(*packets.Publish).Payload))
	})
}

// A program reads a QoS 2 message once it is durable, as a client gets it then.
func TestAProgramReadsAQoS2MessageOnceItIsDurable(t *testing.T) {
	onStage(t, func(st *stage) {
		ctx := context.Background()
		sub, err := st.b.Subscribe(ctx, "t", &SubscribeOptions{Name: "n", QoS: packets.QoS2})
		require.NoError(t, err)
		p := st.clean("p")
		time.Sleep(time.Second)
		release := st.store.hold()
		st.store.fail(store.ErrFull)
		p.send(message2("t", "x", packets.QoS2, 1))
		next, cancel := context.WithTimeout(ctx, time.Millisecond)
		m, err := sub.Next(next)
		cancel()
		release()
		require.Equal(t, packets.QuotaExceeded, p.want(packets.TypePubrec)[0].(*packets.Ack).Code)
		require.Error(t, err, "a QoS 2 message that was refused: %v", m)
		st.store.fail(nil)
		time.Sleep(time.Second)
		p.send(message2("t", "y", packets.QoS2, 2))
		m, err = sub.Next(ctx)
		require.NoError(t, err)
		require.Equal(t, "y", string(m.Payload))
	})
}

type slowEnd struct {
	hooks.Authorizer
	slow chan struct{}
	on   *atomic.Bool
}

func (slowEnd) Authorize(context.Context, *hooks.AccessRequest) error { return nil }

func (a slowEnd) AuthorizeDelivery(_ context.Context, r *hooks.AccessRequest) error {
	if a.on.Load() && r.Topic == "t2" {
		<-a.slow
	}
	return nil
}

// What a Session leaves behind at its end is decided before others have to wait for it.
func TestASlowDecisionAtTheEndOfASessionDelaysNoOtherCommit(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		h := slowEnd{slow: make(chan struct{}), on: new(atomic.Bool)}
		st.cfg.Authorizer = h
		st.start()
		a := st.durable("a", packets.V5)
		a.subscribe("$share/g/#", packets.QoS1)
		a.nc.Close()
		synctest.Wait()
		p, q := st.clean("p"), st.clean("q")
		d := st.durable("d", packets.V5)
		d.subscribe("other", packets.QoS1)
		p.send(message2("t1", "x", packets.QoS1, 1), message2("t2", "x", packets.QoS1, 2))
		p.want(packets.TypePuback, packets.TypePuback)
		b := st.durable("b", packets.V5)
		b.subscribe("$share/g/#", packets.QoS1)
		b.nc.Close()
		time.Sleep(time.Second)
		h.on.Store(true)
		go st.b.DeleteSession(context.Background(), "a")
		synctest.Wait()
		q.send(message2("other", "x", packets.QoS1, 1))
		time.Sleep(10 * time.Second)
		got := q.got()
		close(h.slow)
		require.Len(t, got, 1, "a slow decision keeps others from the store")
	})
}

type panickingLog struct{ slog.Handler }

func (panickingLog) Enabled(context.Context, slog.Level) bool { return true }
func (panickingLog) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "panic in an Observer") {
		panic("in the log")
	}
	return nil
}

// A panic while a Session's end is written, here of the program's log, does not stop the committer.
func TestAPanicLeavesNoBatchPinned(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		st.cfg.Logger = slog.New(panickingLog{})
		o := *st.cfg.Observer
		o.Published = func(e hooks.Published) {
			if e.Topic() == "will" {
				panic("in the Observer")
			}
		}
		st.cfg.Observer = &o
		st.start()
		d := st.durable("d", packets.V5)
		d.subscribe("#", packets.QoS1)
		will := func(c *packets.Connect) {
			c.Will = &packets.Will{Topic: "will", QoS: 1,
				Payload: []byte("bye")}
		}
		st.dial("c", packets.V5, false, 3600, will).want(packets.TypeConnack)
		p := st.clean("p")
		time.Sleep(time.Second)
		st.dial("c", packets.V5, false, 3600)
		synctest.Wait()
		time.Sleep(time.Second)
		p.send(message2("other", "x", packets.QoS1, 1))
		time.Sleep(10 * time.Second)
		p.want(packets.TypePuback)
	})
}

// A QoS 2 message that the store need not know does not overtake one that waits for it.
func TestWhatWaitsForTheStoreIsNotOvertaken(t *testing.T) { // [MQTT-4.6.0-6]
	onStage(t, func(st *stage) {
		s, p := st.clean("s"), st.clean("p")
		s.subscribe("t", packets.QoS2)
		release := st.store.hold()
		p.send(toRetain(message2("t", "1", packets.QoS2, 1)), message2("t", "2", packets.QoS2, 2))
		release()
		got := s.want(packets.TypePublish, packets.TypePublish)
		require.Equal(t, "1", string(got[0].(*packets.Publish).Payload))
		p.want(packets.TypePubrec, packets.TypePubrec)
		time.Sleep(time.Second)
	})
}

// A QoS 2 message that waits for the Store makes its publisher wait for a full Subscription as any
// other does.
func TestBlockHoldsWhereTheStoreComesFirst(t *testing.T) {
	onStage(t, func(st *stage) {
		d := st.durable("d", packets.V5)
		d.subscribe("t", packets.QoS2)
		d.nc.Close()
		sub, err := st.b.Subscribe(context.Background(), "t",
			&SubscribeOptions{QoS: 2, Buffer: 2, Overflow: OverflowBlock, BlockTimeout: time.Hour})
		require.NoError(t, err)
		time.Sleep(time.Second)
		p := st.clean("p")
		for id := range uint16(10) {
			p.send(message2("t", "x", packets.QoS2, id+1))
		}
		time.Sleep(time.Second)
		waiting := 10 - len(p.got())
		require.GreaterOrEqual(t, waiting, 6, "messages that are not read")
		for range 10 {
			_, err := sub.Next(context.Background())
			require.NoError(t, err)
		}
	})
}
