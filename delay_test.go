package dunlin

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// delaying is a stage whose clients may delay messages by an hour.
func delaying(t *testing.T, f func(st *stage)) {
	t.Helper()
	onStage(t, func(st *stage) {
		st.cfg.MaxDelay = time.Hour
		st.crash() // so that the Broker has it
		f(st)
	})
}

// delays publishes a message to topic and returns its Reason Code, once it has come.
func (p *peerConn) delays(topic, payload string, q packets.QoS) packets.ReasonCode {
	p.st.t.Helper()
	p.send(message2(topic, payload, q, 9))
	kind := packets.TypePuback
	if q == packets.QoS2 {
		kind = packets.TypePubrec
	}
	code := p.want(kind)[0].(*packets.Ack).Code
	if q == packets.QoS2 && !code.Failed() {
		p.send(ack(packets.TypePubrel, 9))
		p.want(packets.TypePubcomp)
	}
	return code
}

// A delayed message comes at its time, once, also if the process was killed before, meanwhile or
// after it, and without a store.
func TestADelayedMessageComesOnceAtItsTime(t *testing.T) {
	for _, q := range []packets.QoS{1, 2} {
		for _, life := range []time.Duration{0, 5 * time.Second, 30 * time.Second} {
			t.Run(fmt.Sprint("QoS ", q, ", crash after ", life), func(t *testing.T) {
				delaying(t, func(st *stage) {
					d := st.durable("d", packets.V5)
					d.subscribe("a/b", packets.QoS2)
					p := st.durable("p", packets.V5)
					began := time.Now()
					require.Zero(t, p.delays("$delayed/10/a/b", "later", q))
					if life > 0 {
						time.Sleep(life)
						if life < 10*time.Second {
							d.wantNothing("it is too early")
						}
						st.crash()
						d = st.dial("d", packets.V5, false, 3600)
						d.wantConnack(t)
					}
					time.Sleep(10*time.Second - time.Millisecond - time.Since(began))
					if life < 10*time.Second {
						require.Empty(t, d.payloads(), "it is too early")
					}
					time.Sleep(time.Second)
					require.Equal(t, []string{"later"}, d.payloads())
					time.Sleep(time.Second)
					st.crash()
					time.Sleep(time.Minute)
					d = st.dial("d", packets.V5, false, 3600)
					d.wantConnack(t)
					require.Empty(t, d.payloads(), "once")
					require.Zero(t, st.b.memory.Of(budget.Uncommitted))
				})
			})
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, func(c *Config) { c.MaxDelay = time.Hour })
		l, done := serveMemory(t, b)
		c, _ := newTestClient(t, dial(t, l), connect("c"))
		require.Zero(t, c.subscribe("t", 1)-1)
		require.Zero(t, c.publish("$delayed/10/t", "x", true))
		time.Sleep(9 * time.Second)
		require.Nil(t, b.retained.Get("t"))
		time.Sleep(2 * time.Second)
		require.Equal(t, "x", string(c.message("t").Payload))
		require.Equal(t, "x", string(b.retained.Get("t").Payload))
		c.nc.Close()
		done()
	})
}

// wantConnack takes the CONNACK, and leaves what comes behind it.
func (p *peerConn) wantConnack(t *testing.T) {
	t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	h, err := packets.ParseHeader(p.in, p.v)
	require.NoError(t, err)
	require.Equal(t, packets.TypeConnack, h.Type)
	p.in = p.in[h.Len+h.Remaining:]
}

func TestADelayedMessageIsAcknowledgedWhenItIsDurable(t *testing.T) {
	for _, q := range []packets.QoS{1, 2} {
		delaying(t, func(st *stage) {
			p := st.clean("p")
			release := st.store.hold()
			p.send(message2("$delayed/10/t", "x", q, 9))
			time.Sleep(time.Second)
			p.wantNothing("it is not durable")
			release()
			synctest.Wait()
			require.Len(t, p.got(), 1)
		})
	}
}

