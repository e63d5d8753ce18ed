package dunlin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

var allVersions = []packets.Version{packets.V31, packets.V311, packets.V5}

// served is a subscription that the server makes.
func served(filter string, q packets.QoS, edit ...func(s *hooks.Subscription)) hooks.Subscription {
	s := hooks.Subscription{Subscription: packets.Subscription{Filter: filter, QoS: q}}
	for _, f := range edit {
		f(&s)
	}
	return s
}

func mayRemove(s *hooks.Subscription) { s.ClientMayRemove = true }

func retainHandling(n byte) func(s *hooks.Subscription) {
	return func(s *hooks.Subscription) { s.RetainHandling = n }
}

// users verifies everybody who sends a User Name, which is the principal; the User Name "claims" is
// not verified. grants, if not nil, are the subscriptions of a grant, by Client Identifier.
func users(grants map[string][]hooks.Subscription) hooks.Authenticator {
	return hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		r.Grant.Identity.Unverified = r.Connect.Password != nil
		r.Grant.Subscriptions = grants[r.Client.ID]
		return nil
	})
}

// named makes a CONNECT that of a user.
func named(user string) func(c *packets.Connect) {
	return func(c *packets.Connect) { c.HasUsername, c.Username = true, user }
}

func (st *stage) publish(topic, payload string) {
	st.t.Helper()
	m := &Message{Topic: topic, Payload: []byte(payload), QoS: packets.QoS1}
	require.NoError(st.t, st.b.Publish(st.t.Context(), m))
}

// comes connects a client whose Session lasts, and returns what comes behind its CONNACK.
func (st *stage) comes(id, user string, v packets.Version) (p *peerConn, payloads []string) {
	st.t.Helper()
	p = st.dial(id, v, false, 3600, named(user))
	got := p.got()
	require.NotEmpty(st.t, got)
	require.Equal(st.t, packets.Success, got[0].(*packets.Connack).Code)
	for _, x := range got[1:] {
		m := x.(*packets.Publish)
		payloads = append(payloads, string(m.Payload))
		p.send(ack(packets.TypePuback, m.PacketID))
	}
	return p, append(payloads, p.payloads()...)
}

func (p *peerConn) goes() {
	p.nc.Close()
	synctest.Wait()
}

// stored returns how many operations the store would load.
func (st *stage) stored() (n int) {
	require.NoError(st.t, st.b.journal.Sync(st.t.Context()))
	for _, err := range st.store.Load(st.t.Context()) {
		require.NoError(st.t, err)
		n++
	}
	return n
}

// A client gets what SubscribeClient or SubscribePrincipal has subscribed it to: while it is there,
// when it comes back, and when it comes for the first time; in each version, and over crashes.
func TestTheServerSubscribesAClient(t *testing.T) {
	type call struct {
		name string
		give func(b *Broker, list ...hooks.Subscription) error
		take func(b *Broker, filters ...string) (int, error)
		list func(b *Broker) []hooks.Subscription
	}
	ctx := context.Background()
	calls := []call{{"SubscribeClient",
		func(b *Broker, l ...hooks.Subscription) error { return b.SubscribeClient(ctx, "s", l...) },
		func(b *Broker, f ...string) (int, error) { return b.UnsubscribeClient(ctx, "s", f...) },
		func(b *Broker) []hooks.Subscription { return b.ClientSubscriptions("s") },
	}, {"SubscribePrincipal",
		func(b *Broker, l ...hooks.Subscription) error {
			return b.SubscribePrincipal(ctx, "u", l...)
		},
		func(b *Broker, f ...string) (int, error) { return b.UnsubscribePrincipal(ctx, "u", f...) },
		func(b *Broker) []hooks.Subscription { return b.PrincipalSubscriptions("u") },
	}}
	for _, c := range calls {
		for _, v := range allVersions {
			for _, when := range []string{"connected", "absent", "not there yet"} {
				for _, died := range []string{"", "crash"} {
					name := fmt.Sprint(c.name, " ", v, " ", when, " ", died)
					t.Run(name, func(t *testing.T) {
						onStage(t, func(st *stage) {
							st.cfg.Authenticator = users(nil)
							st.restart(func(*Config) {})
							var p *peerConn
							if when != "not there yet" {
								p, _ = st.comes("s", "u", v)
							}
							if when == "absent" {
								p.goes()
							}
							list := []hooks.Subscription{served("a/#", 1), served("b", 1)}
							require.NoError(t, c.give(st.b, list...))
							require.Equal(t, list, c.list(st.b))
							if when == "connected" {
								st.publish("a/1", "there")
								require.Equal(t, []string{"there"}, p.payloads())
								p.goes()
							}
							if died != "" {
								time.Sleep(time.Second) // the acknowledgement is written
								st.crash()
							}
							require.Equal(t, list, c.list(st.b))
							st.publish("a/1", "one")
							st.publish("b", "two")
							want := []string{"one", "two"}
							if when == "not there yet" {
								want = nil
							}
							p, got := st.comes("s", "u", v)
							require.Equal(t, want, got)
							st.publish("a/2", "three")
							require.Equal(t, []string{"three"}, p.payloads())

							n, err := c.take(st.b, "a/#", "no such")
							require.NoError(t, err)
							require.Equal(t, 1, n)
							if died != "" {
								st.crash()
								p, _ = st.comes("s", "u", v)
							}
							st.publish("a/3", "four")
							st.publish("b", "five")
							require.Equal(t, []string{"five"}, p.payloads())
							require.Equal(t, list[1:], c.list(st.b))
							_, err = c.take(st.b, "b")
							require.NoError(t, err)
							p.goes()
							st.b.DeleteSession(ctx, "s")
							require.Zero(t, st.stored(), "nothing is left in the store")
						})
					})
				}
			}
		}
	}
}

