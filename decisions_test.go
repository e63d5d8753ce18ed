package dunlin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A guardRig is a broker with users, rules that can be replaced, and a record of what its Observer
// was told.
type guardRig struct {
	t     *testing.T
	b     *Broker
	l     *listeners.Memory
	rules *acl.ACL

	admitted map[netip.Addr]*guard.Address // by admit

	mu     sync.Mutex
	events []string
	grant  func(*hooks.ConnectRequest) error // nil: everybody, as their User Name says
}

func rulesOf(t testing.TB, lines ...string) *acl.List {
	t.Helper()
	l, err := acl.Parse(strings.NewReader(strings.Join(lines, "\n")), "rules")
	require.NoError(t, err)
	return l
}

// withRules runs f in a bubble with a broker that decides by the given rules.
func withRules(t *testing.T, rules []string, edit func(*Config), f func(r *guardRig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &guardRig{t: t, rules: acl.New(rulesOf(t, rules...))}
		note := func(format string, args ...any) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, fmt.Sprintf(format, args...))
		}
		r.b = newTestBroker(t, func(c *Config) {
			c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
				q *hooks.ConnectRequest) error {
				if r.grant != nil {
					return r.grant(q)
				}
				return nil
			})
			c.Authorizer = r.rules
			c.Observer = &hooks.Observer{
				Revoked: func(e hooks.Revoked) { note("revoked %s %s", e.Client.ID, e.Filter) },
				Dropped: func(e hooks.Dropped) {
					note("dropped %s %s: %v", e.Client.ID, e.Message.Topic, e.Reason)
				},
				Denied: func(e hooks.Denied) {
					note("denied %s %v %s", e.Client.ID, e.Action, e.Topic)
				},
			}
			if edit != nil {
				edit(c)
			}
		})
		var done func()
		r.l, done = serveMemory(t, r.b)
		f(r)
		done()
	})
}

// told says whether the Observer was told that, and forgets all events.
func (r *guardRig) told(want string) {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Contains(r.t, r.events, want)
	r.events = nil
}

// as is a CONNECT that keeps its session. The user - has no name.
func as(id, user string) *packets.Connect {
	p := &packets.Connect{Version: packets.V5, ClientID: id}
	p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 1000)
	if user != "-" {
		p.HasUsername, p.Username = true, user
	}
	return p
}

func (r *guardRig) connect(p *packets.Connect) *testClient {
	r.t.Helper()
	c, ack := newTestClient(r.t, dial(r.t, r.l), p)
	require.Equal(r.t, packets.Success, ack.Code, "CONNECT of %s", p.ClientID)
	return c
}

// refused connects and wants that to fail with code.
func (r *guardRig) refused(p *packets.Connect, code packets.ReasonCode) {
	r.t.Helper()
	c, ack := newTestClient(r.t, dial(r.t, r.l), p)
	require.Equal(r.t, code, ack.Code, "CONNECT of %s", p.ClientID)
	c.nc.Close()
}

func (c *testClient) subscribe(filter string, qos packets.QoS) packets.ReasonCode {
	c.t.Helper()
	c.send(&packets.Subscribe{PacketID: 9,
		Subscriptions: []packets.Subscription{{Filter: filter, QoS: qos}}})
	ack, ok := c.recv().(*packets.Suback)
	require.True(c.t, ok, "SUBACK first")
	return ack.Codes[0]
}

// subscribeWithID is subscribe with a Subscription Identifier.
func (c *testClient) subscribeWithID(filter string, qos packets.QoS, id uint32) packets.ReasonCode {
	c.t.Helper()
	p := &packets.Subscribe{PacketID: 9,
		Subscriptions: []packets.Subscription{{Filter: filter, QoS: qos}}}
	p.Properties = p.Properties.AppendUint(packets.SubscriptionIdentifier, id)
	c.send(p)
	ack, ok := c.recv().(*packets.Suback)
	require.True(c.t, ok, "SUBACK first")
	return ack.Codes[0]
}

// publish sends a message of QoS 1 and returns the Reason Code of the PUBACK.
func (c *testClient) publish(topic, payload string, retain bool) packets.ReasonCode {
	c.t.Helper()
	c.send(&packets.Publish{QoS: 1, PacketID: 7, Topic: []byte(topic), Payload: []byte(payload),
		Retain: retain})
	ack, ok := c.recv().(*packets.Ack)
	require.True(c.t, ok)
	require.Equal(c.t, packets.TypePuback, ack.Kind)
	return ack.Code
}