// What the store does not take is refused, and counts nowhere; what it has taken comes when it
// works again.
func TestDelayedMessagesWhileTheStoreIsFull(t *testing.T) {
	for _, crashes := range []bool{false, true} {
		delaying(t, func(st *stage) {
			d := st.durable("d", packets.V5)
			d.subscribe("t", packets.QoS1)
			p := st.clean("p")
			require.Zero(t, p.delays("$delayed/10/t", "first", 1))
			used := st.b.memory.Of(budget.Sessions)
			st.store.fail(store.ErrFull)
			require.Equal(t, packets.QuotaExceeded, p.delays("$delayed/10/t", "second", 1))
			require.Equal(t, packets.QuotaExceeded, p.delays("$delayed/10/t", "third", 2))
			require.Equal(t, used, st.b.memory.Of(budget.Sessions))
			time.Sleep(time.Minute)
			require.Empty(t, d.payloads())
			if crashes {
				st.crash()
				d = st.dial("d", packets.V5, false, 3600)
				d.wantConnack(t)
			}
			st.roomAgain()
			time.Sleep(2 * time.Second)
			require.Equal(t, []string{"first"}, d.payloads())
			time.Sleep(time.Second)
			st.crash()
			time.Sleep(time.Minute)
			d = st.dial("d", packets.V5, false, 3600)
			d.wantConnack(t)
			require.Empty(t, d.payloads(), "what was refused does not come")
		})
	}
}

// The Authorizer decides about the topic without $delayed/SECONDS/: when the message comes, and
// when it is due.
func TestADelayedMessageIsAuthorizedAsAPublishToItsTopic(t *testing.T) {
	delay := func(c *Config) { c.MaxDelay = time.Hour }
	withRules(t, []string{"allow all open/#"}, delay, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		require.Zero(t, c.subscribe("open/#", 0))
		require.Equal(t, packets.NotAuthorized, c.publish("$delayed/5/closed", "", false))
		require.Equal(t, []string{"denied c publish closed"}, r.events)
		require.Equal(t, packets.NotAuthorized, c.publish("$delayed/5/$SYS/x", "", false))
		require.Zero(t, c.publish("$delayed/5/open/a", "1", false))
		time.Sleep(6 * time.Second)
		require.Equal(t, "1", string(c.message("open/a").Payload))
		require.Zero(t, c.publish("$delayed/5/open/a", "2", false))
		r.rules.Set(rulesOf(t, "allow subscribe open/#"))
		time.Sleep(6 * time.Second)
		c.nothing("it may not be published any more")
		c.close()
	})
}

func TestDelayedMessagesBelowAMountPoint(t *testing.T) {
	delay := func(c *Config) { c.MaxDelay = time.Hour }
	withRules(t, everything, delay, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error { q.Grant.MountPoint = "m/"; return nil }
		c := r.connect(as("c", "u"))
		require.Zero(t, c.publish("$delayed/5/a", "1", true))
		time.Sleep(6 * time.Second)
		require.NotNil(t, r.b.retained.Get("m/a"))
		c.close()
	})
}

func TestDelayedMessagesAreBounded(t *testing.T) {
	edit := func(c *Config) {
		c.MaxDelay, c.MaxDelayedPerPrincipal = time.Minute, 2
		c.MaxKeptBytesPerPrincipal = 50_000
	}
	withRules(t, everything, edit, func(r *guardRig) {
		c, other := r.connect(as("c", "u")), r.connect(as("o", "v"))
		before := map[string]int64{"=u": 0, "=v": 0}
		for name := range before {
			a := r.b.owners.Open(name)
			before[name] = a.Used(owners.Kept)
			r.b.owners.Close(a)
		}
		for _, topic := range []string{"61/t", "0/t", "-1/t", "x/t", "5/", "5", "",
			"4294967296/t"} {
			require.Equal(t, packets.TopicNameInvalid, c.publish("$delayed/"+topic, "", false),
				topic)
		}
		require.Zero(t, c.publish("$delayed/60/t", "", false))
		require.Equal(t, packets.QuotaExceeded,
			c.publish("$delayed/5/t", string(make([]byte, 50_000)), false), "bytes")
		require.Zero(t, c.publish("$delayed/5/t", "", false))
		require.Equal(t, packets.QuotaExceeded, c.publish("$delayed/5/t", "", false), "a third one")
		require.Zero(t, other.publish("$delayed/5/t", "", false), "another principal")
		time.Sleep(6 * time.Second)
		require.Less(t, c.publish("$delayed/5/t", "", false), packets.UnspecifiedError,
			"there is room again")
		time.Sleep(time.Hour)
		for name, keeps := range before {
			a := r.b.owners.Open(name)
			require.Zero(t, a.Used(owners.Delayed), name)
			require.Equal(t, keeps, a.Used(owners.Kept), name)
			r.b.owners.Close(a)
		}
		c.close()
		other.close()
	})
}

