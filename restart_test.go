package dunlin

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

func TestASessionIsWhatItWasAfterACrash(t *testing.T) {
	onStage(t, func(st *stage) {
		s := st.durable("s", packets.V5)
		s.send(&packets.Subscribe{PacketID: 1,
			Properties: packets.Properties(nil).AppendUint(packets.SubscriptionIdentifier, 77),
			Subscriptions: []packets.Subscription{
				{Filter: "t/#", QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 2},
				{Filter: "$share/g/u/+", QoS: 1},
			}})
		s.want(packets.TypeSuback)
		p := st.clean("p")
		p.send(message2("t/1", "one", packets.QoS1, 1), message2("t/2", "two", packets.QoS2, 2),
			message2("t/3", "three", packets.QoS2, 3))
		s.want(packets.TypePublish, packets.TypePublish, packets.TypePublish)
		s.send(ack(packets.TypePubrec, 2))
		s.want(packets.TypePubrel)
		s.nc.Close()
		synctest.Wait()
		expiring := message2("t/4", "four", packets.QoS1, 4)
		expiring.Properties = packets.Properties(nil).AppendUint(packets.MessageExpiryInterval, 100)
		p.send(expiring, message2("u/1", "five", packets.QoS1, 5))
		gone := message2("t/5", "gone", packets.QoS1, 6)
		gone.Properties = packets.Properties(nil).AppendUint(packets.MessageExpiryInterval, 20)
		p.send(gone)
		p.got()
		before, _ := st.b.Session("s")
		time.Sleep(10 * time.Second)
		st.crash()
		after, _ := st.b.Session("s")
		require.ElementsMatch(t, before.Subscriptions, after.Subscriptions)
		before.Subscriptions, after.Subscriptions = nil, nil
		require.Equal(t, 10*time.Second, after.OldestQueued.Sub(before.OldestQueued),
			"no message is older than the process")
		before.OldestQueued = after.OldestQueued
		require.Equal(t, before, after)
		time.Sleep(20 * time.Second)
		s = st.dial("s", packets.V5, false, 3600)
		got := s.want(packets.TypeConnack, packets.TypePublish, packets.TypePubrel,
			packets.TypePublish, packets.TypePublish, packets.TypePublish)
		require.True(t, got[0].(*packets.Connack).SessionPresent)
		for i, want := range []struct {
			payload string
			id      uint16
			dup     bool
		}{1: {"one", 1, true}, 3: {"three", 3, true}, 4: {"four", 4, false},
			5: {"five", 5, false}} {
			if want.payload == "" {
				continue
			}
			m := got[i].(*packets.Publish)
			require.Equal(t, want.payload, string(m.Payload))
			require.Equal(t, want.id, m.PacketID, want.payload)
			require.Equal(t, want.dup, m.Dup, want.payload)
			id, _ := m.Properties.Uint(packets.SubscriptionIdentifier)
			require.Equal(t, uint32(77), id, want.payload)
		}
		require.Equal(t, uint16(2), got[2].(*packets.Ack).PacketID)
		rest, _ := got[4].(*packets.Publish).Properties.Uint(packets.MessageExpiryInterval)
		require.Equal(t, uint32(70), rest, "what remains of the Message Expiry Interval")
		s.send(ack(packets.TypePuback, 1), ack(packets.TypePubcomp, 2), ack(packets.TypePubrec, 3),
			ack(packets.TypePuback, 4), ack(packets.TypePuback, 5))
		s.want(packets.TypePubrel)
		s.send(ack(packets.TypePubcomp, 3))
		time.Sleep(time.Second)
		st.crash()
		info, _ := st.b.Session("s")
		require.Zero(t, info.Queued+info.Inflight, "what was acknowledged is over")
	})
}

func TestAPublisherGoesOnAfterACrash(t *testing.T) {
	onStage(t, func(st *stage) {
		s := st.durable("s", packets.V5)
		s.subscribe("t", packets.QoS2)
		p := st.durable("p", packets.V5)
		m := message2("t", "x", packets.QoS2, 9)
		p.send(m)
		p.want(packets.TypePubrec)
		st.crash()
		p = st.dial("p", packets.V5, false, 3600)
		p.want(packets.TypeConnack)
		m.Dup = true
		p.send(m)
		p.want(packets.TypePubrec)
		info, _ := st.b.Session("s")
		require.Equal(t, 1, info.Queued+info.Inflight, "the repetition is not delivered again")
		p.send(ack(packets.TypePubrel, 9))
		p.want(packets.TypePubcomp)
		st.crash()
		p = st.dial("p", packets.V5, false, 3600)
		p.want(packets.TypeConnack)
		p.send(message2("t", "y", packets.QoS2, 9))
		p.want(packets.TypePubrec)
		info, _ = st.b.Session("s")
		require.Equal(t, 2, info.Queued+info.Inflight,
			"a released identifier is free for the next message")
	})
}