// nothing wants that nothing has come.
func (c *testClient) nothing(why string) {
	c.t.Helper()
	synctest.Wait()
	c.send(&packets.Pingreq{})
	require.IsType(c.t, &packets.Pingresp{}, c.recv(), why)
}

// message wants a PUBLISH and acknowledges it.
func (c *testClient) message(topic string) *packets.Publish {
	c.t.Helper()
	p, ok := c.recv().(*packets.Publish)
	require.True(c.t, ok, "PUBLISH")
	require.Equal(c.t, topic, string(p.Topic))
	if p.QoS == packets.QoS1 {
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
	}
	return p
}

func (r *guardRig) reload(lines ...string) {
	r.rules.Set(rulesOf(r.t, lines...))
	synctest.Wait()
}

func (c *testClient) close() {
	c.nc.Close()
	synctest.Wait()
}

var (
	everything = []string{"allow all #"}
	denied     = []string{"deny user=u subscribe secret/#", "allow all #"}
)

// bypasses: each of these has been an advisory against some broker.
var bypasses = []struct {
	name  string
	rules []string
	run   func(r *guardRig)
}{
	{"a shared subscription is decided by its inner filter",
		[]string{"deny subscribe secret/#", "allow all #"}, func(r *guardRig) {
			c := r.connect(as("c", "u"))
			require.Equal(r.t, packets.NotAuthorized, c.subscribe("$share/g/secret/x", 1))
			require.Equal(r.t, packets.NotAuthorized, c.subscribe("$share/g/#", 1),
				"it contains what is denied")
			require.Equal(r.t, packets.QoS1, packets.QoS(c.subscribe("$share/secret/open/#", 1)),
				"the name of the group is no topic")
			c.close()
		}},
	{"a filter that contains a denied topic gets no retained messages",
		[]string{"deny subscribe secret/#", "allow all #"}, func(r *guardRig) {
			p := r.connect(as("p", "p"))
			p.publish("secret/x", "1", true)
			c := r.connect(as("c", "u"))
			for _, f := range []string{"secret/x", "secret/#", "#", "+/x", "secret/+"} {
				require.Equal(r.t, packets.NotAuthorized, c.subscribe(f, 1), f)
			}
			c.nothing("no retained message by a refused subscription")
			p.publish("secret/x", "2", true)
			c.nothing("and no live one")
			p.close()
			c.close()
		}},
	{"a Will is decided at CONNECT", []string{"deny publish secret/#", "allow all #"},
		func(r *guardRig) {
			p := as("c", "u")
			p.Will = &packets.Will{Topic: "secret/x", Payload: []byte("w")}
			r.refused(p, packets.NotAuthorized)
		}},
	{"a Will is decided again when it is published, with the identity of its client", everything,
		func(r *guardRig) {
			s := r.connect(as("s", "reader"))
			s.subscribe("#", 0)
			for _, user := range []string{"bad", "good"} {
				p := as(user, user)
				p.Will = &packets.Will{Topic: "w/" + user, Payload: []byte("w")}
				r.connect(p).nc.Close()
				if synctest.Wait(); user == "good" {
					break
				}
				s.message("w/bad")
				c := r.connect(p)
				r.reload("deny user=bad publish #", "allow all #")
				c.close()
				r.told("denied bad publish w/bad")
				s.nothing("the will of one who lost the right")
			}
			s.message("w/good")
			s.close()
		}},
	{"a delayed Will is decided when its time comes", everything, func(r *guardRig) {
		s := r.connect(as("s", "reader"))
		s.subscribe("#", 0)
		p := as("bad", "bad")
		p.Will = &packets.Will{Topic: "w/x",
			Properties: packets.Properties(nil).AppendUint(packets.WillDelayInterval, 10)}
		r.connect(p).close()
		r.reload("deny user=bad publish #", "allow all #")
		time.Sleep(20 * time.Second)
		r.told("denied bad publish w/x")
		s.nothing("the right was lost meanwhile")
		s.close()
	}},
	{"a Topic Alias is resolved before the decision",
		[]string{"deny publish secret/#", "allow all #"}, func(r *guardRig) {
			s := r.connect(as("s", "reader"))
			s.subscribe("secret/#", 0)
			c := r.connect(as("c", "u"))
			alias := packets.Properties(nil).AppendUint(packets.TopicAlias, 3)
			for _, topic := range []string{"secret/x", ""} { // the second time by alias alone
				c.send(&packets.Publish{QoS: 1, PacketID: 4, Topic: []byte(topic), Properties: alias})
				require.Equal(r.t, packets.NotAuthorized, c.recv().(*packets.Ack).Code)
			}
			c.send(&packets.Publish{QoS: 1, PacketID: 4, Topic: []byte("open"), Properties: alias})
			require.NotEqual(r.t, packets.NotAuthorized, c.recv().(*packets.Ack).Code,
				"the alias stands for another topic now")
			s.nothing("refused messages")
			c.close()
			s.close()
		}},
	{"clients never write topics that begin with $", everything, func(r *guardRig) {
		s := r.connect(as("s", "reader"))
		s.subscribe("$SYS/#", 0)
		s.subscribe("$other/#", 0)
		c := r.connect(as("c", "u"))
		for _, topic := range []string{"$SYS/broker/version", "$other/x", "$", "$share/g/x"} {
			require.Equal(r.t, packets.NotAuthorized, c.publish(topic, "forged", true), topic)
			c.send(&packets.Publish{Topic: []byte(topic)})
			c.send(&packets.Publish{QoS: 2, PacketID: 5, Topic: []byte(topic)})
			ack := c.recv().(*packets.Ack)
			require.Equal(r.t, packets.TypePubrec, ack.Kind)
			require.Equal(r.t, packets.NotAuthorized, ack.Code)
		}
		p := as("w", "u")
		p.Will = &packets.Will{Topic: "$SYS/x"}
		r.refused(p, packets.NotAuthorized)
		s.nothing("nothing was published")
		require.Empty(r.t, slices.Collect(r.b.Retained("$SYS/#")))
		c.close()
		s.close()
	}},
	{"$SYS can be denied, and # does not contain it", []string{"deny subscribe $SYS/#",
		"allow all #", "allow subscribe $SYS/#"}, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		require.Equal(r.t, packets.NotAuthorized, c.subscribe("$SYS/#", 0))
		require.Equal(r.t, packets.NotAuthorized, c.subscribe("$SYS/broker/version", 0))
		require.Equal(r.t, packets.NotAuthorized, c.subscribe("$share/g/$SYS/#", 0))
		c.subscribe("#", 0)
		require.NoError(r.t, r.b.Publish(context.Background(), &Message{Topic: "$SYS/x"}))
		c.nothing("a $-topic by #")
		c.close()
	}},
	{"names with wildcards never widen a rule",
		[]string{"allow all user/%u/#", "allow all client/%c/#"}, func(r *guardRig) {
			good := r.connect(as("good", "alice"))
			good.subscribe("user/alice/#", 0)
			good.subscribe("client/good/#", 0)
			for _, name := range []string{"+", "#", "alice/../alice", "+/x", "a#"} {
				c := r.connect(as(name, name))
				require.Equal(r.t, packets.NotAuthorized, c.subscribe("user/alice/#", 0), name)
				require.Equal(r.t, packets.NotAuthorized, c.subscribe("user/"+"+"+"/#", 0), name)
				require.Equal(r.t, packets.NotAuthorized, c.subscribe("client/+/#", 0), name)
				require.Equal(r.t, packets.NotAuthorized, c.publish("user/alice/x", "", false), name)
				require.Equal(r.t, packets.NotAuthorized, c.publish("client/good/x", "", false), name)
				c.close()
			}
			good.nothing("forged messages")
			good.close()
		}},
	{"an absent User Name gets nothing from %u",
		[]string{"allow all user/%u/#", "allow all user/%u"}, func(r *guardRig) {
			for _, user := range []string{"-", ""} {
				c := r.connect(as("c"+user, user))
				for _, f := range []string{"user//#", "user/#", "user/+/#", "user/"} {
					require.Equal(r.t, packets.NotAuthorized, c.subscribe(f, 0), "%q: %s", user, f)
				}
				require.Equal(r.t, packets.NotAuthorized, c.publish("user//x", "", false))
				require.Equal(r.t, packets.NotAuthorized, c.publish("user/", "", false))
				c.close()
			}
		}},
	{"a rule for a/b says nothing about a/b/c", []string{"allow all a/b"}, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		require.Equal(r.t, packets.NotAuthorized, c.publish("a/b/c", "", false))
		require.Equal(r.t, packets.NotAuthorized, c.publish("a/bc", "", false))
		require.Equal(r.t, packets.NotAuthorized, c.publish("a", "", false))
		require.Equal(r.t, packets.NotAuthorized, c.subscribe("a/b/#", 0), "it matches a/b/c too")
		require.Equal(r.t, packets.NoMatchingSubscribers, c.publish("a/b", "", false))
		c.close()
	}},
	{"an empty Client Identifier is an assigned one for the rules",
		[]string{"allow all client/%c", "allow all client//x"}, func(r *guardRig) {
			p := as("", "u")
			p.CleanStart = true
			c, ack := newTestClient(r.t, dial(r.t, r.l), p)
			id, ok := ack.Properties.Text(packets.AssignedClientIdentifier)
			require.True(r.t, ok)
			require.Equal(r.t, packets.NotAuthorized, c.publish("client/", "", false))
			require.Equal(r.t, packets.NotAuthorized, c.subscribe("client/+", 0))
			require.Equal(r.t, packets.NoMatchingSubscribers, c.publish("client/"+id, "", false))
			c.close()
		}},
	{"the topic that an Interceptor made is decided",
		[]string{"deny publish secret/#", "allow all #"}, func(r *guardRig) {
			s := r.connect(as("s", "reader"))
			s.subscribe("#", 0)
			s.subscribe("$SYS/#", 0)
			c := r.connect(as("c", "u"))
			require.Equal(r.t, packets.NotAuthorized, c.publish("to/secret/x", "", true))
			require.Equal(r.t, packets.NotAuthorized, c.publish("to/$SYS/x", "", true))
			require.Equal(r.t, packets.NotAuthorized, c.publish("to/invalid", "", true))
			require.Equal(r.t, packets.NotAuthorized, c.publish("to/deep", "", true),
				"more levels than are accepted")
			require.Empty(r.t, slices.Collect(r.b.Retained("#")))
			require.Empty(r.t, slices.Collect(r.b.Retained("$SYS/#")))
			s.nothing("refused messages")
			require.Equal(r.t, packets.Success, c.publish("to/open/x", "", false))
			s.message("open/x")
			c.close()
			s.close()
		}},
	{"a refused QoS 2 publish ends with its PUBREC, and its identifier is free",
		[]string{"deny publish secret", "allow all #"}, func(r *guardRig) {
			c := r.connect(as("c", "u"))
			c.subscribe("#", 0)
			c.send(&packets.Publish{QoS: 2, PacketID: 5, Topic: []byte("secret")})
			ack := c.recv().(*packets.Ack)
			require.Equal(r.t, packets.TypePubrec, ack.Kind)
			require.Equal(r.t, packets.NotAuthorized, ack.Code)
			c.send(&packets.Publish{QoS: 2, PacketID: 5, Topic: []byte("open")})
			c.message("open")
			require.Equal(r.t, packets.Success, c.recv().(*packets.Ack).Code)
			c.close()
		}},
}

