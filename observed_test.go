package dunlin

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// What the program itself does is told to the Observer as what clients do is, once each.
func TestTheObserverIsToldWhatTheProgramDoes(t *testing.T) {
	var mu sync.Mutex
	var told []string
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprintf(format, args...))
	}
	b, err := New(Config{Authenticator: hooks.AllowAll, Logger: slog.New(slog.DiscardHandler),
		Observer: &hooks.Observer{
			Published: func(e hooks.Published) {
				if e.Client.RemoteAddr == nil && e.Client.LocalAddr == nil {
					topic, _, _ := strings.Cut(e.Topic(), "/")
					note("%q published %s for %d", e.Client.ID, topic, e.Matched)
				}
			},
			Subscribed: func(e hooks.Subscribed) {
				note("%q subscribed to %s at %d", e.Client.ID, e.Filter, e.QoS)
			},
			Unsubscribed: func(e hooks.Unsubscribed) {
				note("%q unsubscribed from %s", e.Client.ID, e.Filter)
			},
			SessionEnded: func(e hooks.SessionEnded) { note("%q ended", e.Client.ID) },
			Connected:    func(hooks.Connected) { note("connected") },
			Delivered:    func(hooks.Delivered) { note("delivered") },
			Disconnected: func(hooks.Disconnected) { note("disconnected") },
		}})
	require.NoError(t, err)
	defer b.Close()
	expect := func(want ...string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, want, told)
		told = nil
	}
	ctx := t.Context()

	sub, err := b.Subscribe(ctx, "a", &SubscribeOptions{Name: "reader", QoS: 1})
	require.NoError(t, err)
	require.NoError(t, sub.Add("$share/g/b", nil))
	expect(`"$local/reader" subscribed to a at 1`, `"$local/reader" subscribed to $share/g/b at 0`)
	require.NoError(t, b.Publish(ctx, &Message{Topic: "a"}))
	require.NoError(t, sub.Publish(ctx, &Message{Topic: "nobody"}))
	expect(`"" published a for 1`, `"$local/reader" published nobody for 0`)
	require.Error(t, b.Publish(ctx, &Message{Topic: "#"}))
	require.Error(t, sub.Add("a#", nil))
	require.True(t, removes(t, sub, "a"))
	require.False(t, removes(t, sub, "a"))
	expect(`"$local/reader" unsubscribed from a`)
	_, err = b.PublishWait(ctx, &Message{Topic: "wait"})
	require.NoError(t, err)
	expect(`"" published wait for 0`)
	require.NoError(t, sub.Delete())
	expect(`"$local/reader" ended`)

	r, err := b.Respond(ctx, "question", func(context.Context, *Incoming) (*Message,
		error) {
		return &Message{}, nil
	})
	require.NoError(t, err)
	_, err = b.Request(ctx, "question", nil)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	mu.Lock()
	defer mu.Unlock()
	for i, s := range told {
		if strings.HasPrefix(s, `"$local/#2" subscribed to response/`) {
			told[i] = "subscribed to the response"
		}
	}
	require.ElementsMatch(t, []string{`"$local/#1" subscribed to question at 2`,
		"subscribed to the response", `"" published question for 1`,
		`"" published response for 1`, `"$local/#2" ended`, `"$local/#1" ended`}, told,
		"in any order: the responder is another goroutine")
}

func TestTheObserverIsToldOfSysTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var versions atomic.Int64
		b, err := New(Config{Authenticator: hooks.AllowAll, Logger: slog.New(slog.DiscardHandler),
			SysInterval: time.Minute, Observer: &hooks.Observer{
				Published: func(e hooks.Published) {
					if e.Topic() == "$SYS/broker/version" && e.Client.ID == "" {
						versions.Add(1)
					}
				},
			}})
		require.NoError(t, err)
		defer b.Close()
		time.Sleep(150 * time.Second)
		require.EqualValues(t, 3, versions.Load(), "at the start and each minute")
	})
}

// A program must not go down because of what it is told of itself; the message and the subscription
// are there.
func TestAPanicOfTheObserverDoesNotReachTheProgram(t *testing.T) {
	b, err := New(Config{Authenticator: hooks.AllowAll, Logger: slog.New(slog.DiscardHandler),
		Observer: &hooks.Observer{
			Published:    func(hooks.Published) { panic("published") },
			Subscribed:   func(hooks.Subscribed) { panic("subscribed") },
			Unsubscribed: func(hooks.Unsubscribed) { panic("unsubscribed") },
		}})
	require.NoError(t, err)
	defer b.Close()
	sub, err := b.Subscribe(t.Context(), "a", nil)
	require.NoError(t, err)
	require.NoError(t, b.Publish(t.Context(), &Message{Topic: "a", Payload: []byte("x")}))
	m, err := sub.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, "x", string(m.Payload))
	require.True(t, removes(t, sub, "a"))
	require.EqualValues(t, 3, b.Stats().Panics)
}

// An Observer that is told of a publish costs no allocation more.
func TestTellingTheObserverOfAPublishAllocatesNothing(t *testing.T) {
	allocations := func(o *hooks.Observer) float64 {
		b, err := New(Config{Authenticator: hooks.AllowAll, Logger: slog.New(slog.DiscardHandler),
			Observer: o})
		require.NoError(t, err)
		defer b.Close()
		m := &Message{Topic: "a"}
		return testing.AllocsPerRun(200, func() {
			if err := b.Publish(context.Background(), m); err != nil {
				t.Error(err)
			}
		})
	}
	told := 0
	without := allocations(nil)
	with := allocations(&hooks.Observer{Published: func(hooks.Published) { told++ }})
	require.Positive(t, told)
	if !raced() { // pools forget at random then
		require.LessOrEqual(t, with, without)
	}
}

// A member of a shared subscription that is passed over has lost nothing.
func TestAMemberThatIsPassedOverLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		l, done := serveMemory(t, b)
		defer done()
		for _, id := range []string{"second", "first"} {
			p := connect(id)
			p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, 100)
			c, _ := newTestClient(t, dial(t, l), p)
			c.subscribe("$share/g/t", 0)
		}
		large := &Message{Topic: "t", Payload: make([]byte, 200)}
		b.Publish(t.Context(), large)
		require.EqualValues(t, 2, b.Stats().MessagesDropped,
			"nobody can take it, and each is counted once")
		c, _ := newTestClient(t, dial(t, l), connect("third"))
		c.subscribe("$share/g/t", 0)
		for range 3 {
			out, err := b.PublishWait(t.Context(), large)
			require.NoError(t, err)
			require.Equal(t, Outcome{Matched: 1, Acknowledged: 1}, out)
		}
	})
}

// What is lost is listed with its topic, whether or not an Observer is told of messages.
func TestALossHasItsTopicWithoutAnObserver(t *testing.T) {
	b := newTestBroker(t, nil)
	defer b.Close()
	p := &packets.Connect{Version: packets.V5, ClientID: "small", CleanStart: true}
	p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, 64)
	newFeed(t, b, p).packet(&packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: "#"}}}, packets.V5)
	pub := newFeed(t, b, &packets.Connect{Version: packets.V311, ClientID: "p", CleanStart: true})
	for _, topic := range []string{"big", "large"} {
		pub.packet(&packets.Publish{Topic: []byte(topic), Payload: make([]byte, 100)},
			packets.V311)
	}
	var topics []string
	for _, d := range b.LastDrops() {
		topics = append(topics, d.Topic)
	}
	require.Equal(t, []string{"large", "big"}, topics)
}
