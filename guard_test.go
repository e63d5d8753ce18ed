package dunlin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// countingAuthorizer counts its answers, and may decide deliveries.
type countingAuthorizer struct {
	hooks.Reloads
	stable          bool
	calls           atomic.Int64
	answer, deliver func(*hooks.AccessRequest) error
}

func (a *countingAuthorizer) Stable() bool { return a.stable }

func (a *countingAuthorizer) Authorize(_ context.Context, r *hooks.AccessRequest) error {
	a.calls.Add(1)
	if a.answer == nil {
		return nil
	}
	return a.answer(r)
}

// A readingAuthorizer decides deliveries, too.
type readingAuthorizer struct{ countingAuthorizer }

func (a *readingAuthorizer) AuthorizeDelivery(_ context.Context, r *hooks.AccessRequest) error {
	a.calls.Add(1)
	return a.deliver(r)
}

func TestDecisionsOfPublishesAreKept(t *testing.T) {
	for _, tt := range []struct {
		name   string
		stable bool
		err    error
		want   int64 // most calls for five publishes to each of two topics
	}{
		{"of a stable Authorizer, by topic", true, nil, 3},
		{"a refusal as well", true, packets.Errorf(packets.NotAuthorized, "no"), 3},
		{"an abstention as well", true, hooks.ErrAbstain, 3},
		{"but not a failure, which may be over the next time", true,
			errors.New("the database is down"), 10},
		{"not where the Authorizer does not say that it is stable", false, nil, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &countingAuthorizer{stable: tt.stable,
				answer: func(*hooks.AccessRequest) error { return tt.err }}
			withRules(t, nil, func(c *Config) { c.Authorizer = a }, func(r *guardRig) {
				c := r.connect(as("c", "u"))
				// the second topic gets a place in the cache when it comes again
				for _, topic := range []string{"a", "b"} {
					for range 5 {
						code := c.publish(topic, "", false)
						require.Equal(t, tt.err != nil, code == packets.NotAuthorized, "%v", code)
					}
				}
				calls := a.calls.Load()
				require.LessOrEqual(t, calls, tt.want)
				if tt.want == 10 {
					require.EqualValues(t, 10, calls)
				}
				a.Reloaded()
				c.publish("b", "", false)
				require.Equal(t, calls+1, a.calls.Load(), "new rules, new decision")
				c.close()
			})
		})
	}
}

func TestAKeptDecisionIsThatOfAQoSAndOfRetain(t *testing.T) {
	l, err := acl.Parse(strings.NewReader(
		"deny retain publish a\nallow qos=0 publish a\nallow subscribe #"), "rules")
	require.NoError(t, err)
	a := acl.New(l)
	withRules(t, nil, func(c *Config) { c.Authorizer = a }, func(r *guardRig) {
		c, s := r.connect(as("c", "u")), r.connect(as("s", "u"))
		s.subscribe("a", 0)
		for range 3 {
			require.Equal(t, packets.NotAuthorized, c.publish("a", "QoS 1", false))
			c.send(&packets.Publish{Topic: []byte("a"), Payload: []byte("retained"), Retain: true})
			c.send(&packets.Publish{Topic: []byte("a"), Payload: []byte("fine")})
			require.Equal(t, "fine", string(s.message("a").Payload))
		}
		c.close()
		s.close()
	})
}

