package mqtttest_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// What a service does with the dunlin.Broker that it embeds is seen as what clients do is.
func TestWhatTheProgramPublishesIsSeen(t *testing.T) {
	both(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		core, ctx := b.Broker(), t.Context()
		publish := func(topic, payload string) *dunlin.Message {
			return &dunlin.Message{Topic: topic, Payload: []byte(payload), QoS: 1}
		}
		require.NoError(t, core.Publish(ctx, publish("a/publish", "1")))
		_, err := core.PublishWait(ctx, publish("a/wait", "2"))
		require.NoError(t, err)
		sub, err := core.Subscribe(ctx, "b", nil)
		require.NoError(t, err)
		b.WaitSubscribed(t, "b")
		require.NoError(t, sub.Publish(ctx, publish("a/sub", "3")))
		r, err := core.Respond(ctx, "a/question",
			func(context.Context, *dunlin.Incoming) (*dunlin.Message, error) {
				return publish("", "5"), nil
			})
		require.NoError(t, err)
		defer r.Close()
		b.WaitSubscribed(t, "a/question")
		_, err = core.Request(ctx, "a/question", []byte("4"))
		require.NoError(t, err)
		b.Publish("a/test", "6")

		for _, want := range []string{"6", "4", "3", "2", "1"} {
			require.Equal(t, want, string(b.WaitFor(t, "a/#", mqtttest.Payload(want)).Payload))
		}
		b.WaitFor(t, "response/+", mqtttest.Payload("5"))
		require.Len(t, b.Messages("#"), 6, "each is seen once")
	})
}

func TestSubscriptionsOfTheProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		go func() {
			time.Sleep(time.Second)
			if _, err := b.Broker().Subscribe(t.Context(), "$share/g/a/#", nil); err != nil {
				t.Error(err)
			}
		}()
		start := time.Now()
		b.WaitSubscribed(t, "$share/g/a/#")
		require.Equal(t, time.Second, time.Since(start), "it waits")
	})
}

func TestSysTopicsAreSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
			c.SysInterval = time.Second
		}))
		b.Publish("a", "x")
		time.Sleep(90 * time.Minute) // which is more of them than are remembered
		m := b.WaitFor(t, "$SYS/broker/uptime", mqtttest.Payload("5400 seconds"))
		require.True(t, m.Retain)
		require.Len(t, b.Messages("#"), 1, "they neither are among the others nor push them out")
	})
}

func TestWhatFailingWaitsSayOfSubscriptions(t *testing.T) {
	mounted := mqtttest.Config(func(c *dunlin.Config) {
		c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			r.Grant.MountPoint = "tenants/7/"
			return nil
		})
	})
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mounted)
		c := b.Client(t, "c1")
		c.Send(subscribe(1, "a/#", 0))
		b.WaitSubscribed(t, "tenants/7/a/#")
		c.WantType("granted", packets.TypeSuback)
	})
	for _, tt := range []struct {
		name string
		body func(t testing.TB)
		want []string
	}{
		{"the filter has the mount point", func(t testing.TB) {
			b := mqtttest.NewBroker(t, mounted)
			b.Client(t, "c1").Send(subscribe(1, "$share/g/a/#", 0))
			b.WaitSubscribed(t, "a/#")
		}, []string{`nobody has subscribed to "a/#" within 15s`,
			`there are, mount points included:`, `"$share/g/tenants/7/a/#" of "c1"`}},
		{"those of the program are listed once, and not when they have ended", func(t testing.TB) {
			b := mqtttest.NewBroker(t)
			var subs []*dunlin.Subscription
			for _, o := range []*dunlin.SubscribeOptions{{Name: "named"}, nil, nil} {
				sub, err := b.Broker().Subscribe(t.Context(), "x", o)
				require.NoError(t, err)
				subs = append(subs, sub)
			}
			require.NoError(t, subs[0].Add("y", nil))
			found, err := subs[0].Remove("x")
			require.NoError(t, err)
			require.True(t, found)
			subs[2].Close()
			b.WaitSubscribed(t, "z")
		}, []string{"mount points included:\n  \"y\" of \"$local/named\"\n  \"x\" of " +
			"\"$local/#1\"\nthere were no connections"}},
		{"after a restart there are none", func(t testing.TB) {
			b := mqtttest.NewBroker(t)
			_, err := b.Broker().Subscribe(context.Background(), "x", nil)
			require.NoError(t, err)
			b.Restart()
			b.WaitSubscribed(t, "x")
		}, []string{"there are no subscriptions"}},
		{"a client that connects to a stopped broker", func(t testing.TB) {
			b := mqtttest.NewBroker(t)
			b.Stop()
			b.Client(t, "c1")
		}, []string{"the broker is stopped"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var said string
			synctest.Test(t, func(t *testing.T) { said = runs(t, tt.body) })
			for _, w := range tt.want {
				require.Contains(t, said, w)
			}
			require.False(t, strings.Contains(said, "no longer remembered"))
		})
	}
}

func TestCutBelowZeroIsAtZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "c1")
		in := b.Inject(mqtttest.Cut(mqtttest.FromClient, -1))
		c.Send(publish("a", "x"))
		c.WantClosed("the next packet cuts it")
		require.Empty(t, b.Messages("#"))
		require.Equal(t, 1, in.Hits())
	})
}
