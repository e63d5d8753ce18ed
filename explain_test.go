package dunlin_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A situation is why a client does not get a topic, and what Explain says to it.
type situation struct {
	client, topic string // "c" and "a/b" if they are empty
	config        func(t *testing.T, c *dunlin.Config)
	does          func(s *stage)
	want          hooks.Cause
	behind        bool // another cause, which is why this one lasts, comes first
	check         func(t *testing.T, x dunlin.Explanation)
}

var situations = map[string]situation{
	"the topic has a wildcard": {
		topic: "a/#", does: func(s *stage) { s.connect("c").subscribe("#", 0) },
		want: hooks.CauseTopicInvalid,
	},
	"the topic has too many levels": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxTopicLevels = 3 },
		topic:  "a/b/c/d", does: func(s *stage) { s.connect("c").subscribe("a/#", 0) },
		want: hooks.CauseTopicTooLong,
	},
	"only the broker may publish to the topic": {
		topic: "$app/x", does: func(s *stage) { s.connect("c").subscribe("$app/#", 0) },
		want: hooks.CauseTopicReserved,
	},
	"nobody knows the client": {does: func(*stage) {}, want: hooks.CauseUnknownClient},
	"the Session ended with its connection": {
		does: func(s *stage) { s.connect("c").subscribe("a/b", 1).disconnect() },
		want: hooks.CauseSessionEnded,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.False(t, x.Session)
			require.Equal(t, hooks.EndClient, x.Ending.Cause)
		},
	},
	"the Session has expired": {
		does: func(s *stage) {
			s.connect("c", lasting(10)).subscribe("a/b", 1).disconnect()
			time.Sleep(11 * time.Second)
		},
		want: hooks.CauseSessionExpired,
	},
	"the Session was deleted while the client was there": {
		does: func(s *stage) {
			s.connect("c", lasting(10)).subscribe("a/b", 1)
			s.b.DeleteSession(s.t.Context(), "c")
			time.Sleep(2 * time.Second)
		},
		want: hooks.CauseSessionDeleted,
	},
	"the Session was deleted while the client was away": {
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/b", 1).disconnect()
			s.b.DeleteSession(s.t.Context(), "c")
		},
		want: hooks.CauseSessionDeleted,
	},
	"the client was refused": {
		config: func(_ *testing.T, c *dunlin.Config) { c.Authenticator = verified },
		does:   func(s *stage) { s.connect("c", as("mallory")); time.Sleep(2 * time.Second) },
		want:   hooks.CauseRefused,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Equal(t, hooks.EndBadPassword, x.Ending.Cause)
			require.Contains(t, x.Text, "no such user")
		},
	},
	"the client is banned": {
		does: func(s *stage) {
			require.NoError(s.t, s.b.Ban(dunlin.Ban{Kind: dunlin.BanClient, Value: "c",
				Reason: "floods"}))
		},
		want:  hooks.CauseBanned,
		check: func(t *testing.T, x dunlin.Explanation) { require.Contains(t, x.Text, "floods") },
	},
	"the address of the client, which has a Session, is banned": {
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/b", 1)
			require.NoError(s.t, s.b.Ban(dunlin.Ban{Kind: dunlin.BanAddress, Value: "10.0.0.0/8"}))
			time.Sleep(2 * time.Second)
		},
		want: hooks.CauseBanned,
	},
	"the Session belongs to another principal": {
		config: func(_ *testing.T, c *dunlin.Config) { c.Authenticator = verified },
		does: func(s *stage) {
			s.connect("c", as("alice"), lasting(100)).subscribe("a/b", 1).disconnect()
			s.connect("c", as("bob"))
			time.Sleep(2 * time.Second)
		},
		want:  hooks.CauseOtherPrincipal,
		check: func(t *testing.T, x dunlin.Explanation) { require.Equal(t, "alice", x.Principal) },
	},
	"there is no subscription": {
		does: func(s *stage) { s.connect("c") }, want: hooks.CauseNoSubscription,
	},
	"no filter matches": {
		does: func(s *stage) {
			s.connect("c").subscribe("x/y", 0).subscribe("A/b", 0).subscribe("a/b/c", 0)
		},
		want: hooks.CauseNoMatch,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Equal(t, "A/b", x.Nearest)
			require.Contains(t, x.Text, "upper and lower case")
		},
	},
	"a hook has replaced the filter": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.SubscribeInterceptor = hooks.SubscribeInterceptorFunc(func(_ context.Context,
				_ *hooks.Client, s *packets.Subscription) (*packets.Subscription, error) {
				out := *s
				out.Filter = "open/#"
				return &out, nil
			})
		},
		does: func(s *stage) { s.connect("c").subscribe("a/#", 0) },
		want: hooks.CauseFilterReplaced,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Equal(t, "open/#", x.Nearest)
			require.Contains(t, x.Text, `"a/#"`)
		},
	},
	"a wildcard does not match a topic with $": {
		topic: "$SYS/broker/uptime", does: func(s *stage) { s.connect("c").subscribe("#", 0) },
		want:  hooks.CauseDollarTopic,
		check: func(t *testing.T, x dunlin.Explanation) { require.Equal(t, "#", x.Nearest) },
	},
	"the topic is outside of the mount point": {
		config: func(_ *testing.T, c *dunlin.Config) { c.Authenticator = verified },
		does:   func(s *stage) { s.connect("c", as("tenant")).subscribe("a/b", 0) },
		want:   hooks.CauseMountPoint,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Equal(t, "a/b", x.Nearest)
			require.Contains(t, x.Text, "tenants/7/a/b")
		},
	},
	"the Authorizer refuses the subscription": {
		config: func(t *testing.T, c *dunlin.Config) {
			c.Authorizer = rules(t, "deny subscribe a/#\nallow all #\n")
		},
		does: func(s *stage) { s.connect("c").subscribe("a/b", 0) },
		want: hooks.CauseNotAuthorized,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Contains(t, x.Rule, "acl.conf:1", "the rule")
		},
	},
	"the Authorizer refuses the delivery": {
		config: func(t *testing.T, c *dunlin.Config) {
			c.Authorizer = rules(t, "deny subscribe a/b\nallow all #\n").AtDelivery()
		},
		does: func(s *stage) { s.connect("c").subscribe("a/#", 0) },
		want: hooks.CauseNotAuthorized,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Contains(t, x.Rule, "acl.conf:1")
			require.Equal(t, "a/#", x.Filter)
		},
	},
	"the client publishes it itself": {
		does: func(s *stage) {
			s.connect("c").subscribe("a/b", 0, func(x *packets.Subscription) { x.NoLocal = true })
		},
		want: hooks.CauseNoLocal,
	},
	"another member of the group got it": {
		does: func(s *stage) {
			s.connect("other").subscribe("$share/g/a/+", 1)
			s.publish("a/b", 1)
			s.connect("c").subscribe("$share/g/a/+", 1)
		},
		want: hooks.CauseSharedOther,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Equal(t, "other", x.Member)
			require.Equal(t, "$share/g/a/+", x.Filter)
		},
	},
	"the subscription does not ask for the retained message": {
		does: func(s *stage) {
			s.publish("a/b", 0, retain)
			s.connect("c").subscribe("a/b", 0,
				func(x *packets.Subscription) { x.RetainHandling = 2 })
		},
		want: hooks.CauseRetainedNotSent,
	},
	"a shared subscription gets no retained message": {
		does: func(s *stage) {
			s.publish("a/b", 0, retain)
			s.connect("c").subscribe("$share/g/a/b", 0)
		},
		want: hooks.CauseRetainedNotSent,
	},
	"the retained messages are still on their way": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxInflight = 1 },
		does: func(s *stage) {
			s.publish("a/a", 1, retain)
			s.publish("a/b", 1, retain)
			c := s.connect("c")
			c.acks = never
			c.subscribe("a/+", 1)
		},
		want: hooks.CauseRetainedWaiting, behind: true,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Equal(t, hooks.CauseWindowFull, x.Cause, "and that is why")
		},
	},
	"the client is away, and subscribes with QoS 0": {
		does: func(s *stage) { s.connect("c", lasting(100)).subscribe("a/b", 0).disconnect() },
		want: hooks.CauseOfflineQoS0,
	},
	"the client is away": {
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/b", 1).disconnect()
			s.publish("a/b", 1)
		},
		want: hooks.CauseOffline,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Contains(t, x.Text, "1 of them of the topic")
			require.True(t, x.Session)
			require.False(t, x.Connected)
		},
	},
	"the CONNACK waits for the Store": {
		config: withStore, want: hooks.CauseConnecting,
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/b", 1).disconnect()
			s.store.hold()
			s.connect("c", lasting(100))
		},
	},
	"the connection is being ended": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.Interceptor = hooks.InterceptorFunc(func(ctx context.Context, _ *hooks.Client,
				_ *packets.Message) (*packets.Message, error) {
				<-ctx.Done()
				time.Sleep(5 * time.Second) // it takes its time
				return nil, hooks.ErrDrop
			})
		},
		does: func(s *stage) {
			c := s.connect("c").subscribe("a/b", 1)
			c.send(&packets.Publish{Topic: []byte("x")})
			s.b.Disconnect("c", packets.AdministrativeAction)
		},
		want: hooks.CauseDisconnecting,
	},
	"the queue is full": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxQueuedMessages = 2 },
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/#", 1).disconnect()
			s.publish("a/x", 1)
			s.publish("a/x", 1)
		},
		want: hooks.CauseQueueFull,
	},
	"the queues of the principal are full": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.Authenticator, c.MaxQueuedBytesPerPrincipal = verified, 4000
		},
		does: func(s *stage) {
			s.connect("c", as("alice"), lasting(100)).subscribe("a/#", 1).disconnect()
			s.connect("other", as("alice"), lasting(100)).subscribe("x", 1).disconnect()
			for range 20 {
				s.publish("x", 1, large(1))
			}
		},
		want: hooks.CausePrincipalFull,
	},
	"the window is full": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxInflight = 1 },
		does: func(s *stage) {
			c := s.connect("c")
			c.acks = never
			c.subscribe("a/#", 1)
			s.publish("a/x", 1)
			s.publish("a/b", 1)
		},
		want: hooks.CauseWindowFull,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Contains(t, x.Text, "1 of them of the topic")
		},
	},
	"the client has not acknowledged it": {
		does: func(s *stage) {
			c := s.connect("c", lasting(100))
			c.acks = never
			c.subscribe("a/b", 1)
			s.publish("a/b", 1)
		},
		want: hooks.CauseUnacknowledged,
	},
	"the client does not read": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxOutboundBytes = 1000 },
		does: func(s *stage) {
			s.connect("c").subscribe("a/b", 0).gate.stop()
			for range 5 {
				s.publish("a/b", 0, large(500))
			}
		},
		want: hooks.CauseSlowClient,
	},
	"the client did not read, and messages were dropped": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxOutboundBytes = 1000 },
		does: func(s *stage) {
			c := s.connect("c").subscribe("a/b", 0)
			c.gate.stop()
			for range 5 {
				s.publish("a/b", 0, large(500))
			}
			c.gate.open()
			time.Sleep(time.Second)
		},
		want:  hooks.CauseDroppedSlow,
		check: func(t *testing.T, x dunlin.Explanation) { require.NotZero(t, x.Drop.Count) },
	},
	"there is no memory": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.MaxMemory, c.MaxPacketSize = memoryOfStage, 64<<10
		},
		does: func(s *stage) {
			c := s.connect("c").subscribe("a/b", 0)
			c.gate.stop()
			for range 3 {
				s.publish("a/b", 0, large(5000))
			}
			s.fillMemory()
		},
		want: hooks.CauseMemory,
	},
	"there was no memory": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.MaxMemory, c.MaxPacketSize = memoryOfStage, 64<<10
		},
		does: func(s *stage) {
			c := s.connect("c").subscribe("a/b", 0)
			c.gate.stop()
			for range 3 {
				s.publish("a/b", 0, large(5000))
			}
			s.fillMemory()
			s.publish("a/b", 0)
			c.gate.open()
			s.b.DeleteSession(s.t.Context(), "hog")
			time.Sleep(time.Second)
		},
		want: hooks.CauseDroppedMemory,
	},
	"the message waits for the Store": {
		config: withStore,
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/b", 2)
			p := s.connect("p", lasting(100))
			s.store.hold()
			p.send(&packets.Publish{QoS: 2, PacketID: 1, Topic: []byte("a/b")})
		},
		want: hooks.CauseNotCommitted,
	},
	"the Store fails": {
		config: withStore,
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/b", 1)
			s.store.fail(errors.New("the disk is gone"))
			s.publish("a/b", 1)
		},
		want: hooks.CauseStoreFails,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Contains(t, x.Text,
				"the disk is gone")
		},
	},
	"the program does not read, and publishers wait for it": {
		client: "$local/log",
		does: func(s *stage) {
			sub, err := s.b.Subscribe(s.t.Context(), "a/b", &dunlin.SubscribeOptions{
				Name: "log", Buffer: 1, Overflow: dunlin.OverflowBlock,
			})
			require.NoError(s.t, err)
			s.t.Cleanup(func() { sub.Close() })
			s.publish("a/b", 0)
		},
		want: hooks.CauseBlocked,
	},
	"the broker is closed": {
		does: func(s *stage) { s.connect("c").subscribe("a/b", 0); s.b.Close() },
		want: hooks.CauseClosed,
	},
	"the message was too large for the client": {
		does: func(s *stage) {
			s.connect("c", func(c *packets.Connect) {
				c.Properties = c.Properties.AppendUint(packets.MaximumPacketSize, 100)
			}).subscribe("a/b", 0)
			s.publish("a/b", 0, large(200))
		},
		want: hooks.CauseTooLarge,
	},
	"the message expired while it waited": {
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/b", 1).disconnect()
			s.publish("a/b", 1, func(m *dunlin.Message) { m.SetExpiry(time.Second) })
			time.Sleep(5 * time.Second)
			s.connect("c", lasting(100))
		},
		want: hooks.CauseExpired,
	},
	"the queue was full": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.MaxQueuedMessages, c.Overflow = 1, dunlin.OverflowDropNewest
		},
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/b", 1).disconnect()
			s.publish("a/b", 1)
			s.publish("a/b", 1)
			s.connect("c", lasting(100))
		},
		want: hooks.CauseDroppedQueueFull,
	},
	"the client might not read the topic": {
		config: func(t *testing.T, c *dunlin.Config) {
			forbids := rules(t, "deny all a/b\nallow all #\n")
			c.Authorizer = forbids.AtDelivery()
			time.AfterFunc(time.Minute, func() {
				l, _ := acl.Parse(strings.NewReader("allow all #\n"), "acl.conf")
				forbids.Set(l)
			})
		},
		does: func(s *stage) {
			s.connect("c").subscribe("a/#", 0)
			s.publish("a/b", 0)
			time.Sleep(2 * time.Minute)
		},
		want: hooks.CauseDroppedNotAuthorized,
	},
	"the client refused it": {
		does: func(s *stage) {
			c := s.connect("c", lasting(100))
			c.acks = func(p *packets.Publish) packets.Packet {
				return &packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID,
					Code: packets.ImplementationSpecificError}
			}
			c.subscribe("a/b", 1)
			s.publish("a/b", 1)
		},
		want: hooks.CauseDroppedRefused,
	},
	"the Session in whose queue it was has ended": {
		does: func(s *stage) {
			s.connect("c", lasting(100)).subscribe("a/b", 1).disconnect()
			s.publish("a/b", 1)
			s.connect("c").subscribe("a/b", 1)
		},
		want: hooks.CauseDroppedSessionEnded,
	},
	"nothing is in the way": {
		does: func(s *stage) { s.connect("c").subscribe("a/#", 1); s.publish("a/b", 1) },
		want: hooks.CauseNone,
		check: func(t *testing.T, x dunlin.Explanation) {
			require.Equal(t, "a/#", x.Filter)
			require.Equal(t, packets.QoS1, x.QoS)
			require.True(t, x.Connected)
		},
	},
}

