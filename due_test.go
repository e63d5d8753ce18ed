package dunlin

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is about what is due at a time: Sessions that expire, delayed Wills, the ends of
// authentications.

// restart ends the Broker and starts another one with a changed Config.
func (st *stage) restart(edit func(c *Config)) {
	st.t.Helper()
	st.stop()
	edit(&st.cfg)
	st.start()
}

// leaveWill connects a client whose Will has the topic "will/" and its identifier, and cuts the
// connection.
func (st *stage) leaveWill(id string, delay, expiry uint32) {
	st.t.Helper()
	p := st.dial(id, packets.V5, false, expiry, func(c *packets.Connect) {
		c.Will = &packets.Will{Topic: "will/" + id, Payload: []byte("gone"), QoS: packets.QoS1}
		c.Will.Properties = c.Will.Properties.AppendUint(packets.WillDelayInterval, delay)
	})
	p.want(packets.TypeConnack)
	p.nc.Close()
	synctest.Wait()
}

// wills returns the topics of the messages that have come since the last call.
func (p *peerConn) wills() (topics []string) {
	p.st.t.Helper()
	for _, q := range p.got() {
		m := q.(*packets.Publish)
		topics = append(topics, string(m.Topic))
		p.send(ack(packets.TypePuback, m.PacketID))
	}
	return topics
}

// deciding is an Authorizer that decides what slow names not before release is closed or its
// context ends.
type deciding struct {
	slow    func(r *hooks.AccessRequest) bool
	release chan struct{}
}

func (a deciding) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	if !a.slow(r) {
		return nil
	}
	select {
	case <-a.release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Intercept makes an Interceptor of it.
func (a deciding) Intercept(ctx context.Context, c *hooks.Client, m *Message) (*Message, error) {
	return m, a.Authorize(ctx, &hooks.AccessRequest{Client: c, Topic: m.Topic, Will: true})
}

// granting is an Authenticator that accepts everybody and fills in the Grant.
func granting(f func(r *hooks.ConnectRequest)) hooks.Authenticator {
	return hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		f(r)
		return nil
	})
}

func TestASlowDecisionAboutAWillDelaysThatWillAlone(t *testing.T) {
	authorizes := func(c *Config, d deciding) { c.Authorizer = d }
	intercepts := func(c *Config, d deciding) { c.Interceptor = d }
	for _, tt := range []struct {
		name  string
		hook  func(c *Config, d deciding)
		delay uint32 // after which the Session ends, or its Will is due
	}{
		{"an Authorizer, and a Will with a delay", authorizes, 2},
		{"an Interceptor, and a Will with a delay", intercepts, 2},
		{"an Authorizer, and Wills that are due when their Sessions end", authorizes, 7200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				var gone atomic.Bool // a Will is decided at CONNECT as well
				d := deciding{slow: func(r *hooks.AccessRequest) bool {
					return gone.Load() && r.Will && r.Client.ID[0] == 's'
				}, release: make(chan struct{})}
				st.restart(func(c *Config) {
					tt.hook(c, d)
					c.Authenticator = granting(func(r *hooks.ConnectRequest) {
						if r.Client.ID == "token" {
							r.Grant.Expires = time.Now().Add(10 * time.Second)
						}
					})
				})
				watcher := st.clean("watcher")
				watcher.subscribe("will/#", packets.QoS1)
				for i := range 20 {
					st.leaveWill(fmt.Sprint("slow", i), tt.delay, 3)
				}
				st.leaveWill("quick", tt.delay, 4)
				gone.Store(true)
				st.dial("other", packets.V5, false, 10).nc.Close()
				token := st.clean("token")
				expiring := toRetain(message2("r", "x", packets.QoS1, 1))
				expiring.Properties = packets.Properties(nil).AppendUint(packets.MessageExpiryInterval, 10)
				watcher.send(expiring)
				watcher.want(packets.TypePuback)
				for _, id := range []string{"other", "quick"} {
					_, there := st.b.Session(id)
					require.True(t, there)
				}

				time.Sleep(time.Minute)
				require.Equal(t, []string{"will/quick"}, watcher.wills())
				for _, id := range []string{"other", "quick"} {
					_, there := st.b.Session(id)
					require.False(t, there, "the Session of %s has expired", id)
				}
				require.True(t, token.ended(), "its authentication has expired")
				require.Zero(t, st.b.Stats().Retained)

				close(d.release)
				require.Len(t, watcher.wills(), 20, "the others, when they are decided")
				time.Sleep(time.Minute)
				require.Zero(t, st.b.Stats().Sessions-st.b.Stats().Connections)
			})
		})
	}
}