func TestDeliveriesAreDecidedWhereTheAuthorizerWantsIt(t *testing.T) {
	a := &readingAuthorizer{}
	secret := func(r *hooks.AccessRequest) error {
		if r.Client.ID == "c" && strings.HasPrefix(r.Topic, "secret") {
			return packets.Errorf(packets.NotAuthorized, "not for you")
		}
		return nil
	}
	a.deliver = secret
	withRules(t, nil, func(c *Config) { c.Authorizer, c.QueueQoS0 = a, true }, func(r *guardRig) {
		c, d, p := r.connect(as("c", "u")), r.connect(as("d", "u")), r.connect(as("p", "u"))
		p.publish("secret/retained", "r", true)
		p.publish("open/retained", "r", true)
		for _, x := range []*testClient{c, d} {
			x.subscribe("#", 1)
		}
		c.message("open/retained")
		d.message("open/retained")
		d.message("secret/retained")

		p.publish("secret/1", "", false)
		p.publish("open/1", "", false)
		c.message("open/1")
		d.message("secret/1")
		d.message("open/1")
		synctest.Wait()
		before := a.calls.Load()
		p.publish("secret/1", "", false)
		p.publish("open/1", "", false)
		c.message("open/1")
		require.EqualValues(t, 2, a.calls.Load()-before,
			"only the publishes were decided; deliveries are known by Session and topic")
		d.message("secret/1")
		d.message("open/1")
		c.nothing("what it may not have")

		c.close() // what is queued is decided when it is sent
		p.publish("secret/2", "", false)
		p.publish("open/2", "", false)
		c = r.connect(as("c", "u"))
		c.message("open/2")
		c.nothing("queued and refused")
		d.message("secret/2")
		d.message("open/2")

		a.deliver = func(*hooks.AccessRequest) error { return nil }
		a.Reloaded()
		p.publish("secret/1", "", false)
		c.message("secret/1")
		d.message("secret/1")

		a.deliver = func(*hooks.AccessRequest) error { panic("on purpose") }
		a.Reloaded()
		p.publish("open/1", "", false)
		p.nothing("the publisher is alive")
		c.nothing("a panic refuses")
		require.NotZero(t, r.b.Stats().Panics)

		a.deliver = secret // one member of a group may not have it: it goes to the other
		a.Reloaded()
		c.send(&packets.Unsubscribe{PacketID: 1, Filters: []string{"#"}})
		require.IsType(t, &packets.Unsuback{}, c.recv())
		d.send(&packets.Unsubscribe{PacketID: 1, Filters: []string{"#"}})
		require.IsType(t, &packets.Unsuback{}, d.recv())
		c.subscribe("$share/g/#", 1)
		d.subscribe("$share/g/#", 1)
		for range 4 {
			p.publish("secret/1", "", false)
			d.message("secret/1")
		}
		for _, x := range []*testClient{c, d, p} {
			x.close()
		}
	})
}

func TestInFlightMessagesAreDecidedAgainAtResume(t *testing.T) {
	a := &readingAuthorizer{}
	allowed := true
	a.deliver = func(r *hooks.AccessRequest) error {
		if allowed || r.Topic == "b" {
			return nil
		}
		return hooks.ErrAbstain
	}
	withRules(t, nil, func(c *Config) { c.Authorizer = a }, func(r *guardRig) {
		c, p := r.connect(as("c", "u")), r.connect(as("p", "u"))
		c.subscribe("#", 2)
		for _, topic := range []string{"a", "b", "a"} {
			p.publish(topic, "", false)
			c.recv()
		}
		c.close()
		allowed = false
		c = r.connect(as("c", "u"))
		require.Equal(t, "b", string(c.message("b").Topic))
		c.nothing("what it may not have any more")
		info, _ := r.b.Session("c")
		require.Zero(t, info.Inflight)
		c.close()
		p.close()
	})
}

func TestMountPoints(t *testing.T) {
	var asked []string
	mount := "t/7/"
	a := &countingAuthorizer{answer: func(r *hooks.AccessRequest) error {
		asked = append(asked, r.Action.String()+" "+r.Topic)
		return nil
	}}
	withRules(t, nil, func(c *Config) {
		c.Authorizer = a
		c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client,
			m *packets.Message) (*packets.Message, error) {
			n := *m
			switch m.Topic {
			case "t/7/escape":
				n.Topic = "t/8/x"
			case "t/7/inside":
				n.Topic = "t/7/y"
			case "t/7/reserved":
				n.Topic = "t/7/$SYS"
			}
			return &n, nil
		})
	}, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			if q.Client.Username == "tenant" {
				q.Grant.MountPoint = mount
			}
			return nil
		}
		out := r.connect(as("out", "outside"))
		out.subscribe("#", 1)
		in := as("in", "tenant")
		in.Will = &packets.Will{Topic: "w", Payload: []byte("w")}
		c := r.connect(in)
		c.subscribe("#", 1)
		w := r.connect(as("w", "tenant"))
		asked = nil
		w.publish("inside", "", false)
		require.Equal(t, []string{"publish inside", "publish y"}, asked,
			"topics are asked about without the mount point")
		c.message("y")
		out.message("t/7/y")
		require.Equal(t, packets.NotAuthorized, w.publish("escape", "", false),
			"an Interceptor cannot lead out of it")
		require.Equal(t, packets.NotAuthorized, w.publish("reserved", "", false))

		// t/7/# matches t/7, which the client has no name for.
		w.close()
		require.NoError(t, r.b.Publish(context.Background(),
			&Message{Topic: "t/7", Payload: []byte("r"), Retain: true}))
		out.message("t/7")
		c.nothing("the parent of the mount point")
		require.Equal(t, packets.QoS0, packets.QoS(c.subscribe("#", 0)))
		c.nothing("and not as a retained message")

		asked = nil
		c.close()
		require.Equal(t, []string{"publish w"}, asked, "the Will is asked about as at CONNECT")
		out.message("t/7/w")

		mount = "t/8/" // whoever comes back with another mount point begins anew
		c, ack := newTestClient(t, dial(t, r.l), as("in", "tenant"))
		require.False(t, ack.SessionPresent)
		require.NoError(t, r.b.Publish(context.Background(), &Message{Topic: "t/7/x"}))
		out.message("t/7/x")
		c.nothing("of the old mount point")
		c.close()

		for _, mount = range []string{"t/+/", "#", "a\x00b", "$", "$SYS/", "$share/g/"} {
			r.refused(as("in", "tenant"), packets.NotAuthorized)
		}
		out.close()
	})
}