// fillMemory makes the broker hold so much that it drops messages of QoS 0.
func (s *stage) fillMemory() {
	s.connect("hog", lasting(100)).subscribe("hog", 1).disconnect()
	for n := 0; s.b.Stats().Memory < memoryOfStage/100*83 && n < 5000; n++ {
		s.publish("hog", 1, large(4<<10))
	}
	require.Greater(s.t, s.b.Stats().Memory, int64(memoryOfStage/100*80))
}

// memoryOfStage is the MaxMemory of a stage that runs out of it.
const memoryOfStage = 4 << 20

func TestExplainNamesTheCause(t *testing.T) {
	for name, x := range situations {
		t.Run(name, func(t *testing.T) {
			onStage(t, x.config, func(s *stage) {
				t := s.t
				x.does(s)
				synctest.Wait()
				client, topic := x.client, x.topic
				if client == "" {
					client = "c"
				}
				if topic == "" {
					topic = "a/b"
				}
				got := s.b.Explain(s.t.Context(), client, topic)
				t.Log(got.Text)
				causes := []hooks.Cause{got.Cause}
				for _, f := range got.Also {
					causes = append(causes, f.Cause)
				}
				if x.behind {
					require.Contains(t, causes, x.want)
				} else {
					require.Equal(t, x.want.String(), got.Cause.String(), "%v", causes)
				}
				require.NotEmpty(t, got.Text)
				if x.check != nil {
					x.check(t, got)
				}
			})
		})
	}
}

