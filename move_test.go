package dunlin

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what moves: Wills that fall due, and the messages of a shared subscription whose
// member has gone. They move whole or not at all.

// fullKinds are the ways in which a store is full.
var fullKinds = map[string]func(op store.Op) bool{
	"no room for what adds":   adds,
	"no room for anything":    func(store.Op) bool { return true },
	"no room for the message": func(op store.Op) bool { _, is := op.(*store.Publish); return is },
}

// payloads takes what has come of messages, acknowledging all.
func (p *peerConn) payloads() (all []string) {
	p.st.t.Helper()
	for got := p.got(); len(got) > 0; got = p.got() {
		for _, q := range got {
			switch q := q.(type) {
			case *packets.Publish:
				all = append(all, string(q.Payload))
				if q.QoS > 0 {
					p.send(ack(packets.TypePuback+packets.Type(q.QoS-1), q.PacketID))
				}
			case *packets.Ack:
				if q.Kind == packets.TypePubrel {
					p.send(ack(packets.TypePubcomp, q.PacketID))
				}
			}
		}
	}
	return all
}

// fullFor makes the store full in that way.
func (st *stage) fullFor(kind string) { st.store.refuse(fullKinds[kind]) }

// roomAgain ends what fullFor began, and lets everything come to rest.
func (st *stage) roomAgain() {
	st.store.fail(nil)
	time.Sleep(2 * time.Second)
	require.NoError(st.t, st.b.Healthy())
}

// endings are the ways in which endOf lets a Session end.
var endings = []string{"deleted", "expired", "clean start", "taken over"}

// endOf ends the Session a, which expires after a minute.
func (st *stage) endOf(how string) {
	switch how {
	case "deleted":
		go st.b.DeleteSession(context.Background(), "a")
	case "expired":
		time.Sleep(2 * time.Minute)
	case "clean start":
		st.dial("a", packets.V5, true, 0)
	default:
		st.dial("a", packets.V311, true, 0)
	}
}

// A Session of a shared subscription that ends while the store is full keeps its messages until
// they can go to another member.
func TestAnEndOfASessionWhileTheStoreIsFullLosesNothing(t *testing.T) {
	for kind := range fullKinds {
		for _, end := range endings {
			for _, crashes := range []bool{false, true} {
				t.Run(fmt.Sprint(kind, ", ", end, ", crash ", crashes), func(t *testing.T) {
					onStage(t, func(st *stage) {
						a := st.dial("a", packets.V5, false, 60)
						a.want(packets.TypeConnack)
						a.subscribe("$share/g/t/+", packets.QoS2)
						a.nc.Close()
						synctest.Wait()
						p := st.clean("p")
						var want []string
						for i := range 6 {
							q := packets.QoS(1 + i%2)
							p.send(message2(fmt.Sprint("t/", i%3), fmt.Sprint(i), q, uint16(i+1)))
							want = append(want, fmt.Sprint(i))
						}
						require.Len(t, p.got(), 6, "acknowledgements")
						b := st.durable("b", packets.V5)
						b.subscribe("$share/g/t/+", packets.QoS2)
						time.Sleep(time.Second)
						st.fullFor(kind)
						st.endOf(end)
						time.Sleep(time.Second)
						if crashes {
							st.crash()
							b = st.dial("b", packets.V5, false, 3600)
							time.Sleep(3 * time.Minute) // it has expired
						}
						st.roomAgain()
						got := b.payloads()
						slices.Sort(got)
						for i, m := range want {
							n := len(slices.DeleteFunc(slices.Clone(got),
								func(x string) bool { return x != m }))
							require.Positive(t, n, "%s was acknowledged", m)
							require.False(t, n > 1 && i%2 == 1, "%s of QoS 2 came %d times", m, n)
						}
						time.Sleep(time.Second) // the acknowledgements are durable
						st.crash()
						require.Nil(t, st.b.sessionAt("a"), "the Session that has ended")
						b = st.dial("b", packets.V5, false, 3600)
						require.Empty(t, b.payloads())
					})
				})
			}
		}
	}
}