func TestSessionPerPrincipal(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.SessionPerPrincipal = true }, func(r *guardRig) {
		var all []*testClient
		for _, user := range []string{"bob", "-", "alice", ""} {
			c := r.connect(as("c", user))
			c.subscribe("to/"+user, 1)
			all = append(all, c)
		}
		p := r.connect(as("p", "p"))
		for i, user := range []string{"bob", "-", "alice", ""} {
			p.publish("to/"+user, "", false)
			all[i].message("to/" + user)
			all[i].nothing("somebody else's")
		}
		again := r.connect(as("c", "bob"))
		require.Equal(t, packets.SessionTakenOver, all[0].recv().(*packets.Disconnect).Code,
			"one's own")
		all[0].close()
		all[0] = again

		var names []string
		for s := range r.b.Sessions() {
			names = append(names, s.ClientID+"/"+s.Principal)
		}
		require.Equal(t, []string{"c/", "c/", "c/alice", "c/bob", "p/p"}, names)
		info, ok := r.b.Session("c")
		require.True(t, ok)
		require.Equal(t, "", info.Principal, "the first of them")
		require.True(t, r.b.Disconnect("c", packets.AdministrativeAction))
		for _, c := range all {
			require.Equal(t, packets.AdministrativeAction, c.recv().(*packets.Disconnect).Code)
			c.close()
		}
		require.True(t, deletes(t, r.b, "c"))
		require.False(t, deletes(t, r.b, "c"))
		_, ok = r.b.Session("c")
		require.False(t, ok)
		p.close()
	})
}

func TestPanicsInHooksOffTheReaderAreSurvived(t *testing.T) {
	panics := false
	a := &countingAuthorizer{answer: func(*hooks.AccessRequest) error {
		if panics {
			panic("on purpose")
		}
		return nil
	}}
	withRules(t, nil, func(c *Config) { c.Authorizer = a }, func(r *guardRig) {
		s := r.connect(as("s", "u"))
		s.subscribe("#", 0)
		p := as("c", "u")
		p.Will = &packets.Will{Topic: "w"}
		c := r.connect(p)
		panics = true
		c.close()
		s.nothing("a Will whose decision panicked")
		a.Reloaded()
		synctest.Wait()
		info, _ := r.b.Session("s")
		require.Empty(t, info.Subscriptions, "a panic refuses")
		require.EqualValues(t, 2, r.b.Stats().Panics)
		s.close()
	})
}