func TestWillsAndDeadlinesOutliveACrash(t *testing.T) {
	will := func(delay uint32) func(c *packets.Connect) {
		return func(c *packets.Connect) {
			c.Will = &packets.Will{Topic: "will/" + c.ClientID, QoS: 1, Payload: []byte("bye")}
			if delay > 0 {
				c.Will.Properties = packets.Properties(nil).AppendUint(packets.WillDelayInterval,
					delay)
			}
		}
	}
	onStage(t, func(st *stage) {
		w := st.durable("watcher", packets.V5)
		w.subscribe("will/#", packets.QoS1)
		for _, id := range []string{"connected", "delayed", "short"} {
			delay := map[string]uint32{"delayed": 300, "short": 900}[id]
			expiry := map[string]uint32{"connected": 3600, "delayed": 3600, "short": 30}[id]
			c := st.dial(id, packets.V5, false, expiry, will(delay))
			c.want(packets.TypeConnack)
			if id == "delayed" {
				c.nc.Close()
			}
		}
		st.clean("p").send(toRetain(message2("kept", "x", packets.QoS1, 1)))
		time.Sleep(100 * time.Second)
		st.crash() // 100 s after "delayed" has gone
		w = st.dial("watcher", packets.V5, false, 3600)
		got := w.want(packets.TypeConnack, packets.TypePublish)
		require.Equal(t, "will/connected", string(got[1].(*packets.Publish).Topic),
			"its connection ended with the process")
		w.send(ack(packets.TypePuback, got[1].(*packets.Publish).PacketID))
		time.Sleep(31 * time.Second)
		got = w.want(packets.TypePublish)
		require.Equal(t, "will/short", string(got[0].(*packets.Publish).Topic),
			"a Will is published with the end of its Session at the latest")
		w.send(ack(packets.TypePuback, got[0].(*packets.Publish).PacketID))
		time.Sleep(160 * time.Second)
		w.wantNothing("291 s are no 300 s")
		time.Sleep(10 * time.Second)
		w.want(packets.TypePublish)
		require.Equal(t, "x", string(st.b.retained.Get("kept").Payload))

		// What falls due while the process is away is carried out when it starts.
		w.nc.Close()
		time.Sleep(time.Second)
		store := st.store.kill()
		st.stop()
		time.Sleep(2 * time.Hour)
		st.store = store
		st.start()
		synctest.Wait()
		require.Zero(t, st.b.sessions.len(), "all have expired")
		time.Sleep(time.Second)
		st.crash()
		require.Zero(t, st.b.sessions.len())
	})
}

func TestAWillIsPublishedOnceWhereverTheProcessEnds(t *testing.T) {
	onStage(t, func(st *stage) {
		w := st.durable("watcher", packets.V5)
		w.subscribe("will", packets.QoS2)
		c := st.dial("c", packets.V5, false, 3600,
			func(c *packets.Connect) { c.Will = &packets.Will{Topic: "will", QoS: 2} })
		c.want(packets.TypeConnack)
		time.Sleep(time.Second)
		c.nc.Close()
		time.Sleep(time.Second)
		st.crash()
		info, _ := st.b.Session("watcher")
		require.Equal(t, 1, info.Queued+info.Inflight)
	})
}

func TestASessionLastsNoLongerThanItsOwnerWants(t *testing.T) {
	onStage(t, func(st *stage) {
		st.durable("gone", packets.V5).send(&packets.Disconnect{Properties: packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 0)})
		st.durable("shorter",
			packets.V5).send(&packets.Disconnect{Properties: packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 60)})
		st.durable("fresh", packets.V5).subscribe("old", packets.QoS1)
		st.dial("fresh", packets.V5, true, 3600).want(packets.TypeConnack)
		st.durable("last", packets.V5).subscribe("t", packets.QoS1)
		last := st.dial("last", packets.V5, false, 0) // resumed, to end with the connection
		require.True(t, last.want(packets.TypeConnack)[0].(*packets.Connack).SessionPresent)
		time.Sleep(time.Second)
		st.crash()
		_, ok := st.b.Session("gone")
		require.False(t, ok)
		_, ok = st.b.Session("last")
		require.False(t, ok, "the connection of a Session without expiry ended with the process")
		info, ok := st.b.Session("shorter")
		require.True(t, ok)
		require.WithinDuration(t, time.Now().Add(time.Minute), info.ExpiresAt, 2*time.Second)
		info, _ = st.b.Session("fresh")
		require.Empty(t, info.Subscriptions, "those of the Session before")
	})
}