// A Will that falls due while the store is full reaches at once whoever needs no store, and the
// others when there is room.
func TestAWillThatFallsDueWhileTheStoreIsFullIsNotLost(t *testing.T) {
	will := func(q packets.QoS, delay uint32) func(c *packets.Connect) {
		return func(c *packets.Connect) {
			c.Will = &packets.Will{Topic: "will", QoS: q, Payload: []byte("bye"), Retain: true}
			c.Will.Properties = packets.Properties(nil).AppendUint(packets.WillDelayInterval, delay)
		}
	}
	for kind := range fullKinds {
		for _, q := range []packets.QoS{0, 1, 2} {
			for _, expiry := range []uint32{0, 5, 3600} {
				for _, delay := range []uint32{0, 20} {
					for _, crashes := range []bool{false, true} {
						t.Run(fmt.Sprintf("%s, QoS %d, expiry %d, delay %d, crash %v", kind, q,
							expiry, delay, crashes), func(t *testing.T) {
							onStage(t, func(st *stage) {
								d := st.durable("durable", packets.V5)
								d.subscribe("will", packets.QoS2)
								w := st.clean("watcher")
								w.subscribe("will", packets.QoS2)
								c := st.dial("c", packets.V5, false, expiry, will(q, delay))
								c.want(packets.TypeConnack)
								time.Sleep(time.Second)
								st.fullFor(kind)
								x := &Message{Topic: "x", QoS: 1, Retain: true,
									Payload: []byte("x")}
								// which finds out
								require.Error(t, st.b.Publish(context.Background(), x))
								c.nc.Close()
								time.Sleep(30 * time.Second)
								require.Equal(t, []string{"bye"}, w.payloads(), "at once")
								if crashes {
									st.crash()
									d = st.dial("durable", packets.V5, false, 3600)
									time.Sleep(30 * time.Second)
								}
								st.roomAgain()
								want := []string{"bye"}
								if q == 0 && crashes {
									got := d.payloads()
									require.LessOrEqual(t, len(got), 1)
								} else {
									require.Equal(t, want, d.payloads(), "when there is room")
								}
								require.Empty(t, w.payloads())
								require.NotNil(t, st.b.retained.Get("will"))
								time.Sleep(time.Second) // its acknowledgement is durable
								st.crash()
								require.NotNil(t, st.b.retained.Get("will"), "it is durable")
								d = st.dial("durable", packets.V5, false, 3600)
								time.Sleep(time.Hour)
								require.Empty(t, d.payloads(), "and comes once")
							})
						})
					}
				}
			}
		}
	}
}

// A group gets a Will once, also if it falls due while the store is full: then it is published a
// second time, for those that need the store.
func TestAWillReachesAGroupOnceWhileTheStoreIsFull(t *testing.T) {
	groups := map[string]string{ // a member c needs no store, a member d does
		"no member needs the store": "cc", "one member needs the store": "cd",
		"all members need the store": "dd",
	}
	for name, members := range groups {
		for _, q := range []packets.QoS{1, 2} {
			for _, known := range []bool{false, true} { // the broker knows that the store is full
				for turn := range members { // of the member that gets the Will first
					if q == 1 && !known && members[turn] == 'd' {
						continue // gets it before it is durable: QoS 1 may come twice
					}
					t.Run(fmt.Sprintf("%s, QoS %d, known %v, turn %d", name, q, known, turn),
						func(t *testing.T) {
							onStage(t, func(st *stage) { st.willToGroup(members, turn, q, known) })
						})
				}
			}
		}
	}
}