func TestBypasses(t *testing.T) {
	for _, tt := range bypasses {
		t.Run(tt.name, func(t *testing.T) {
			withRules(t, tt.rules, func(c *Config) {
				c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client,
					m *packets.Message) (*packets.Message, error) {
					to, ok := strings.CutPrefix(m.Topic, "to/")
					if !ok {
						return m, nil
					}
					n := *m
					switch n.Topic = to; to {
					case "invalid":
						n.Topic = "a+b"
					case "deep":
						n.Topic = strings.Repeat("/", 200)
					}
					return &n, nil
				})
			}, tt.run)
		})
	}
}

// revocations: what was allowed once, and is no longer: a reload of the rules, and a client that
// comes back as somebody who may less.
var revocations = []struct {
	name string
	run  func(r *guardRig)
}{
	{"a subscription is gone as soon as the rules are in force", func(r *guardRig) {
		c, p := r.connect(as("c", "u")), r.connect(as("p", "p"))
		c.subscribe("secret/#", 1)
		c.subscribe("open/#", 1)
		p.publish("secret/x", "1", false) // the routes of p are warm
		c.message("secret/x")
		r.reload(denied...)
		r.told("revoked c secret/#")
		require.Equal(r.t, packets.NoMatchingSubscribers, p.publish("secret/x", "2", false))
		info, _ := r.b.Session("c")
		require.Len(r.t, info.Subscriptions, 1, "the other one stays")
		require.Equal(r.t, 1, r.b.Stats().Subscriptions)
		p.publish("open/x", "3", false)
		c.message("open/x")
		require.Equal(r.t, packets.NotAuthorized, c.subscribe("secret/#", 1),
			"it cannot be had back")
		r.reload(everything...)
		require.Equal(r.t, packets.QoS1, packets.QoS(c.subscribe("secret/#", 1)),
			"until the rules say so")
		c.close()
		p.close()
	}},
	{"a filter that contains what is denied goes as a whole", func(r *guardRig) {
		c := r.connect(as("c", "u"))
		c.subscribe("#", 1)
		r.reload(denied...)
		r.told("revoked c #")
		c.close()
	}},
	{"a shared subscription goes, and another member gets what is in its queue", func(r *guardRig) {
		c, p := r.connect(as("c", "u")), r.connect(as("p", "p"))
		c.subscribe("$share/g/secret/#", 1)
		c.close()
		p.publish("secret/x", "1", false)
		d := r.connect(as("d", "other"))
		d.subscribe("$share/g/secret/#", 1)
		r.reload(denied...)
		r.told("revoked c $share/g/secret/#")
		d.message("secret/x")
		d.close()
		p.close()
	}},
	{"queued messages are dropped, those of other subscriptions are not", func(r *guardRig) {
		c, p := r.connect(as("c", "u")), r.connect(as("p", "p"))
		for _, f := range []string{"secret/#", "secret/shown", "open/#", "gone/#"} {
			c.subscribe(f, 1)
		}
		r.reload("deny user=u subscribe gone/none", "allow all #") // changes nothing of it
		c.close()
		for _, topic := range []string{"secret/x", "open/x", "secret/shown", "secret/y"} {
			p.publish(topic, "", false)
		}
		r.reload("allow user=u subscribe secret/shown", "deny user=u subscribe secret/#",
			"allow all #")
		r.told("dropped c secret/y: not authorized")
		c = r.connect(as("c", "u"))
		c.message("open/x")
		c.message("secret/shown")
		c.nothing("what was queued by the revoked subscription")
		c.close()
		p.close()
	}},
	{"what was queued before UNSUBSCRIBE stays (3.10.4)", func(r *guardRig) {
		c, p := r.connect(as("c", "u")), r.connect(as("p", "p"))
		p.subscribe("x", 0)
		low := as("c", "u")
		low.Properties = low.Properties.AppendUint(packets.ReceiveMaximum, 1)
		c.close()
		c = r.connect(low)
		c.subscribe("a/#", 1)
		c.subscribe("secret/#", 1)
		p.publish("a/1", "", false)
		p.publish("a/2", "", false)
		first := c.recv().(*packets.Publish)
		c.send(&packets.Unsubscribe{PacketID: 3, Filters: []string{"a/#"}})
		require.IsType(r.t, &packets.Unsuback{}, c.recv())
		r.reload(denied...)
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: first.PacketID})
		c.message("a/2")
		c.close()
		p.close()
	}},
	{"a QoS 1 message in flight is not sent again", func(r *guardRig) {
		c, p := r.connect(as("c", "u")), r.connect(as("p", "p"))
		c.subscribe("secret/#", 1)
		p.publish("secret/1", "", false)
		require.Equal(r.t, "secret/1", string(c.recv().(*packets.Publish).Topic)) // and no PUBACK
		r.reload(denied...)
		c.close()
		c = r.connect(as("c", "u"))
		c.nothing("it would be a new look at what is denied")
		info, _ := r.b.Session("c")
		require.Zero(r.t, info.Inflight)
		c.close()
		p.close()
	}},
	{"a message in flight of an absent client is not sent again", func(r *guardRig) {
		c, p := r.connect(as("c", "u")), r.connect(as("p", "p"))
		c.subscribe("secret/#", 1)
		p.publish("secret/1", "", false)
		c.recv()
		c.close()
		r.reload(denied...)
		r.told("dropped c secret/1: not authorized")
		c = r.connect(as("c", "u"))
		c.nothing("it would be a new look at what is denied")
		c.close()
		p.close()
	}},
	{"a QoS 2 message in flight goes on with PUBREL, so that its identifier can be used again",
		func(r *guardRig) {
			c, p := r.connect(as("c", "u")), r.connect(as("p", "p"))
			c.subscribe("secret/#", 2)
			c.subscribe("open/#", 2)
			p.send(&packets.Publish{QoS: 2, PacketID: 1, Topic: []byte("secret/1")})
			require.IsType(r.t, &packets.Ack{}, p.recv())
			id := c.recv().(*packets.Publish).PacketID
			r.reload(denied...)
			c.close()
			c = r.connect(as("c", "u"))
			rel := c.recv().(*packets.Ack)
			require.Equal(r.t, packets.TypePubrel, rel.Kind)
			require.Equal(r.t, id, rel.PacketID)
			c.send(&packets.Ack{Kind: packets.TypePubcomp, PacketID: id})
			c.nothing("the exchange is over")
			info, _ := r.b.Session("c")
			require.Zero(r.t, info.Inflight)
			c.close()
			p.close()
		}},
	{"an exchange under way can still be completed on its connection", func(r *guardRig) {
		c, p := r.connect(as("c", "u")), r.connect(as("p", "p"))
		c.subscribe("secret/#", 2)
		p.send(&packets.Publish{QoS: 2, PacketID: 1, Topic: []byte("secret/1")})
		p.recv()
		id := c.recv().(*packets.Publish).PacketID
		r.reload(denied...)
		c.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: id})
		require.Equal(r.t, packets.TypePubrel, c.recv().(*packets.Ack).Kind)
		c.send(&packets.Ack{Kind: packets.TypePubcomp, PacketID: id})
		c.nothing("the exchange is over")
		c.close()
		p.close()
	}},
	{"a publisher loses the right at once, although its route is warm", func(r *guardRig) {
		p := r.connect(as("p", "u"))
		require.Equal(r.t, packets.NoMatchingSubscribers, p.publish("a", "", false))
		r.reload("deny user=u publish a", "allow all #")
		require.Equal(r.t, packets.NotAuthorized, p.publish("a", "", false))
		require.Equal(r.t, packets.NotAuthorized, p.publish("a", "", false),
			"and a kept refusal is one")
		r.told("denied p publish a")
		r.reload(everything...)
		require.Equal(r.t, packets.NoMatchingSubscribers, p.publish("a", "", false))
		p.close()
	}},
	{"at resume the subscriptions are decided for who the client is now", func(r *guardRig) {
		role := "staff"
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.Identity.Roles = []string{role}
			return nil
		}
		r.reload("allow role=staff all #", "allow all open/#")
		c := r.connect(as("c", "u"))
		for _, f := range []string{"secret/#", "open/#"} {
			c.subscribe(f, 1)
		}
		p := r.connect(as("p", "p"))
		p.publish("secret/0", "", false)
		c.recv() // and no PUBACK
		c.close()
		p.publish("secret/1", "", false)
		p.publish("open/1", "", false)
		role = "former"
		c = r.connect(as("c", "u"))
		r.told("revoked c secret/#")
		c.message("open/1")
		c.nothing("neither what was in flight nor what was queued")
		require.Equal(r.t, packets.NoMatchingSubscribers, p.publish("secret/2", "", false))
		c.close()
		p.close()
	}},
	{"at a takeover as well", func(r *guardRig) {
		role := "staff"
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.Identity.Roles = []string{role}
			return nil
		}
		r.reload("allow role=staff all #")
		c := r.connect(as("c", "u"))
		c.subscribe("secret/#", 1)
		p := r.connect(as("p", "p"))
		role = "former"
		again := r.connect(as("c", "u"))
		require.Equal(r.t, packets.NoMatchingSubscribers, p.publish("secret/1", "", false))
		again.nothing("the subscription is gone")
		again.close()
		c.close()
		p.close()
	}},
	{"another principal neither takes over, nor resumes, nor sees anything", func(r *guardRig) {
		c := r.connect(as("c", "alice"))
		c.subscribe("a/#", 1)
		for _, user := range []string{"bob", "-", ""} {
			r.refused(as("c", user), packets.ClientIdentifierNotValid)
		}
		c.nothing("it was not even disturbed")
		c.close()
		p := r.connect(as("p", "p"))
		p.publish("a/1", "", false)
		for _, user := range []string{"bob", "-", ""} {
			r.refused(as("c", user), packets.ClientIdentifierNotValid)
			q := as("c", user)
			q.CleanStart = true
			r.refused(q, packets.ClientIdentifierNotValid)
		}
		c = r.connect(as("c", "alice"))
		c.message("a/1")
		c.close()
		p.close()
	}},
	{"clients without a name and with an empty one do not mix", func(r *guardRig) {
		c := r.connect(as("c", "-"))
		r.refused(as("c", ""), packets.ClientIdentifierNotValid)
		c.close()
		d := r.connect(as("d", ""))
		r.refused(as("d", "-"), packets.ClientIdentifierNotValid)
		d.close()
	}},
}