// A subscription of a principal is for all its Sessions and for no other one.
func TestAllSessionsOfAPrincipalAreSubscribed(t *testing.T) {
	onStage(t, func(st *stage) {
		st.cfg.Authenticator = users(nil)
		st.restart(func(*Config) {})
		one, _ := st.comes("one", "u", packets.V5)
		two, _ := st.comes("two", "u", packets.V311)
		two.goes()
		other, _ := st.comes("other", "other", packets.V5)
		claims := st.dial("claims", packets.V5, false, 3600, named("u"),
			func(c *packets.Connect) { c.HasPassword, c.Password = true, []byte("x") })
		claims.want(packets.TypeConnack)
		require.NoError(t, st.b.SubscribePrincipal(st.t.Context(), "u", served("g", 1)))
		three, _ := st.comes("three", "u", packets.V5)
		st.publish("g", "x")
		two, got := st.comes("two", "u", packets.V311)
		require.Equal(t, []string{"x"}, got)
		for name, p := range map[string]*peerConn{"one": one, "three": three} {
			require.Equal(t, []string{"x"}, p.payloads(), name)
		}
		for name, p := range map[string]*peerConn{"other": other, "claims": claims} {
			require.Empty(t, p.payloads(), name)
		}
		_, err := st.b.UnsubscribePrincipal(st.t.Context(), "u", "g")
		require.NoError(t, err)
		st.publish("g", "y")
		for name, p := range map[string]*peerConn{"one": one, "two": two, "three": three} {
			require.Empty(t, p.payloads(), name)
		}
	})
}

// What a Grant brings holds until the next Grant that brings anything, as long as the Session
// lasts.
func TestAGrantSubscribes(t *testing.T) {
	for _, v := range allVersions {
		for _, died := range []string{"", "crash"} {
			t.Run(fmt.Sprint(v, " ", died), func(t *testing.T) {
				onStage(t, func(st *stage) {
					grants := map[string][]hooks.Subscription{"s": {served("a", 1), served("b", 1)}}
					st.cfg.Authenticator = users(grants)
					st.restart(func(*Config) {})
					again := func() {
						if died != "" {
							st.crash()
						}
					}
					p, _ := st.comes("s", "u", v)
					p.goes()
					again()
					st.publish("a", "1")
					st.publish("b", "2")
					grants["s"] = []hooks.Subscription{served("b", 1), served("c", 1)}
					n := st.stored()
					p, got := st.comes("s", "u", v)
					require.Equal(t, []string{"1", "2"}, got)
					for _, topic := range []string{"a", "b", "c"} {
						st.publish(topic, topic)
					}
					require.Equal(t, []string{"b", "c"}, p.payloads())
					p.goes()
					require.Less(t, st.stored(), n, "the messages are done, and a has gone")
					again()
					grants["s"] = nil
					p, _ = st.comes("s", "u", v)
					st.publish("b", "still")
					require.Equal(t, []string{"still"}, p.payloads())
					p.goes()
					again()
					grants["s"] = []hooks.Subscription{}
					p, _ = st.comes("s", "u", v)
					st.publish("b", "none")
					require.Empty(t, p.payloads())
					p.goes()

					grants["s"] = []hooks.Subscription{served("b", 1)}
					p, _ = st.comes("s", "u", v)
					p.goes()
					grants["s"] = nil
					p = st.dial("s", v, true, 3600, named("u"))
					p.want(packets.TypeConnack)
					st.publish("b", "new")
					require.Empty(t, p.payloads(), "the Session of the Grant has ended")
					p.goes()
					again()
					st.b.DeleteSession(st.t.Context(), "s")
					require.Zero(t, st.stored(), "nothing is left in the store")
				})
			})
		}
	}
}