// A hook sees the facts of the connection, and its context ends with that.
func TestHooksAreToldWhoAsks(t *testing.T) {
	var seen *hooks.Client
	ended := make(chan error, 1)
	wait := false
	withRules(t, nil, func(c *Config) {
		c.Authorizer = hooks.AuthorizerFunc(func(ctx context.Context,
			r *hooks.AccessRequest) error {
			seen = r.Client
			if wait {
				<-ctx.Done()
				ended <- ctx.Err()
			}
			return nil
		})
	}, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.Identity = hooks.Identity{Principal: "who", Tenant: "t",
				Attributes: map[string]string{"k": "v"}}
			return nil
		}
		p := as("c", "name")
		p.Properties = p.Properties.AppendUser("site", "north")
		c := r.connect(p)
		c.publish("a", "", false)
		require.Equal(t, "c", seen.ID)
		require.Equal(t, "name", seen.Username)
		require.Equal(t, packets.V5, seen.Version)
		require.NotNil(t, seen.RemoteAddr)
		require.NotNil(t, seen.LocalAddr)
		require.Equal(t, "who", seen.Identity.Principal)
		require.Equal(t, "v", seen.Identity.Attributes["k"])
		var user []string
		for k, v := range seen.Properties.User() {
			user = append(user, k, v)
		}
		require.Equal(t, []string{"site", "north"}, user)

		wait = true
		c.send(&packets.Publish{Topic: []byte("b")})
		synctest.Wait()
		require.True(t, r.b.Disconnect("c", packets.AdministrativeAction))
		require.ErrorIs(t, <-ended, context.Canceled)
		c.close()
	})
}

func TestADecisionOfCONNECTHasItsTime(t *testing.T) {
	withRules(t, nil, func(c *Config) {
		c.ConnectTimeout = 3 * time.Second
		c.Authenticator = hooks.AuthenticatorFunc(func(ctx context.Context,
			_ *hooks.ConnectRequest) error {
			<-ctx.Done()
			return ctx.Err()
		})
	}, func(r *guardRig) {
		start := time.Now()
		r.refused(as("c", "u"), packets.NotAuthorized)
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

// Reason Codes of hooks go out only where the standard has them; a Reason String only if the client
// wants such and it fits.
func TestRefusalsHaveTheRightCode(t *testing.T) {
	for _, tt := range []struct {
		name                               string
		said                               error
		connack, suback, puback            packets.ReasonCode
		reason                             string
		noReasons, connackHasNone, tooLong bool
	}{
		{name: "a code that every packet has", said: packets.Errorf(packets.QuotaExceeded,
			"because"), connack: packets.QuotaExceeded,
			suback: packets.QuotaExceeded, puback: packets.QuotaExceeded, reason: "because"},
		{name: "one that only CONNACK has", said: packets.Errorf(packets.Banned, "because"),
			connack: packets.Banned,
			suback:  packets.NotAuthorized, puback: packets.NotAuthorized, reason: "because"},
		{name: "one that no refusal has", said: packets.Errorf(packets.TopicAliasInvalid,
			"because"), connack: packets.NotAuthorized,
			suback: packets.NotAuthorized, puback: packets.NotAuthorized, reason: "because"},
		{name: "an error without code, whose text stays here",
			said:    errors.New("the password of the database is x"),
			connack: packets.NotAuthorized, suback: packets.NotAuthorized,
			puback: packets.NotAuthorized},
		{name: "one that is forgotten, which must not read as success",
			said: &packets.Error{Reason: "because"}, connack: packets.NotAuthorized,
			suback: packets.NotAuthorized, puback: packets.NotAuthorized, reason: "because"},
		{name: "one that grants QoS 1", said: packets.Errorf(packets.GrantedQoS1, "because"),
			connack: packets.NotAuthorized,
			suback:  packets.NotAuthorized, puback: packets.NotAuthorized, reason: "because"},
		{name: "one that says that nobody subscribes", said: fmt.Errorf("wrapped: %w",
			packets.Errorf(packets.NoMatchingSubscribers, "because")),
			connack: packets.NotAuthorized, suback: packets.NotAuthorized,
			puback: packets.NotAuthorized, reason: "because"},
		{name: "a nil *packets.Error, which is an error", said: (*packets.Error)(nil),
			connack: packets.NotAuthorized,
			suback:  packets.NotAuthorized, puback: packets.NotAuthorized},
		{name: "a reason of 70,000 bytes is cut", said: packets.Errorf(packets.NotAuthorized, "%s",
			strings.Repeat("xyz€", 20_000)),
			connack: packets.NotAuthorized, suback: packets.NotAuthorized,
			puback: packets.NotAuthorized, reason: strings.Repeat("xyz€", 170) + "xyz"},
		{name: "a reason that is no text is made one",
			said:    packets.Errorf(packets.NotAuthorized, "no\x00\xff\n\uFFFF!"),
			connack: packets.NotAuthorized, suback: packets.NotAuthorized,
			puback: packets.NotAuthorized, reason: "no\uFFFD\uFFFD \uFFFD!"},
		{name: "a client that wants no reasons",
			said: packets.Errorf(packets.NotAuthorized, "because"), noReasons: true,
			connack: packets.NotAuthorized, suback: packets.NotAuthorized,
			puback: packets.NotAuthorized},
		{name: "a reason that does not fit", said: packets.Errorf(packets.NotAuthorized, "%s",
			strings.Repeat("x", 300)), tooLong: true,
			connack: packets.NotAuthorized, suback: packets.NotAuthorized,
			puback: packets.NotAuthorized},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refuse := false
			withRules(t, nil, func(c *Config) {
				c.Authorizer = hooks.AuthorizerFunc(func(context.Context,
					*hooks.AccessRequest) error {
					return tt.said
				})
			}, func(r *guardRig) {
				r.grant = func(*hooks.ConnectRequest) error {
					if refuse {
						return tt.said
					}
					return nil
				}
				p := as("c", "u")
				if tt.noReasons {
					p.Properties = p.Properties.AppendUint(packets.RequestProblemInformation, 0)
				}
				if tt.tooLong {
					p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, 100)
				}
				said := func(p packets.Properties) string {
					s,
						_ := p.Text(packets.ReasonString)
					return s
				}
				c := r.connect(p)
				c.send(&packets.Subscribe{PacketID: 1,
					Subscriptions: []packets.Subscription{{Filter: "a"}}})
				sub := c.recv().(*packets.Suback)
				require.Equal(t, []packets.ReasonCode{tt.suback}, sub.Codes)
				require.Equal(t, tt.reason, said(sub.Properties))
				for qos, kind := range map[packets.QoS]packets.Type{1: packets.TypePuback,
					2: packets.TypePubrec} {
					c.send(&packets.Publish{QoS: qos, PacketID: 1, Topic: []byte("a")})
					ack := c.recv().(*packets.Ack)
					require.Equal(t, kind, ack.Kind)
					require.Equal(t, tt.puback, ack.Code)
					require.Equal(t, tt.reason, said(ack.Properties))
				}
				c.close()
				refuse = true
				c, ack := newTestClient(t, dial(t, r.l), p)
				require.Equal(t, tt.connack, ack.Code)
				require.Equal(t, tt.reason, said(ack.Properties))
				c.nc.Close()
			})
		})
	}
}