// A hook that names a Reason Code gets its way, also with the one that gives no reason.
func TestTheReasonCodeOfARefusal(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		code packets.ReasonCode
	}{
		{"an error without a code", errors.New("no"), packets.NotAuthorized},
		{"Unspecified error", packets.Errorf(packets.UnspecifiedError, "not told"),
			packets.UnspecifiedError},
		{"one that neither SUBACK nor PUBACK has", packets.Errorf(packets.ServerBusy, "no"),
			packets.NotAuthorized},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withRules(t, everything, func(c *Config) {
				c.Authorizer = hooks.AuthorizerFunc(func(context.Context,
					*hooks.AccessRequest) error {
					return tt.err
				})
			}, func(r *guardRig) {
				c := r.connect(as("c", "u"))
				require.Equal(t, tt.code, c.publish("a", "", false))
				c.send(&packets.Subscribe{PacketID: 1,
					Subscriptions: []packets.Subscription{{Filter: "a"}}})
				require.Equal(t, []packets.ReasonCode{tt.code}, c.recv().(*packets.Suback).Codes)
				c.close()
			})
		})
	}
}

// neverIn is an Authentication Method by which nobody gets in.
func neverIn(context.Context, *hooks.ConnectRequest) (hooks.Exchange, error) {
	return nil, hooks.ErrAbstain
}