func TestWithoutMaxDelayNobodyDelays(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		require.Equal(t, packets.NotAuthorized, c.publish("$delayed/5/t", "", false))
		c.close()
	})
}

// The process is killed while the message, which is due, is being written.
func TestACrashWhileADelayedMessageMoves(t *testing.T) {
	for _, committed := range []bool{false, true} {
		delaying(t, func(st *stage) {
			d := st.durable("d", packets.V5)
			d.subscribe("t", packets.QoS2)
			w := st.clean("w")
			w.subscribe("t", packets.QoS2)
			p := st.clean("p")
			require.Zero(t, p.delays("$delayed/10/t", "x", 2))
			release := st.store.hold()
			time.Sleep(11 * time.Second)
			require.Empty(t, d.payloads(), "it is not durable")
			require.Empty(t, w.payloads(), "nor here")
			if committed {
				release()
				synctest.Wait()
			}
			st.crash()
			d = st.dial("d", packets.V5, false, 3600)
			d.wantConnack(t)
			time.Sleep(2 * time.Second)
			require.Equal(t, []string{"x"}, d.payloads(), "committed: %v", committed)
		})
	}
}

// What is known of a client stays with its delayed messages when the client has gone, and counts.
func TestTheClientOfDelayedMessagesCounts(t *testing.T) { synctest.Test(t, clientOfDelayed) }

func clientOfDelayed(t *testing.T) {
	b := newTestBroker(t, func(c *Config) { c.MaxDelay = time.Hour })
	defer b.Close()
	used := func() int64 { return b.memory.Of(budget.Sessions) }
	before := used()
	p := connect("c")
	p.Properties = p.Properties.AppendUser("k", strings.Repeat("v", 7000))
	c, err := b.adopt(b.ctx, &sink{})
	require.NoError(t, err)
	f := &feed{t, c, nil}
	f.packet(p, packets.V5)
	for i := range 3 {
		f.packet(&packets.Publish{Topic: fmt.Appendf(nil, "$delayed/%d/t", i+1)}, packets.V5)
	}
	c.finish(errNormal)
	require.InDelta(t, 7000+4*delayedCost, used()-before, 1500, "once for all three")
	time.Sleep(2500 * time.Millisecond)
	require.InDelta(t, 7000+2*delayedCost, used()-before, 1000, "as long as one waits")
	time.Sleep(time.Second)
	synctest.Wait()
	require.Equal(t, before, used())
}

// Decisions about the delayed messages of one client that take long do not delay the Will of
// another.
func TestSlowDecisionsAboutOneClientDelayNoOther(t *testing.T) {
	for _, user := range []string{"-", "u"} {
		slow := func(r *hooks.AccessRequest) bool {
			return r.Client.ID == "slow" && strings.HasPrefix(r.Topic, "s/")
		}
		var due atomic.Bool
		withRules(t, everything, func(c *Config) {
			c.MaxDelay = time.Hour
			c.Authorizer = hooks.AuthorizerFunc(func(ctx context.Context,
				r *hooks.AccessRequest) error {
				if due.Load() && slow(r) {
					select {
					case <-time.After(5 * time.Second):
					case <-ctx.Done():
					}
				}
				return nil
			})
		}, func(r *guardRig) {
			c := r.connect(as("slow", user))
			for i := range 1000 {
				c.send(&packets.Publish{Topic: fmt.Appendf(nil, "$delayed/10/s/%d", i)})
			}
			c.send(new(packets.Pingreq))
			c.recv()
			due.Store(true)
			sub := r.connect(as("sub", "other"))
			sub.subscribe("w", 0)
			p := as("other", strings.Replace(user, "u", "v", 1))
			p.Will = &packets.Will{Topic: "w"}
			p.Will.Properties = p.Will.Properties.AppendUint(packets.WillDelayInterval, 11)
			began := time.Now()
			r.connect(p).nc.Close()
			sub.nc.SetReadDeadline(time.Time{})
			_, err := sub.r.ReadPacket()
			require.NoError(t, err)
			require.Equal(t, 11*time.Second, time.Since(began))
			sub.close()
			c.close()
		})
	}
}