func TestReauthenticationKeepsThePrincipalAndDecidesAnew(t *testing.T) {
	var next hooks.Identity
	withRules(t, []string{"allow role=staff all #"}, func(c *Config) {
		c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"x": hooks.EnhancedAuthenticatorFunc(
			func(_ context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
				r.Grant.Identity = next
				return doneAtOnce{}, nil
			})}
	}, func(r *guardRig) {
		p := as("c", "u")
		p.Properties = p.Properties.AppendText(packets.AuthenticationMethod, "x")
		again := &packets.Auth{Code: packets.ReAuthenticate,
			Properties: packets.Properties(nil).AppendText(packets.AuthenticationMethod, "x")}
		next = hooks.Identity{Principal: "p", Roles: []string{"staff"}}
		c := r.connect(p)
		c.subscribe("a", 1)
		publish := func() (code packets.ReasonCode) {
			c.send(&packets.Publish{QoS: 1, PacketID: 7, Topic: []byte("a")})
			for range 2 {
				switch p := c.recv().(type) {
				case *packets.Publish:
					c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
				case *packets.Ack:
					if code = p.Code; code.Failed() {
						return code
					}
				}
			}
			return code
		}
		require.Equal(t, packets.Success, publish())

		next = hooks.Identity{} // nothing new is known
		c.send(again)
		require.Equal(t, packets.Success, c.recv().(*packets.Auth).Code)
		require.Equal(t, packets.Success, publish())

		next = hooks.Identity{Principal: "p", Roles: []string{"former"}}
		c.send(again)
		require.Equal(t, packets.Success, c.recv().(*packets.Auth).Code)
		r.told("revoked c a")
		require.Equal(t, packets.NotAuthorized, c.publish("a", "", false),
			"the kept decision was for another role")

		next = hooks.Identity{Principal: "somebody else"}
		c.send(again)
		require.Equal(t, packets.NotAuthorized, c.recv().(*packets.Disconnect).Code)
		c.close()
	})
}

type doneAtOnce struct{}

func (doneAtOnce) Next(context.Context, []byte) ([]byte, bool, error) { return nil, true, nil }