// Each cause has a situation.
func TestEachCauseIsExplained(t *testing.T) {
	seen := map[hooks.Cause]bool{}
	for _, x := range situations {
		seen[x.want] = true
	}
	for _, c := range hooks.Causes() {
		require.True(t, seen[c], "%v", c)
	}
	require.GreaterOrEqual(t, len(seen), 25)
}

// Subscribers names everybody whom a topic goes to, and what is in the way of each.
func TestSubscribersOfATopic(t *testing.T) {
	onStage(t, nil, func(s *stage) {
		s.connect("now").subscribe("a/#", 1).subscribe("a/b", 0)
		s.connect("away", lasting(100), as("u")).subscribe("a/b", 0).disconnect()
		s.connect("queued", lasting(100)).subscribe("$share/g/+/b", 2).disconnect()
		s.connect("other").subscribe("a/c", 1)
		sub, err := s.b.Subscribe(s.t.Context(), "a/b", &dunlin.SubscribeOptions{Name: "log"})
		require.NoError(t, err)
		defer sub.Close()
		var all []string
		for x := range s.b.Subscribers("a/b") {
			all = append(all, fmt.Sprint(x.ClientID, " ", x.Group, " ", x.Filter, " ", x.QoS, " ",
				x.Connected, " ", x.Cause))
		}
		slices.Sort(all)
		require.Equal(t, []string{
			"$local/log  a/b 0 true nothing in the way", "away  a/b 0 false offline, QoS 0",
			"now  a/# 1 true nothing in the way", "now  a/b 0 true nothing in the way",
			"queued g +/b 2 false offline",
		}, all)
		for range s.b.Subscribers("a/#") {
			t.Error("that is not a Topic Name")
		}
	})
}