// A CONNECT with the Grant of the one before writes nothing more than one without.
func TestTheSameGrantWritesNothing(t *testing.T) {
	onStage(t, func(st *stage) {
		grants := map[string][]hooks.Subscription{"s": {served("a", 1), served("b", 1)}}
		st.cfg.Authenticator = users(grants)
		st.restart(func(*Config) {})
		p, _ := st.comes("s", "u", packets.V5)
		p.goes()
		n := 0
		st.store.refuse(func(op store.Op) bool {
			if _, ok := op.(*store.PutSubscription); ok {
				n++
			}
			return false
		})
		p, _ = st.comes("s", "u", packets.V5)
		st.publish("a", "x")
		require.Equal(t, []string{"x"}, p.payloads())
		require.Zero(t, n)
	})
}

// A client cannot end what the server made, unless that allows it. Its own subscription to the same
// filter is another one, and brings no message a second time.
func TestAClientEndsOnlyWhatItMay(t *testing.T) {
	for _, filter := range []string{"a", "a/#", "$share/g/a"} {
		t.Run(filter, func(t *testing.T) {
			onStage(t, func(st *stage) {
				st.cfg.Authenticator = users(map[string][]hooks.Subscription{
					"s": {served("free", 1, mayRemove), served("fixed", 1)}})
				st.restart(func(*Config) {})
				ctx := st.t.Context()
				code := func(p *peerConn, filter string) packets.ReasonCode {
					t.Helper()
					p.send(&packets.Unsubscribe{PacketID: 9, Filters: []string{filter}})
					return p.want(packets.TypeUnsuback)[0].(*packets.Unsuback).Codes[0]
				}
				p, _ := st.comes("s", "u", packets.V5)
				other, _ := st.comes("other", "u", packets.V5)
				require.NoError(t, st.b.SubscribeClient(ctx, "s", served(filter, 1)))
				require.Equal(t, packets.NotAuthorized, code(p, filter))
				p.subscribe(filter, packets.QoS0)
				info, _ := st.b.Session("s")
				require.Equal(t, []packets.Subscription{{Filter: filter}}, info.Subscriptions)
				require.Contains(t, info.Given, packets.Subscription{Filter: filter, QoS: 1})
				require.Len(t, info.Given, 3)
				st.publish("a", "one")
				got := p.want(packets.TypePublish)[0].(*packets.Publish)
				require.Equal(t, packets.QoS1, got.QoS, "the higher one")
				require.Equal(t, packets.Success, code(p, filter), "its own one")
				st.publish("a", "two")
				require.Equal(t, []string{"two"}, p.payloads())
				require.Equal(t, packets.NotAuthorized, code(p, filter))
				require.Equal(t, packets.NotAuthorized, code(p, "fixed"))
				require.Equal(t, packets.Success, code(p, "free"))
				require.Equal(t, packets.NoSubscriptionExisted, code(p, "free"))
				require.Equal(t, packets.NoSubscriptionExisted, code(p, "none"))

				require.NoError(t, st.b.SubscribePrincipal(ctx, "u", served("p", 1, mayRemove)))
				st.publish("p", "all")
				require.Equal(t, []string{"all"}, other.payloads())
				require.Equal(t, []string{"all"}, p.payloads())
				require.Equal(t, packets.Success, code(p, "p"))
				st.publish("p", "nobody")
				require.Empty(t, append(other.payloads(), p.payloads()...))
				require.Empty(t, st.b.PrincipalSubscriptions("u"))

				p.subscribe(filter, packets.QoS0)
				n, err := st.b.UnsubscribeClient(ctx, "s", filter)
				require.NoError(t, err)
				require.Equal(t, 1, n)
				st.publish("a", "own")
				require.Equal(t, []string{"own"}, p.payloads())
				require.Equal(t, packets.Success, code(p, filter))
			})
		})
	}
}