func TestSessionsBelongToTheirPrincipalsAfterACrash(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		st.cfg.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			r.Grant.Identity.Principal, r.Grant.MountPoint = r.Client.Username,
				r.Client.Username+"/"
			return nil
		})
		st.start()
		named := func(name string) func(c *packets.Connect) {
			return func(c *packets.Connect) { c.HasUsername, c.Username = true, name }
		}
		a := st.dial("c", packets.V5, false, 3600, named("anne"))
		a.want(packets.TypeConnack)
		a.subscribe("t/#", packets.QoS1)
		time.Sleep(time.Second)
		st.crash()
		require.NoError(t, st.b.Publish(context.Background(), &Message{Topic: "anne/t/1", QoS: 1}))
		b := st.dial("c", packets.V5, false, 3600, named("bob"))
		require.Equal(t, packets.ClientIdentifierNotValid,
			b.want(packets.TypeConnack)[0].(*packets.Connack).Code)
		a = st.dial("c", packets.V5, false, 3600, named("anne"))
		got := a.want(packets.TypeConnack, packets.TypePublish)
		require.Equal(t, "t/1", string(got[1].(*packets.Publish).Topic), "under its mount point")
	})
}

func TestWhatASharedSubscriptionBroughtGoesToAnotherMemberAfterACrash(t *testing.T) {
	onStage(t, func(st *stage) {
		for _, id := range []string{"m1", "m2"} {
			m := st.dial(id, packets.V5, false, map[string]uint32{"m1": 60, "m2": 3600}[id])
			m.want(packets.TypeConnack)
			m.subscribe("$share/g/t", packets.QoS1)
			m.nc.Close()
		}
		p := st.clean("p")
		p.send(message2("t", "a", packets.QoS1, 1), message2("t", "b", packets.QoS1, 2))
		p.got()
		st.crash()
		time.Sleep(2 * time.Minute) // m1 expires
		info, _ := st.b.Session("m2")
		require.Equal(t, 2, info.Queued)
		time.Sleep(time.Second)
		st.crash()
		info, _ = st.b.Session("m2")
		require.Equal(t, 2, info.Queued)
	})
}

// Two connections write to the store in turn, so a batch may say that a message was sent and only
// the next one that the message before it was.
func TestMessagesKeepTheirOrderWhereverTheProcessEnds(t *testing.T) { // [MQTT-4.6.0-6]
	onStage(t, func(st *stage) {
		s := st.durable("s", packets.V5)
		s.subscribe("t", packets.QoS2)
		s.nc.Close()
		synctest.Wait()
		p := st.clean("p")
		for i := range 4 {
			p.send(message2("t", fmt.Sprint(i), packets.QoS(1+i/2), uint16(1+i)))
		}
		p.got()
		key := st.b.sessionAt("s").stored
		require.NoError(t, st.store.Commit(t.Context(),
			[]store.Op{&store.Sent{Session: key, Seq: 3, ID: 9}}))
		st.crash()
		for crashes := range 3 {
			s = st.dial("s", packets.V5, false, 3600)
			ids := map[uint16]bool{}
			for i, q := range s.want(packets.TypeConnack, packets.TypePublish, packets.TypePublish,
				packets.TypePublish, packets.TypePublish) {
				if i > 0 {
					m := q.(*packets.Publish)
					require.Equal(t, fmt.Sprint(i-1), string(m.Payload))
					require.Equal(t, i < 4 || crashes > 0, m.Dup, i)
					ids[m.PacketID] = true
				}
			}
			require.Len(t, ids, 4, "each has its own Packet Identifier")
			require.True(t, ids[9])
			time.Sleep(time.Second)
			st.crash()
		}
	})
}

func TestWhatWasDroppedStaysDropped(t *testing.T) {
	onStage(t, func(st *stage) {
		st.stop()
		st.cfg.MaxQueuedMessages = 2
		st.start()
		st.durable("s", packets.V5).subscribe("t", packets.QoS1)
		st.peers[0].nc.Close()
		p := st.clean("p")
		for i := range 5 {
			p.send(message2("t", string(rune('a'+i)), packets.QoS1, uint16(i+1)))
		}
		time.Sleep(time.Second)
		st.crash()
		got := st.dial("s", packets.V5, false, 60).want(packets.TypeConnack, packets.TypePublish,
			packets.TypePublish)
		require.Equal(t, "d", string(got[1].(*packets.Publish).Payload))
		require.Equal(t, "e", string(got[2].(*packets.Publish).Payload))
	})
}

