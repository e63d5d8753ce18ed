package dunlin

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// willTo makes a CONNECT leave a retained Will.
func willTo(topic, payload string, delay uint32) func(c *packets.Connect) {
	return func(c *packets.Connect) {
		c.Will = &packets.Will{Topic: topic, QoS: 1, Payload: []byte(payload), Retain: true}
		if delay > 0 {
			c.Will.Properties = packets.Properties(nil).AppendUint(packets.WillDelayInterval, delay)
		}
	}
}

// The Will of a client whose Session ends with its connection is published after a crash: this is
// the retained "offline" of many a dashboard.
func TestAWillSurvivesACrashAlsoIfItsSessionDoesNot(t *testing.T) {
	for _, v := range []packets.Version{packets.V311, packets.V5} {
		onStage(t, func(st *stage) {
			d := st.durable("dashboard", packets.V5)
			d.subscribe("state", packets.QoS1)
			c := st.dial("c", v, true, 0, willTo("state", "offline", 0))
			c.want(packets.TypeConnack)
			st.crash()
			time.Sleep(time.Second)
			m := st.b.retained.Get("state")
			require.NotNil(t, m)
			require.Equal(t, "offline", string(m.Payload))
			d = st.dial("dashboard", packets.V5, false, 3600)
			require.Equal(t, []string{"offline"}, d.payloads())
			time.Sleep(time.Second)
			st.crash()
			d = st.dial("dashboard", packets.V5, false, 3600)
			require.Empty(t, d.payloads(), "once")
		})
	}
}

func TestAWillThatWasGivenUpIsNotPublishedAfterACrash(t *testing.T) {
	ways := map[string]func(st *stage, c *peerConn){
		"DISCONNECT": func(st *stage, c *peerConn) {
			c.send(&packets.Disconnect{})
			require.True(t, c.ended())
		},
		"another connection, with another Will": func(st *stage, c *peerConn) {
			st.dial("c", packets.V5, true, 0, willTo("other", "x", 0)).want(packets.TypeConnack)
		},
	}
	for _, expiry := range []uint32{0, 3600} {
		for name, gives := range ways {
			t.Run(name, func(t *testing.T) {
				onStage(t, func(st *stage) {
					st.durable("d", packets.V5).subscribe("state", packets.QoS1)
					c := st.dial("c", packets.V5, false, expiry, willTo("state", "offline", 0))
					c.want(packets.TypeConnack)
					gives(st, c)
					time.Sleep(time.Second)
					d := st.dial("d", packets.V5, false, 3600)
					before := d.payloads()
					time.Sleep(time.Second)
					st.crash()
					time.Sleep(2 * time.Hour)
					d = st.dial("d", packets.V5, false, 3600)
					if name == "DISCONNECT" {
						require.Empty(t, before)
					}
					require.Empty(t, d.payloads(), "after the crash")
				})
			})
		}
	}
}

// A delayed Will is given up for a connection that resumes the Session, once that is accepted.
func TestADelayedWillIsKeptUntilTheConnectionThatResumesIsAccepted(t *testing.T) {
	for _, connected := range []bool{true, false} {
		onStage(t, func(st *stage) {
			w := st.clean("watcher")
			w.subscribe("state", packets.QoS0)
			c := st.dial("c", packets.V5, false, 3600, willTo("state", "offline", 20))
			c.want(packets.TypeConnack)
			if !connected {
				c.nc.Close()
			}
			time.Sleep(time.Second)
			st.store.fail(store.ErrFull)
			again := st.dial("c", packets.V5, false, 3600)
			code := again.want(packets.TypeConnack)[0].(*packets.Connack).Code
			require.Equal(t, packets.QuotaExceeded, code)
			time.Sleep(10 * time.Second)
			require.Empty(t, w.payloads(), "too early")
			time.Sleep(20 * time.Second)
			require.Equal(t, []string{"offline"}, w.payloads())
		})
	}
}