// A Session does not end, with what it still has to say, before its Will is decided.
func TestASlowDecisionAboutAWillKeepsTheOrderOfItsSession(t *testing.T) {
	onStage(t, func(st *stage) {
		var mu sync.Mutex
		var told []string
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, what)
		}
		var gone atomic.Bool // a Will is decided at CONNECT as well
		d := deciding{func(*hooks.AccessRequest) bool { return gone.Load() }, make(chan struct{})}
		st.restart(func(c *Config) {
			c.Authorizer = d
			c.Observer = &hooks.Observer{
				Published:    func(e hooks.Published) { note("published " + e.Topic()) },
				SessionEnded: func(e hooks.SessionEnded) { note("ended " + e.Client.ID) },
			}
		})
		st.leaveWill("c", 1, 2)
		gone.Store(true)
		time.Sleep(time.Minute)
		mu.Lock()
		early := slices.Clone(told)
		mu.Unlock()
		require.Empty(t, early)
		close(d.release)
		synctest.Wait()
		require.Equal(t, []string{"published will/c", "ended c"}, told)
	})
}

// What fell due while there was no Broker is decided while the next one serves.
func TestNewWaitsForNoDecisionAboutAWill(t *testing.T) {
	onStage(t, func(st *stage) {
		st.leaveWill("delayed", 10, 3600)
		st.leaveWill("expired", 3600, 20)
		connected := st.dial("connected", packets.V5, false, 3600, func(c *packets.Connect) {
			c.Will = &packets.Will{Topic: "will/connected", QoS: packets.QoS1}
		})
		connected.want(packets.TypeConnack)
		d := deciding{func(r *hooks.AccessRequest) bool { return r.Will }, make(chan struct{})}
		old := st.store
		st.store = old.kill()
		st.stop()
		time.Sleep(time.Minute)
		st.cfg.Authorizer = d
		began := time.Now()
		time.AfterFunc(time.Hour, func() { close(d.release) })
		st.start()
		require.Zero(t, time.Since(began), "New has waited for the Authorizer")
		watcher := st.clean("watcher")
		watcher.subscribe("will/#", packets.QoS1)
		require.Empty(t, watcher.wills())
		time.Sleep(time.Hour)
		all := []string{"will/delayed", "will/expired", "will/connected"}
		require.ElementsMatch(t, all, watcher.wills())
		_, there := st.b.Session("expired")
		require.False(t, there)
	})
}

// Many issuers write a year far away for a token that never expires.
func TestATokenThatIsValidForEverHoldsUpNothing(t *testing.T) {
	for _, far := range []time.Time{
		time.Date(2262, 4, 12, 0, 0, 0, 0, time.UTC), // UnixNano overflows
		time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	} {
		t.Run(far.Format(time.DateOnly), func(t *testing.T) {
			onStage(t, func(st *stage) {
				st.restart(func(c *Config) {
					c.Authenticator = granting(func(r *hooks.ConnectRequest) {
						switch r.Client.ID {
						case "ever":
							r.Grant.Expires = far
						case "token":
							r.Grant.Expires = time.Now().Add(10 * time.Second)
						case "past":
							r.Grant.Expires = time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC)
						}
					})
				})
				watcher := st.clean("ever")
				watcher.subscribe("will/#", packets.QoS1)
				st.leaveWill("c", 5, 10)
				token := st.clean("token")
				past := st.dial("past", packets.V5, true, 0)
				synctest.Wait()
				require.True(t, past.ended(), "it expired long ago")
				time.Sleep(time.Minute)
				require.Equal(t, []string{"will/c"}, watcher.wills())
				_, there := st.b.Session("c")
				require.False(t, there, "the Session has expired")
				require.True(t, token.ended(), "the token has expired")
				require.False(t, watcher.ended())
			})
		})
	}
}

// The end of an authentication may be due at the very moment at which a new one moves it.
func TestAnAuthenticationThatIsRenewedInTimeDoesNotEnd(t *testing.T) {
	onStage(t, func(st *stage) {
		st.restart(func(c *Config) {
			c.Authenticator = granting(func(r *hooks.ConnectRequest) {
				r.Grant.Expires = time.Now().Add(10 * time.Second)
			})
		})
		p := st.clean("c")
		s := st.b.sessionAt("c")
		c := s.conn
		expires := time.Now().Add(10 * time.Second)
		s.mu.Lock()
		time.Sleep(time.Until(expires)) // who ends the connection waits for the lock now
		st.b.due.Set(&c.extra.expires, expires.Add(time.Hour), func(time.Time) {})
		s.mu.Unlock()
		require.False(t, p.ended())
	})
}