// Retained messages come as Retain Handling says.
func TestRetainedMessagesOfWhatTheServerSubscribes(t *testing.T) {
	for handling, want := range [][]string{{"r", "r", "r"}, {"r", "", ""}, {"", "", ""}} {
		t.Run(fmt.Sprint(handling), func(t *testing.T) {
			onStage(t, func(st *stage) {
				x := served("t/#", 1, retainHandling(byte(handling)))
				grants := map[string][]hooks.Subscription{"granted": {x}}
				st.cfg.Authenticator = users(grants)
				st.restart(func(*Config) {})
				m := &Message{Topic: "t/1", Payload: []byte("r"), Retain: true}
				require.NoError(t, st.b.Publish(st.t.Context(), m))
				check := func(when string, want string, got []string) {
					t.Helper()
					require.Equal(t, want, strings.Join(got, ","), when)
				}
				there, _ := st.comes("there", "u", packets.V5)
				for i := range want {
					require.NoError(t, st.b.SubscribeClient(st.t.Context(), "there", x))
					check("connected", want[i], there.payloads())
				}
				for i := range want {
					p, got := st.comes("granted", "u", packets.V311)
					check("by a Grant", want[i], got)
					p.goes()
				}
				away, _ := st.comes("away", "u", packets.V5)
				away.goes()
				require.NoError(t, st.b.SubscribeClient(st.t.Context(), "away", x))
				_, got := st.comes("away", "u", packets.V5)
				check("absent", want[0], got)
				require.NoError(t, st.b.SubscribeClient(st.t.Context(), "later", x))
				_, got = st.comes("later", "u", packets.V5)
				check("later", want[0], got)
			})
		})
	}
}

// While the Store takes nothing nothing is subscribed, and what was there before stays.
func TestAStoreThatFailsTakesNoSubscriptionOfTheServer(t *testing.T) {
	onStage(t, func(st *stage) {
		st.cfg.Authenticator = users(map[string][]hooks.Subscription{"granted": {served("a", 1)}})
		st.restart(func(*Config) {})
		p, _ := st.comes("s", "u", packets.V5)
		ctx := st.t.Context()
		require.NoError(t, st.b.SubscribeClient(ctx, "s", served("a", 1)))
		st.fullFor("no room for what adds")
		for range 2 { // the second one is refused before it is tried
			err := st.b.SubscribeClient(ctx, "s", served("a", 2), served("b", 1))
			require.Equal(t, packets.QuotaExceeded, packets.CodeOf(err))
			list := []hooks.Subscription{served("a", 1)}
			require.Equal(t, list, st.b.ClientSubscriptions("s"))
			info, _ := st.b.Session("s")
			require.Equal(t, []packets.Subscription{list[0].Subscription}, info.Given)
		}
		_, err := st.b.UnsubscribeClient(ctx, "s", "a")
		require.NoError(t, err, "there is room for what removes")
		st.roomAgain()
		st.publish("b", "x")
		st.publish("a", "x")
		require.Empty(t, p.payloads())
		require.NoError(t, st.b.SubscribeClient(ctx, "s", served("b", 1)))
		st.publish("b", "y")
		require.Equal(t, []string{"y"}, p.payloads())
	})
}

// The Authorizer has no say, neither when the subscription is made nor when the rules change. The
// mount point of a client holds, and the Observer is told who made what.
func TestTheServerNeedsNoPermission(t *testing.T) {
	onStage(t, func(st *stage) {
		rules := &changingRules{}
		var events []string
		st.cfg.Authorizer = rules
		st.cfg.Authenticator = hooks.AuthenticatorFunc(
			func(_ context.Context, r *hooks.ConnectRequest) error {
				r.Grant.MountPoint = "m/"
				r.Grant.Subscriptions = []hooks.Subscription{served("granted", 1)}
				return nil
			})
		note := func(what string, c *hooks.Client, filter, mounted string, server bool) {
			events = append(events, fmt.Sprint(what, c.ID, " ", filter, " ", mounted, " ", server))
		}
		st.restart(func(c *Config) {
			o := *c.Observer
			o.Subscribed = func(e hooks.Subscribed) {
				note("+", e.Client, e.Filter, e.MountedFilter, e.ByServer)
			}
			o.Unsubscribed = func(e hooks.Unsubscribed) {
				note("-", e.Client, e.Filter, e.MountedFilter, e.ByServer)
			}
			c.Observer = &o
		})
		p, _ := st.comes("s", "u", packets.V5)
		require.NoError(t, st.b.SubscribeClient(st.t.Context(), "s", served("a", 1)))
		rules.change()
		synctest.Wait()
		p.goes()
		p, _ = st.comes("s", "u", packets.V5)
		for _, topic := range []string{"m/granted", "m/a", "a", "granted"} {
			st.publish(topic, topic)
		}
		require.Equal(t, []string{"m/granted", "m/a"}, p.payloads())
		require.Zero(t, rules.asked.Load(), "nobody asks the rules")
		_, err := st.b.UnsubscribeClient(st.t.Context(), "s", "a")
		require.NoError(t, err)
		require.Equal(t, []string{"+s granted m/granted true", "+s a m/a true",
			"+s granted m/granted true", "-s a m/a true"}, events)
	})
}