// A Will that no hook has decided when the Broker is closed is published by the next one.
func TestAWillThatNoHookHasDecidedOutlivesClose(t *testing.T) {
	onStage(t, func(st *stage) {
		var gone atomic.Bool // a Will is decided at CONNECT as well
		d := deciding{slow: func(r *hooks.AccessRequest) bool {
			return r.Will && gone.Load()
		}, release: make(chan struct{})}
		st.restart(func(c *Config) { c.Authorizer = d })
		c := st.dial("c", packets.V5, false, 3600, willTo("state", "offline", 0))
		c.want(packets.TypeConnack)
		gone.Store(true)
		c.nc.Close()
		time.Sleep(time.Second)
		require.Nil(t, st.b.retained.Get("state"), "undecided")
		st.restart(func(c *Config) { c.Authorizer = nil })
		time.Sleep(time.Second)
		require.NotNil(t, st.b.retained.Get("state"))
	})
}

// A Will that was due, and that no hook has decided when the process ends, is published by the next
// one, whatever the client has begun meanwhile: another Session, or the same one anew.
func TestAWillThatNoHookHasDecidedOutlivesItsSession(t *testing.T) {
	for _, clean := range []bool{true, false} {
		onStage(t, func(st *stage) {
			st.durable("d", packets.V5).subscribe("state", packets.QoS1)
			var slow atomic.Bool
			d := deciding{slow: func(r *hooks.AccessRequest) bool {
				return r.Will && slow.Load()
			}, release: make(chan struct{})}
			st.restart(func(c *Config) { c.Authorizer = d })
			c := st.dial("c", packets.V5, false, 3600, willTo("state", "offline", 0))
			c.want(packets.TypeConnack)
			slow.Store(true)
			c.nc.Close()
			time.Sleep(time.Second)
			st.dial("c", packets.V5, clean, 3600).want(packets.TypeConnack)
			time.Sleep(time.Second)
			require.Nil(t, st.b.retained.Get("state"), "undecided")
			st.crash()
			// before a hook has decided now
			st.dial("c", packets.V5, false, 3600).want(packets.TypeConnack)
			time.Sleep(time.Second)
			close(d.release)
			time.Sleep(time.Second)
			p := st.dial("d", packets.V5, false, 3600)
			require.Equal(t, []string{"offline"}, p.payloads())
		})
	}
}

// older puts the Session c into the store as an older version did: with its Will inside, due after
// 20 s. Then come further operations. The client was connected, or had left.
func (st *stage) older(connected bool, further ...store.Op) {
	st.t.Helper()
	st.stop()
	op := &store.PutSession{Session: 1000, ClientID: "c", Expiry: 3600,
		Will: &store.Will{Delay: 20}}
	op.Will.Message = Message{Topic: "state", QoS: 1, Retain: true, Payload: []byte("offline")}
	if now := time.Now(); !connected {
		op.ExpiresAt = now.Add(time.Hour).UnixNano()
		op.Will.At = now.Add(20 * time.Second).UnixNano()
	}
	ops := append([]store.Op{op}, further...)
	require.NoError(st.t, st.store.Store.Commit(context.Background(), ops))
	st.start()
}

// wantWill fails unless the Will of older is published once, when it is due. seconds have passed.
func (st *stage) wantWill(seconds time.Duration) {
	st.t.Helper()
	time.Sleep((19 - seconds) * time.Second)
	require.Nil(st.t, st.b.retained.Get("state"), "too early")
	d := st.dial("d", packets.V5, false, 3600)
	require.Empty(st.t, d.payloads(), "too early")
	time.Sleep(2 * time.Second)
	require.NotNil(st.t, st.b.retained.Get("state"))
	require.Equal(st.t, []string{"offline"}, d.payloads())
	time.Sleep(time.Second)
	st.crash()
	d = st.dial("d", packets.V5, false, 3600)
	time.Sleep(time.Hour)
	require.Empty(st.t, d.payloads(), "it comes once")
}