// willToGroup has a Will fall due while the store is full, and fails unless one member gets it. The
// other receiver is there so that the Will needs the store.
func (st *stage) willToGroup(members string, turn int, q packets.QoS, known bool) {
	other := st.durable("other", packets.V5)
	other.subscribe("will", packets.QoS2)
	all := []*peerConn{other}
	for i, kind := range members {
		p := st.dial(fmt.Sprint(i), packets.V5, false, map[rune]uint32{'c': 0, 'd': 3600}[kind])
		p.want(packets.TypeConnack)
		p.subscribe("$share/g/will", packets.QoS2)
		all = append(all, p)
	}
	for range turn {
		require.NoError(st.t, st.b.Publish(context.Background(), &Message{Topic: "will"}))
	}
	c := st.dial("c", packets.V5, false, 0, func(c *packets.Connect) {
		c.Will = &packets.Will{Topic: "will", QoS: q, Payload: []byte("bye")}
	})
	c.want(packets.TypeConnack)
	time.Sleep(time.Second)
	for _, p := range all {
		p.payloads()
	}
	st.fullFor("no room for the message")
	if known {
		x := &Message{Topic: "x", QoS: 1, Retain: true, Payload: []byte("x")}
		require.Error(st.t, st.b.Publish(context.Background(), x))
	}
	c.nc.Close()
	time.Sleep(30 * time.Second)
	var got []string
	for _, p := range all[1:] {
		got = append(got, p.payloads()...)
	}
	if members == "cc" {
		require.Equal(st.t, []string{"bye"}, got, "at once")
	}
	st.roomAgain()
	for _, p := range all[1:] {
		got = append(got, p.payloads()...)
	}
	require.Equal(st.t, []string{"bye"}, got, "the group")
	require.Contains(st.t, other.payloads(), "bye")
}

// A client comes for its messages although the store has no room for the Will that it left.
func TestAClientComesBackWhileItsWillWaitsForRoom(t *testing.T) {
	onStage(t, func(st *stage) {
		d := st.durable("durable", packets.V5)
		d.subscribe("will/#", packets.QoS1)
		leave := func(name string) {
			c := st.dial("c", packets.V5, false, 3600, func(c *packets.Connect) {
				c.Will = &packets.Will{Topic: "will/" + name, QoS: 1, Payload: []byte(name)}
			})
			require.Equal(t, packets.Success,
				c.want(packets.TypeConnack)[0].(*packets.Connack).Code)
			c.nc.Close()
			time.Sleep(time.Second)
		}
		st.durable("c", packets.V5).nc.Close()
		time.Sleep(time.Second)
		st.fullFor("no room for the message")
		require.Error(t, st.b.Publish(context.Background(), &Message{Topic: "will/x", QoS: 2}))
		leave("one")
		leave("two")
		st.roomAgain()
		require.Equal(t, []string{"one", "two"}, d.payloads())
	})
}

// What a Session leaves to others moves once what is in its queue is decided. Close waits for that.
func TestWhatMovesWhenTheBrokerClosesIsDurable(t *testing.T) {
	onStage(t, func(st *stage) {
		a := st.clean("a")
		a.subscribe("$share/g/t", packets.QoS1)
		b := st.durable("b", packets.V5)
		b.subscribe("$share/g/t", packets.QoS1)
		b.nc.Close()
		st.durable("other", packets.V5).subscribe("u", packets.QoS1)
		p := st.clean("p")
		p.send(message2("t", "for one of them", packets.QoS1, 1))
		p.want(packets.TypePuback)
		a.want(packets.TypePublish)
		gate := make(chan struct{})
		st.store.mu.Lock()
		st.store.gate = gate
		st.store.mu.Unlock()
		p.send(message2("u", "undecided", packets.QoS1, 2))
		a.nc.Close()
		time.Sleep(time.Second)
		closed := make(chan error)
		go func() { closed <- st.b.Close() }()
		time.Sleep(time.Second)
		close(gate)
		require.NoError(t, <-closed)
		<-st.served
		st.start()
		b = st.dial("b", packets.V5, false, 3600)
		require.Equal(t, []string{"for one of them"}, b.payloads())
	})
}