// changingRules refuse everything, and count how often they are asked.
type changingRules struct {
	changed func()
	asked   atomic.Int32
}

func (r *changingRules) Authorize(context.Context, *hooks.AccessRequest) error {
	r.asked.Add(1)
	return packets.Errorf(packets.NotAuthorized, "no")
}

func (r *changingRules) OnReload(f func()) (stop func()) {
	r.changed = f
	return func() {}
}

func (r *changingRules) change() { r.changed() }

// No Local holds for a client that had no subscription before.
func TestNoLocalOfWhatTheServerSubscribes(t *testing.T) {
	onStage(t, func(st *stage) {
		p, _ := st.comes("s", "u", packets.V5)
		x := served("t", 1, func(s *hooks.Subscription) { s.NoLocal = true })
		require.NoError(t, st.b.SubscribeClient(st.t.Context(), "s", x))
		p.send(message2("t", "mine", packets.QoS0, 0))
		st.publish("t", "another")
		require.Equal(t, []string{"another"}, p.payloads())
	})
}

// The process ended between the end of a Session and that of what its Grant had brought: a later
// Session in the same place does not get it.
func TestWhatAGrantBroughtDoesNotOutliveItsSession(t *testing.T) {
	onStage(t, func(st *stage) {
		record := func(number uint64, place string) []store.Op {
			return []store.Op{
				&store.PutSession{Session: number, ClientID: "$local/\x00given/s",
					Principal: place, Expiry: noExpiry},
				&store.PutSubscription{Session: number, Subscription: packets.Subscription{
					Filter: "t", QoS: 1}},
			}
		}
		ops := slices.Concat(record(3, "s"), record(4, "gone"), []store.Op{
			&store.PutSession{Session: 5, ClientID: "s", Expiry: noExpiry}}, record(6, "s"),
			record(2, "s"))
		require.NoError(t, st.store.Commit(st.t.Context(), ops))
		st.crash()
		info, _ := st.b.Session("s")
		require.Equal(t, []packets.Subscription{{Filter: "t", QoS: 1}}, info.Given)
		require.Equal(t, 3, st.stored(), "the Session, and its record with one subscription")
		st.store.Commit(st.t.Context(), []store.Op{&store.DeleteSession{Session: 6}})
		st.crash()
		info, ok := st.b.Session("s")
		require.True(t, ok)
		require.Empty(t, info.Given)
	})
}

// What makes no sense is refused.
func TestSubscriptionsOfTheServerAreChecked(t *testing.T) {
	onStage(t, func(st *stage) {
		bad := []hooks.Subscription{
			served("", 1), served("a/#/b", 1), served("a", 3), served("$share/g", 1),
			served("$share//a", 1), served(string(make([]byte, 10)), 1), served("\xff", 1),
			served("a", 1, retainHandling(3)), served(fmt.Sprintf("%066000d", 1), 1),
			served("$share/g/a", 1, func(s *hooks.Subscription) { s.NoLocal = true }),
		}
		ctx := st.t.Context()
		for _, x := range bad {
			err := st.b.SubscribeClient(ctx, "s", served("good", 1), x)
			require.Error(t, err, "%.40q", x.Filter)
		}
		require.Empty(t, st.b.ClientSubscriptions("s"))
		for _, name := range []string{"", "$local/x", "\xff", "a\x00b"} {
			require.Error(t, st.b.SubscribeClient(ctx, name, served("good", 1)), "%q", name)
		}
		require.NoError(t, st.b.SubscribeClient(ctx, "s"))
		ended, cancel := context.WithCancel(ctx)
		cancel()
		require.ErrorIs(t, st.b.SubscribeClient(ended, "s", served("a", 1)), context.Canceled)
		_, err := st.b.UnsubscribeClient(ended, "s", "a")
		require.ErrorIs(t, err, context.Canceled)
		for i := range bad {
			st.restart(func(c *Config) {
				c.Authenticator = users(map[string][]hooks.Subscription{"s": bad[i : i+1]})
			})
			p := st.dial("s", packets.V5, false, 3600, named("u"))
			code := p.want(packets.TypeConnack)[0].(*packets.Connack).Code
			require.Equal(t, packets.NotAuthorized, code, "%.40q", bad[i].Filter)
		}
		st.b.Close()
		require.ErrorIs(t, st.b.SubscribeClient(ctx, "s", served("a", 1)), ErrBrokerClosed)
	})
}