// A revoked subscription leaves its retained messages unsent, however many were to come.
func TestRevocationStopsRetainedMessages(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxInflight = 1 }, func(r *guardRig) {
		for i := range 50 {
			require.NoError(t, r.b.Publish(context.Background(),
				&Message{Topic: "secret/" + string(rune('A'+i)), Retain: true, QoS: 1,
					Payload: []byte("x")}))
		}
		c := r.connect(as("c", "u"))
		c.subscribe("secret/#", 1)
		first := c.recv().(*packets.Publish)
		r.reload("deny subscribe secret/#", "allow all #")
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: first.PacketID})
		c.nothing("the rest of them")
		require.Len(t, slices.Collect(r.b.Retained("secret/#")), 50)
		c.close()
	})
}

func TestACombinationDecidesDeliveriesAsItsMembersDo(t *testing.T) {
	l, err := acl.Rules(acl.Rule{Effect: acl.EffectAllow, Action: hooks.ActionSubscribe,
		Filters: []string{"a/b"}}, acl.Rule{Effect: acl.EffectAllow, Action: hooks.ActionPublish,
		Filters: []string{"#"}})
	require.NoError(t, err)
	for name, a := range map[string]hooks.Authorizer{
		"chain": hooks.ChainAuthorizers(acl.New(l).AtDelivery()),
		"all":   hooks.AllAuthorizers(hooks.AllowAll, acl.New(l).AtDelivery()),
		"any":   hooks.AnyAuthorizer(acl.New(l).AtDelivery(), acl.New(nil)),
	} {
		withRules(t, nil, func(c *Config) { c.Authorizer = a }, func(r *guardRig) {
			c, p := r.connect(as("c", "u")), r.connect(as("p", "u"))
			c.subscribe("#", 1)
			p.publish("secret", "", false)
			p.publish("a/b", "", false)
			c.message("a/b")
			c.nothing("in " + name + ", what no rule allows")
		})
	}
}

// A takeover may come while the first hook is asked for the connection that has the Session; the
// race detector has a look.
func TestATakeoverWhileTheFirstHookIsAsked(t *testing.T) {
	withRules(t, nil, func(c *Config) {
		c.Authenticator, c.Authorizer, c.Observer = hooks.AllowAll, nil, nil
		c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client,
			m *packets.Message) (*packets.Message, error) {
			return m, nil
		})
	}, func(r *guardRig) {
		for i := range 300 {
			old := r.connect(as(fmt.Sprint("c", i), "u"))
			go func() {
				b, _ := (&packets.Publish{Topic: []byte("t")}).Append(nil,
					packets.V5)
				old.nc.Write(b)
			}()
			c := r.connect(as(fmt.Sprint("c", i), "u"))
			c.close()
			old.close()
		}
	})
}

// A Response Topic may be decided while the client that asked authenticates anew; the race detector
// has a look.
func TestAResponseWhileTheClientAuthenticatesAnew(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"x": hooks.EnhancedAuthenticatorFunc(
			func(_ context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
				r.Grant.Identity = hooks.Identity{Principal: "p", Roles: []string{"staff"}}
				return doneAtOnce{}, nil
			})}
	}, func(r *guardRig) {
		_, err := r.b.Respond(r.t.Context(), "do", upper)
		require.NoError(t, err)
		p := as("c", "u")
		p.Properties = p.Properties.AppendText(packets.AuthenticationMethod, "x")
		c := r.connect(p)
		again := &packets.Auth{Code: packets.ReAuthenticate,
			Properties: packets.Properties(nil).AppendText(packets.AuthenticationMethod, "x")}
		for range 50 {
			c.send(&packets.Publish{Topic: []byte("do"),
				Properties: packets.Properties(nil).AppendText(packets.ResponseTopic, "r")})
			c.send(again)
			require.Equal(t, packets.Success, c.recv().(*packets.Auth).Code)
		}
		c.close()
	})
}

// The longest Session Expiry Interval that a client is granted holds in DISCONNECT as well.
func TestTheGrantedSessionExpiryHoldsInDISCONNECT(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.Limits.SessionExpiry = time.Minute
			return nil
		}
		c := r.connect(as("c", "u"))
		c.send(&packets.Disconnect{Properties: packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 1000)})
		time.Sleep(2 * time.Minute)
		_, ok := r.b.Session("c")
		require.False(t, ok, "it is kept for longer than the Authenticator has granted")
		c.close()
	})
}