// The Will of an older store keeps its delay, whatever crashes come before it is due.
func TestAWillInsideOfItsSessionIsPublishedOnceWhenItIsDue(t *testing.T) {
	for _, connected := range []bool{true, false} {
		for crashes := range 4 {
			onStage(t, func(st *stage) {
				st.durable("d", packets.V5).subscribe("state", packets.QoS1)
				st.older(connected)
				for range crashes {
					time.Sleep(5 * time.Second)
					st.crash()
				}
				st.wantWill(5 * time.Duration(crashes))
			})
		}
	}
}

// The Will of an older store is given up when its client resumes the Session.
func TestAWillInsideOfItsSessionIsGivenUpIfTheSessionIsResumed(t *testing.T) {
	for _, connected := range []bool{true, false} {
		for crashes := range 3 {
			onStage(t, func(st *stage) {
				st.durable("d", packets.V5).subscribe("state", packets.QoS1)
				st.older(connected)
				for range crashes {
					time.Sleep(5 * time.Second)
					st.crash()
				}
				c := st.dial("c", packets.V5, false, 3600)
				require.True(t, c.want(packets.TypeConnack)[0].(*packets.Connack).SessionPresent)
				st.crash()
				time.Sleep(time.Minute)
				st.crash()
				require.Nil(t, st.b.retained.Get("state"))
				require.Empty(t, st.dial("d", packets.V5, false, 3600).payloads())
			})
		}
	}
}

// The process may end between the operations that make a record of the Will of an older store.
func TestAWillInsideOfItsSessionBecomesARecordInAnyNumberOfCommits(t *testing.T) {
	for _, connected := range []bool{true, false} {
		var ops []store.Op
		onStage(t, func(st *stage) {
			st.older(connected)
			time.Sleep(time.Second)
			st.store.mu.Lock()
			defer st.store.mu.Unlock()
			ops = slices.Clone(st.store.seen)
		})
		require.Len(t, ops, 2, "the Will, and the Session without it")
		for n := range len(ops) + 1 {
			onStage(t, func(st *stage) {
				st.durable("d", packets.V5).subscribe("state", packets.QoS1)
				st.older(connected, ops[:n]...)
				st.wantWill(0)
			})
		}
	}
}

// The record of a Will is no Session of its principal.
func TestAWillDoesNotCountAsASessionAfterACrash(t *testing.T) {
	for expiry, most := range map[uint32]int{0: 1, 3600: 2} {
		onStage(t, func(st *stage) {
			named := func(c *packets.Connect) { c.HasUsername, c.Username = true, "u" }
			st.restart(func(c *Config) {
				c.Authenticator = granting(func(*hooks.ConnectRequest) {})
				c.MaxSessionsPerPrincipal = most
			})
			c := st.dial("c", packets.V5, false, expiry, named, willTo("state", "offline", 20))
			c.want(packets.TypeConnack)
			st.crash()
			d := st.dial("d", packets.V5, true, 0, named)
			got := d.want(packets.TypeConnack)[0].(*packets.Connack)
			require.Equal(t, packets.Success, got.Code, "there is room for one more")
		})
	}
}