// Where nobody is verified a name keeps nobody out, and yet nobody gets what was meant for another.
func TestNamesThatNobodyVerifiesOwnNothing(t *testing.T) {
	for _, tt := range []struct {
		name    string
		enhance bool
		code    packets.ReasonCode
		users   []string
	}{
		{"with AllowAll alone", false, packets.Success, []string{"alice", "bob", ""}},
		// An empty name is none where somebody could be verified.
		{"nor beside one without a name", true, packets.ClientIdentifierNotValid,
			[]string{"alice", "bob"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTestBroker(t, func(c *Config) {
					if tt.enhance {
						c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"M": hooks.EnhancedAuthenticatorFunc(neverIn)}
					}
				})
				l, stop := serveMemory(t, b)
				defer stop()
				p, _ := newTestClient(t, dial(t, l), as("p", "-"))
				c, _ := newTestClient(t, dial(t, l), as("c", "-"))
				c.subscribe("a", 1)
				for _, user := range tt.users {
					d, ack := newTestClient(t, dial(t, l), as("c", user))
					require.Equal(t, tt.code, ack.Code)
					require.False(t, ack.SessionPresent)
					if tt.code != packets.Success {
						d.nc.Close()
						continue
					}
					require.Equal(t, packets.SessionTakenOver, c.recv().(*packets.Disconnect).Code)
					require.Equal(t, packets.NoMatchingSubscribers,
						p.publish("a", "for the one before", false))
					d.subscribe("a", 1)
					c.nc.Close()
					c = d
				}
				c.close()
				require.Equal(t, packets.Success, p.publish("a", "queued", false))
				d, ack := newTestClient(t, dial(t, l), as("c", "carol"))
				require.Equal(t, tt.code, ack.Code)
				if tt.code == packets.Success {
					d.nothing("what was queued for the one before")
				}
				d.nc.Close()
				p.close()
			})
		})
	}
}

func TestRevocation(t *testing.T) {
	for _, tt := range revocations {
		t.Run(tt.name, func(t *testing.T) { withRules(t, everything, nil, tt.run) })
	}
}