// Members of a group are deleted while messages are published and the store is slow. Nothing that
// was acknowledged is lost while one member stays, and what was published at QoS 2 comes once.
func TestMembersOfAGroupAreDeletedWhileMessagesArePublished(t *testing.T) {
	const members, publishers, each = 24, 4, 40
	for _, crashes := range []bool{false, true} {
		t.Run(fmt.Sprint("crash ", crashes), func(t *testing.T) {
			onStage(t, func(st *stage) {
				for i := range members { // what was sent at QoS 2 does not move [MQTT-4.8.2-5]
					p := st.durable(fmt.Sprint(i), packets.V5)
					p.subscribe("$share/g/t/+", packets.QoS(1+i%2))
					if i%2 == 1 {
						p.nc.Close()
					}
				}
				st.durable("stays", packets.V5).subscribe("$share/g/t/+", packets.QoS2)
				st.store.mu.Lock()
				st.store.before = func([]store.Op) error {
					time.Sleep(3 * time.Millisecond)
					return nil
				}
				st.store.mu.Unlock()
				var calls sync.WaitGroup
				for i := range publishers {
					calls.Go(func() {
						for k := range each {
							m := &Message{Topic: fmt.Sprint("t/", i), QoS: packets.QoS(1 + k%2)}
							m.Payload = []byte(fmt.Sprint(i, " ", k))
							assert.NoError(t, st.b.Publish(context.Background(), m))
						}
					})
				}
				for i := range members {
					calls.Go(func() {
						time.Sleep(time.Duration(i) * 4 * time.Millisecond)
						found, err := st.b.DeleteSession(context.Background(), fmt.Sprint(i))
						assert.True(t, found)
						assert.NoError(t, err)
					})
				}
				calls.Wait()
				time.Sleep(time.Second)
				if crashes {
					st.crash()
				}
				st.store.fail(nil)
				got := map[string]int{}
				for _, m := range st.dial("stays", packets.V5, false, 3600).payloads() {
					got[m]++
				}
				for i := range publishers {
					for k := range each {
						m := fmt.Sprint(i, " ", k)
						require.Positive(t, got[m], "%s was acknowledged", m)
						require.False(t, k%2 == 1 && got[m] > 1, "%s of QoS 2 came twice", m)
					}
				}
				require.Equal(t, 1, st.b.Stats().Sessions)
			})
		})
	}
}

// A QoS 2 message that has its Packet Identifier, and waits for the store, was not sent: when the
// Session ends it goes to another member of the group.
func TestAMessageThatHasNotLeftGoesToAnotherMember(t *testing.T) {
	for _, how := range []string{"deleted", "left, then deleted", "clean start"} {
		t.Run(how, func(t *testing.T) {
			onStage(t, func(st *stage) {
				a := st.dial("a", packets.V5, false, 3600, func(c *packets.Connect) {
					c.Properties = c.Properties.AppendUint(packets.ReceiveMaximum, 1)
				})
				a.want(packets.TypeConnack)
				a.subscribe("$share/g/t", packets.QoS2)
				p := st.clean("p")
				for i := range 2 {
					p.send(message2("t", fmt.Sprint(i), packets.QoS2, uint16(i+1)))
					p.want(packets.TypePubrec)
				}
				id := a.want(packets.TypePublish)[0].(*packets.Publish).PacketID
				b := st.durable("b", packets.V5)
				b.subscribe("$share/g/t", packets.QoS2)
				a.send(ack(packets.TypePubrec, id))
				a.want(packets.TypePubrel)
				time.Sleep(time.Second)
				release := st.store.hold()
				a.send(ack(packets.TypePubcomp, id))
				a.wantNothing("the second message has its identifier, which is not durable yet")
				switch how {
				case "left, then deleted":
					a.nc.Close()
					synctest.Wait()
					fallthrough
				case "deleted":
					go st.b.DeleteSession(context.Background(), "a")
				default:
					st.dial("a", packets.V5, true, 0)
				}
				synctest.Wait()
				release()
				time.Sleep(time.Second)
				require.Equal(t, []string{"1"}, b.payloads())
				time.Sleep(time.Second)
				st.crash()
				require.Empty(t, st.dial("b", packets.V5, false, 3600).payloads())
			})
		})
	}
}