// A connection that is not accepted, because another one takes its place meanwhile, gives up
// nothing: the Session is what it was before, whatever becomes of the third connection.
func TestAConnectionThatIsTakenOverWhileItResumesChangesNothing(t *testing.T) {
	resumes := func(st *stage) *peerConn { return st.dial("c", packets.V5, false, 3600) }
	for _, tt := range []struct {
		name   string
		full   bool
		expiry uint32 // that the second one asks for
		third  func(st *stage) *peerConn
		code   packets.ReasonCode
		wills  int // that are published
	}{
		{"the third is refused", true, 3600, resumes, packets.QuotaExceeded, 1},
		{"the third is accepted", false, 3600, resumes, packets.Success, 0},
		{"the second one would have ended the Session", false, 0, resumes, packets.Success, 0},
		{"the third begins anew", false, 3600, func(st *stage) *peerConn {
			return st.dial("c", packets.V5, true, 0)
		}, packets.Success, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				w := st.clean("watcher")
				w.subscribe("state", packets.QoS0)
				c := st.dial("c", packets.V5, false, 3600, willTo("state", "offline", 20))
				c.want(packets.TypeConnack)
				c.nc.Close()
				time.Sleep(time.Second)
				if tt.full {
					st.store.fail(store.ErrFull)
				}
				release := st.store.hold()
				st.dial("c", packets.V5, false, tt.expiry, willTo("other", "x", 20))
				synctest.Wait()
				third := tt.third(st)
				synctest.Wait()
				release()
				got := third.want(packets.TypeConnack)[0].(*packets.Connack)
				require.Equal(t, tt.code, got.Code)
				require.Equal(t, tt.wills == 0, got.SessionPresent)
				time.Sleep(30 * time.Second)
				require.Len(t, w.payloads(), tt.wills)
				st.store.fail(nil)
				time.Sleep(time.Second)
				st.crash()
				time.Sleep(time.Minute)
				require.Equal(t, tt.wills > 0, st.b.retained.Get("state") != nil)
				require.Nil(t, st.b.retained.Get("other"))
				require.Empty(t, st.b.journal.resuming)
			})
		})
	}
}

func TestADelayedWillIsNotPublishedIfTheSessionIsResumed(t *testing.T) {
	onStage(t, func(st *stage) {
		w := st.clean("watcher")
		w.subscribe("state", packets.QoS0)
		st.dial("c", packets.V5, false, 3600,
			willTo("state", "offline", 20)).want(packets.TypeConnack)
		st.durable("c", packets.V5) // takes over
		time.Sleep(time.Minute)
		st.crash()
		require.Nil(t, st.b.retained.Get("state"))
		time.Sleep(time.Minute)
		require.Nil(t, st.b.retained.Get("state"))
	})
}

// What the program ends is durable when the call returns.
func TestWhatTheProgramEndsIsDurable(t *testing.T) {
	type calls struct {
		st  *stage
		sub *Subscription
	}
	ends := map[string]func(c *calls) error{
		"DeleteSession": func(c *calls) error {
			found, err := c.st.b.DeleteSession(context.Background(), "s")
			require.True(t, found)
			return err
		},
		"DeleteSession of a Subscription": func(c *calls) error {
			_, err := c.st.b.DeleteSession(context.Background(), "$local/n")
			return err
		},
		"Delete": func(c *calls) error { return c.sub.Delete() },
		"Remove": func(c *calls) error {
			found, err := c.sub.Remove("t")
			require.True(t, found)
			return err
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				st.durable("s", packets.V5).subscribe("t", packets.QoS1)
				sub, err := st.b.Subscribe(context.Background(), "t",
					&SubscribeOptions{Name: "n", QoS: 1})
				require.NoError(t, err)
				time.Sleep(time.Second)
				release := st.store.hold()
				done := make(chan error, 1)
				go func() { done <- end(&calls{st, sub}) }()
				synctest.Wait()
				require.Empty(t, done, "before it is durable")
				release()
				require.NoError(t, <-done)
				st.crash()
				gone := "s"
				if name != "DeleteSession" {
					gone = "$local/n"
				}
				info, there := st.b.Session(gone)
				require.Empty(t, info.Subscriptions)
				require.Equal(t, name == "Remove", there)
			})
			onStage(t, func(st *stage) {
				st.durable("s", packets.V5)
				sub, err := st.b.Subscribe(context.Background(), "t",
					&SubscribeOptions{Name: "n", QoS: 1})
				require.NoError(t, err)
				st.store.fail(store.ErrFull)
				err = end(&calls{st, sub})
				require.ErrorIs(t, err, store.ErrFull)
				pe, _ := errors.AsType[*packets.Error](err)
				require.Equal(t, packets.QuotaExceeded, pe.Code)
				st.store.fail(nil)
				time.Sleep(time.Second)
				st.crash()
				_, there := st.b.Session("$local/n")
				require.Equal(t, name == "Remove" || name == "DeleteSession", there,
					"it was tried again")
			})
		})
	}
}