func TestDeadlinesOfWhoWasConnectedAtACrashBeginOnce(t *testing.T) {
	onStage(t, func(st *stage) {
		w := st.durable("watcher", packets.V5)
		w.subscribe("will", packets.QoS1)
		st.dial("c", packets.V5, false, 90).want(packets.TypeConnack)
		st.dial("d", packets.V5, false, 3600, func(c *packets.Connect) {
			c.Will = &packets.Will{Topic: "will", QoS: 1,
				Properties: packets.Properties(nil).AppendUint(packets.WillDelayInterval, 90)}
		}).want(packets.TypeConnack)
		for range 3 { // that is longer apart than it takes to write them
			time.Sleep(40 * time.Second)
			st.crash()
		}
		_, there := st.b.Session("c")
		require.True(t, there, "80 s after the first crash")
		time.Sleep(11 * time.Second)
		_, there = st.b.Session("c")
		require.False(t, there)
		w = st.dial("watcher", packets.V5, false, 3600)
		w.want(packets.TypeConnack, packets.TypePublish)
	})
}

func TestWhatACleanStartEndsStaysEnded(t *testing.T) {
	for _, v := range []packets.Version{packets.V311, packets.V5} {
		t.Run(v.String(), func(t *testing.T) {
			onStage(t, func(st *stage) {
				old := st.dial("c", v, false, 3600)
				old.want(packets.TypeConnack)
				old.nc.Close()
				time.Sleep(time.Second)
				release := st.store.hold()
				c := st.dial("c", v, true, 0)
				time.Sleep(time.Second)
				c.wantNothing("the store does not know yet that the old Session has ended")
				release()
				c.want(packets.TypeConnack)
				st.crash()
				require.Zero(t, st.b.sessions.len())
			})
		})
	}
}

// Whoever ended the Session before it: a client that gets a CONNACK without a Session has forgotten
// the old one, which must not come back.
func TestASessionThatEndsIsGoneBeforeTheNextOneInItsPlaceIsAccepted(t *testing.T) {
	for name, end := range map[string]func(st *stage, old *peerConn){
		"by the program": func(st *stage, old *peerConn) {
			go st.b.DeleteSession(st.t.Context(), "c")
		},
		"by DISCONNECT": func(st *stage, old *peerConn) {
			expiry := packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 0)
			old.send(&packets.Disconnect{Properties: expiry})
		},
	} {
		for _, clean := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", clean ", clean), func(t *testing.T) {
				onStage(t, func(st *stage) {
					old := st.dial("c", packets.V5, false, 3600)
					old.want(packets.TypeConnack)
					release := st.store.hold()
					end(st, old)
					time.Sleep(time.Second)
					c := st.dial("c", packets.V5, clean, 0)
					time.Sleep(time.Second)
					c.wantNothing("the store does not know yet that the old Session has ended")
					release()
					c.want(packets.TypeConnack)
					st.crash()
					require.Zero(t, st.b.sessions.len())
				})
			})
		}
	}
}

// A full or broken store keeps nobody out who needs nothing of it.
func TestACleanStartOverASessionThatCannotBeRemoved(t *testing.T) {
	onStage(t, func(st *stage) {
		st.durable("c", packets.V5).nc.Close()
		time.Sleep(time.Second)
		st.store.fail(store.ErrFull)
		c := st.clean("c")
		c.send(&packets.Pingreq{})
		c.want(packets.TypePingresp)
		st.store.fail(nil)
		time.Sleep(time.Second)
		st.crash()
		require.Zero(t, st.b.sessions.len(), "it was removed when there was room")
	})
}

// When the broker closes the connection, what DISCONNECT asked for is durable.
func TestADisconnectIsDurableWhenTheConnectionEnds(t *testing.T) {
	will := func(c *packets.Connect) {
		c.Will = &packets.Will{Topic: "will", QoS: 1, Retain: true, Payload: []byte("w")}
	}
	onStage(t, func(st *stage) {
		for _, id := range []string{"kept", "dropped"} {
			c := st.dial(id, packets.V5, false, 3600, will)
			c.want(packets.TypeConnack)
			d := &packets.Disconnect{}
			if id == "dropped" {
				d.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 0)
			}
			release := st.store.hold()
			c.send(d)
			require.False(t, c.ended())
			release()
			require.True(t, c.ended())
		}
		st.crash()
		_, there := st.b.Session("kept")
		require.True(t, there)
		_, there = st.b.Session("dropped")
		require.False(t, there)
		require.Nil(t, st.b.retained.Get("will"))
	})
}
