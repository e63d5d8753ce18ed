package dunlin

import (
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// infoOf returns what is known of the Session of a client.
func (st *stage) infoOf(id string) SessionInfo {
	st.t.Helper()
	synctest.Wait()
	info, ok := st.b.Session(id)
	require.True(st.t, ok, "there is a Session")
	return info
}

func TestSessionInfoOfAConnectedClient(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		time.Sleep(time.Minute)
		began := time.Now()
		c := st.dial("c", packets.V5, false, 600, func(p *packets.Connect) {
			p.KeepAlive = 60
			p.Will = &packets.Will{Topic: "will"}
		})
		c.want(packets.TypeConnack)
		info := st.infoOf("c")
		require.Equal(t, 0, info.SubscriptionCount)
		require.True(t, began.Equal(info.ConnectedAt), "%v and %v", began, info.ConnectedAt)
		require.Equal(t, 60*time.Second, info.KeepAlive)
		require.Equal(t, 600*time.Second, info.Expiry)
		require.Equal(t, "will", info.WillTopic)
		require.Zero(t, info.ExpiresAt)
		require.Zero(t, info.Received)
		require.Zero(t, info.Sent)
		require.Zero(t, info.Dropped.Total())
		require.Zero(t, info.OldestQueued)
		require.Zero(t, info.BlockedSince)

		time.Sleep(10 * time.Second)
		c.subscribe("t/#", packets.QoS2)
		c.send(message2("t/1", "12345", packets.QoS0, 0), message2("t/2", "1", packets.QoS2, 7))
		c.want(packets.TypePublish, packets.TypePublish, packets.TypePubrec)
		info = st.infoOf("c")
		require.Equal(t, 1, info.SubscriptionCount)
		require.Len(t, info.Subscriptions, 1)
		require.Equal(t, 1, info.AwaitingPubrel)
		require.Equal(t, 1, info.Inflight)
		require.Equal(t, 10*time.Second, info.LastPacket.Sub(began))
		// Fixed header, topic, Packet Identifier, properties, payload.
		bytes := uint64(2+5+0+1+5) + uint64(2+5+2+1+1)
		require.Equal(t, Traffic{2, bytes}, info.Received)
		require.Equal(t, Traffic{2, bytes}, info.Sent)

		c.send(&packets.Pingreq{})
		c.want(packets.TypePingresp)
		c.nc.Close()
		info = st.infoOf("c")
		require.Nil(t, info.Client)
		require.Zero(t, info.ConnectedAt)
		require.Zero(t, info.LastPacket)
		require.Zero(t, info.KeepAlive)
		require.Zero(t, info.Received)
		require.False(t, info.ExpiresAt.IsZero())
		require.Empty(t, info.WillTopic, "it has been published")
	})
}

func TestSessionInfoOfWhatIsQueuedAndDropped(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		st.restart(func(c *Config) { c.MaxQueuedMessages = 2 })
		c := st.durable("c", packets.V5)
		c.subscribe("t/#", packets.QoS1)
		c.nc.Close()
		p := st.clean("p")
		began := time.Now()
		for i := range 3 {
			p.send(message2("t/1", fmt.Sprint(i), packets.QoS1, uint16(i+1)))
			p.want(packets.TypePuback)
			info := st.infoOf("c")
			require.Equal(t, min(i+1, 2), info.Queued)
			oldest := []time.Duration{0, 0, 10 * time.Second}[i] // the third one took the place of the first
			require.Equal(t, oldest, info.OldestQueued.Sub(began))
			time.Sleep(10 * time.Second)
		}
		drops := st.infoOf("c").Dropped
		require.EqualValues(t, 1, drops.Total())
		require.EqualValues(t, 1, drops.Of(hooks.DropQueueFull))
		require.Zero(t, drops.Of(hooks.DropMemory))
		require.Zero(t, drops.Of(200))
		for why, n := range drops.All() {
			require.Equal(t, hooks.DropQueueFull, why)
			require.EqualValues(t, 1, n)
		}
		c = st.dial("c", packets.V5, false, 3600)
		c.want(packets.TypeConnack, packets.TypePublish, packets.TypePublish)
		info := st.infoOf("c")
		require.Zero(t, info.OldestQueued)
		require.Equal(t, 2, info.Inflight)
		require.EqualValues(t, 1, info.Dropped.Total(), "they stay with the Session")
	})
}

// What a client publishes beyond its rate is dropped, for the publisher.
func TestWhatIsBeyondTheRateCountsForItsPublisher(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		st.restart(func(c *Config) { c.PublishRate, c.OverRate = 1, OverRateRefusePublish })
		p := st.durable("p", packets.V5)
		for i := range 3 {
			p.send(message2("t", "", packets.QoS1, uint16(i+1)))
		}
		info := st.infoOf("p")
		require.EqualValues(t, 2, info.Dropped.Of(hooks.DropOverRate))
		require.Equal(t, info.Dropped, st.b.Stats().Dropped)
	})
}

func TestEachReasonForADropHasANumberAndAName(t *testing.T) {
	reasons := hooks.DropReasons()
	require.Len(t, reasons, int(dropReasons)-1)
	names := map[string]bool{"": true, "unknown": true}
	for i, why := range reasons {
		require.EqualValues(t, i+1, why)
		require.False(t, names[why.String()], why)
		names[why.String()] = true
	}
}

// A client that does not read is blocked since the last time that its socket took something.
func TestSessionInfoOfAClientThatDoesNotRead(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		nc, err := st.l.Dial()
		require.NoError(t, err)
		defer nc.Close()
		c := &testClient{t: t, nc: nc, r: packets.NewReader(nc, packets.Limits{}), v: packets.V5}
		c.r.SetVersion(packets.V5)
		c.send(&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c"})
		require.IsType(t, &packets.Connack{}, c.recv())
		c.send(subscribeTo("t", packets.QoS0))
		require.IsType(t, &packets.Suback{}, c.recv())
		big := &Message{Topic: "t", Payload: make([]byte, listeners.DefaultBuffer)}
		require.NoError(t, st.b.Publish(context.Background(), big))
		since := time.Now()
		time.Sleep(time.Second)
		require.NoError(t, st.b.Publish(context.Background(), big))
		info := st.infoOf("c")
		require.Greater(t, info.Unsent, listeners.DefaultBuffer)
		require.Zero(t, info.BlockedSince.Sub(since))
		time.Sleep(time.Second)
		_, err = io.ReadFull(nc, make([]byte, 1024))
		require.NoError(t, err)
		info = st.infoOf("c")
		require.Equal(t, 2*time.Second, info.BlockedSince.Sub(since), "it took a little")
		go io.Copy(io.Discard, nc) // ends with the connection
		info = st.infoOf("c")
		require.Zero(t, info.Unsent)
		require.Zero(t, info.BlockedSince)
	})
}

// The time of a connection is that of its events, and no two have the same.
func TestEventsHaveTheTimeOfTheirConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var connected, disconnected []time.Time // guarded by mu
		note := func(times *[]time.Time, at time.Time) {
			mu.Lock()
			defer mu.Unlock()
			*times = append(*times, at)
		}
		b := newTestBroker(t, func(c *Config) {
			c.Observer = &hooks.Observer{
				Connected:    func(e hooks.Connected) { note(&connected, e.At) },
				Disconnected: func(e hooks.Disconnected) { note(&disconnected, e.ConnectedAt) },
			}
		})
		l, stop := serveMemory(t, b)
		defer stop()
		for range 3 { // each takes over from the one before, at the same moment
			_, ack := newTestClient(t, dial(t, l), connect("c"))
			require.Equal(t, packets.Success, ack.Code)
			synctest.Wait()
			info, ok := b.Session("c")
			require.True(t, ok)
			mu.Lock()
			last := connected[len(connected)-1]
			mu.Unlock()
			require.True(t, info.ConnectedAt.Equal(last), "%v, %v", info.ConnectedAt, last)
		}
		time.Sleep(time.Minute) // until the closed connections are let go
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, connected, 3)
		require.True(t, connected[0].Before(connected[1]) && connected[1].Before(connected[2]))
		require.Len(t, disconnected, 2)
		slices.SortFunc(disconnected, time.Time.Compare) // they have ended at the same moment
		for i, at := range disconnected {
			require.True(t, at.Equal(connected[i]))
		}
	})
}

// Pages have everything once, in the order of the whole.
func TestPages(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		st.restart(func(c *Config) { c.SessionPerPrincipal = true })
		for i := range 40 {
			id := fmt.Sprint("c", i/2)
			c := st.dial(id, packets.V5, false, 600, func(p *packets.Connect) {
				p.Username, p.HasUsername = fmt.Sprint("user", i%2), true
			})
			c.want(packets.TypeConnack)
			for j := range i % 5 {
				c.subscribe(fmt.Sprint("f/", j, "/", i), packets.QoS1)
			}
			m := message2(fmt.Sprint("r/", i), "x", packets.QoS0, 0)
			c.send(toRetain(m))
		}
		var sessions, subscriptions, filters []string
		for s := range st.b.Sessions() {
			sessions = append(sessions, s.ClientID+" "+s.Principal)
			for _, sub := range s.Subscriptions {
				subscriptions = append(subscriptions, s.ClientID+" "+s.Principal+" "+sub.Filter)
				if s.ClientID == "c7" {
					filters = append(filters, s.Principal+" "+sub.Filter)
				}
			}
		}
		require.Len(t, sessions, 40)
		require.Len(t, subscriptions, 80)
		require.Len(t, filters, 4+0)
		var topics []string
		for m := range st.b.Retained("r/#") {
			topics = append(topics, m.Topic)
		}
		require.Len(t, topics, 40)
		for _, size := range []int{1, 3, 7, 1000} {
			require.Equal(t, sessions, paged(size, st.b.SessionsFrom, func(s SessionInfo) string {
				return s.ClientID + " " + s.Principal
			}))
			all := func(after string) iter.Seq2[string, SubscriptionInfo] {
				return st.b.SubscriptionsFrom("", after)
			}
			require.Equal(t, subscriptions, paged(size, all, func(s SubscriptionInfo) string {
				return s.ClientID + " " + s.Principal + " " + s.Filter
			}))
			one := func(after string) iter.Seq2[string, SubscriptionInfo] {
				return st.b.SubscriptionsFrom("c7", after)
			}
			require.Equal(t, filters, paged(size, one, func(s SubscriptionInfo) string {
				return s.Principal + " " + s.Filter
			}))
			retained := func(after string) iter.Seq2[string, *Message] {
				return st.b.RetainedFrom("r/#", after)
			}
			require.Equal(t, topics, paged(size, retained, func(m *Message) string { return m.Topic }))
		}
		exact := func(after string) iter.Seq2[string, *Message] {
			return st.b.RetainedFrom("r/7", after)
		}
		require.Equal(t, []string{"r/7"}, paged(1, exact, func(m *Message) string { return m.Topic }))
	})
}

// A retained value has an age, until the broker starts anew.
func TestRetainedValuesHaveAnAge(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		began := time.Now()
		since := func(topic string) (of []time.Duration) {
			for _, m := range st.b.RetainedFrom(topic, "") {
				x := st.b.RetainedSince(m)
				require.False(t, x.IsZero(), m.Topic)
				of = append(of, x.Sub(began))
			}
			return of
		}
		c := st.clean("c")
		time.Sleep(10*time.Second - time.Since(began))
		c.send(toRetain(message2("a/1", "x", packets.QoS0, 0)))
		time.Sleep(20*time.Second - time.Since(began))
		err := st.b.Publish(t.Context(), &Message{Topic: "a/2", Payload: []byte("x"), Retain: true})
		require.NoError(t, err)
		require.Equal(t, []time.Duration{10 * time.Second, 20 * time.Second}, since("a/#"))
		old := slices.Collect(st.b.Retained("a/1"))[0]
		time.Sleep(30*time.Second - time.Since(began))
		c.send(toRetain(message2("a/1", "y", packets.QoS0, 0)))
		synctest.Wait()
		require.Equal(t, []time.Duration{30 * time.Second, 20 * time.Second}, since("a/#"))
		require.Zero(t, st.b.RetainedSince(old), "another one has taken its place")
		require.Zero(t, st.b.RetainedSince(&Message{Topic: "nothing"}))
		st.restart(func(*Config) {})
		for m := range st.b.Retained("a/#") {
			require.Zero(t, st.b.RetainedSince(m), "it was loaded")
		}
	})
}

// paged reads all pages of a size.
func paged[T any](
	size int, from func(after string) iter.Seq2[string, T], name func(T) string,
) (all []string) {
	for after, more := "", true; more; {
		more = false
		n := 0
		for cursor, x := range from(after) {
			all = append(all, name(x))
			after = cursor
			if n++; n == size {
				more = true
				break
			}
		}
	}
	return all
}

// A page goes on where the one before ended, whatever has ended meanwhile.
func TestCursorsOutliveWhatTheyPointAt(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		for _, id := range []string{"a", "b", "c"} {
			c := st.durable(id, packets.V5)
			c.subscribe("1", 0)
			c.subscribe("2", 0)
			c.send(toRetain(message2("r/"+id, "x", packets.QoS0, 0)))
		}
		var cursors [3]string
		for cursor, s := range st.b.SessionsFrom("") {
			if cursors[0] = cursor; s.ClientID == "b" {
				break
			}
		}
		for cursor, s := range st.b.SubscriptionsFrom("", "") {
			if cursors[1] = cursor; s.ClientID == "b" {
				break
			}
		}
		for cursor, m := range st.b.RetainedFrom("#", "") {
			if cursors[2] = cursor; m.Topic == "r/b" {
				break
			}
		}
		_, err := st.b.DeleteSession(context.Background(), "b")
		require.NoError(t, err)
		require.NoError(t, st.b.Publish(context.Background(), &Message{Topic: "r/b", Retain: true}))
		for _, s := range st.b.SessionsFrom(cursors[0]) {
			require.Equal(t, "c", s.ClientID)
		}
		var left []string
		for _, s := range st.b.SubscriptionsFrom("", cursors[1]) {
			left = append(left, s.ClientID+s.Filter)
		}
		require.Equal(t, []string{"c1", "c2"}, left)
		for _, m := range st.b.RetainedFrom("r/#", cursors[2]) {
			require.Equal(t, "r/c", m.Topic)
		}
		for _, cursor := range []string{"x", "1", "1 2", "1 1 1 a", "-1 0 0 a", "9 0 0 a", "1 0 9 a",
			"99999999999999999999 0 0 ", "1 0 9223372036854775807 a", "0 0 0 "} {
			for range st.b.SubscriptionsFrom("", cursor) {
			}
		}
	})
}

func TestCursorsOfSubscriptionsAreReadBack(t *testing.T) {
	for _, place := range []string{"", "id", "a b", "id\x00user 1"} {
		for _, sub := range []subs.Subscription{
			{Filter: "a/b", Number: 3}, {Group: "g h", Filter: "+/#", Number: 70_000}, {Filter: " "},
		} {
			gotPlace, got := parseCursor(cursorAt(place, &sub))
			require.Equal(t, place, gotPlace)
			require.Equal(t, sub, *got)
		}
	}
}

func TestStatsByListenerVersionAndQoS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		defer b.Close()
		served := make(chan error, 1)
		inside := listeners.NewMemory()
		go func() { served <- b.ServeListener(inside, &hooks.Listener{Name: "inside"}) }()
		plain, stop := serveMemory(t, b)
		five, _ := newTestClient(t, dial(t, inside), connect("five"))
		old := connect("old")
		old.Version = packets.V311
		four, _ := newTestClient(t, dial(t, plain), old)
		silent := dial(t, inside)
		five.send(subscribeTo("t/#", packets.QoS2))
		five.recv()
		four.send(subscribeTo("t/#", packets.QoS0))
		four.recv()
		four.send(message2("t/0", "1", packets.QoS0, 0))
		four.send(message2("t/1", "22", packets.QoS1, 1))
		five.send(message2("t/2", "333", packets.QoS2, 2))
		synctest.Wait()
		st := b.Stats()
		by := map[string]TrafficStats{}
		for _, x := range st.Traffic {
			by[fmt.Sprint(x.Listener, " ", byte(x.Version))] = x
		}
		require.Len(t, by, 4, "one that has not said which version it speaks, at each listener")
		require.Equal(t, 1, by["inside 0"].Connections)
		require.Equal(t, 0, by[" 0"].Connections)
		x, y := by["inside 5"], by[" 4"]
		require.Equal(t, 1, x.Connections)
		require.Equal(t, 1, y.Connections)
		require.Equal(t, [3]uint64{1, 1, 0}, y.MessagesReceived)
		require.Equal(t, [3]uint64{3, 0, 0}, y.MessagesSent)
		require.Equal(t, [3]uint64{0, 0, 1}, x.MessagesReceived)
		require.Equal(t, [3]uint64{1, 1, 1}, x.MessagesSent)
		require.EqualValues(t, 3, y.PayloadReceived)
		require.EqualValues(t, 6, y.PayloadSent)
		require.EqualValues(t, 6, x.PayloadSent)
		require.EqualValues(t, 3+2+2, x.PacketsReceived+y.PacketsReceived,
			"each with a CONNECT and a SUBSCRIBE")
		var sum Stats
		for _, x := range st.Traffic {
			for qos := range x.MessagesSent {
				sum.MessagesSent += x.MessagesSent[qos]
				sum.MessagesReceived += x.MessagesReceived[qos]
			}
			sum.BytesReceived += x.BytesReceived
			sum.BytesSent += x.BytesSent
			sum.PacketsSent += x.PacketsSent
			sum.PacketsReceived += x.PacketsReceived
		}
		require.Equal(t, sum.MessagesSent, st.MessagesSent)
		require.Equal(t, sum.MessagesReceived, st.MessagesReceived)
		require.Equal(t, sum.BytesReceived, st.BytesReceived)
		require.Equal(t, sum.BytesSent, st.BytesSent)
		require.Equal(t, sum.PacketsSent, st.PacketsSent)
		require.Equal(t, sum.PacketsReceived, st.PacketsReceived)
		silent.Close()
		five.nc.Close()
		synctest.Wait()
		for _, x := range b.Stats().Traffic {
			if x.Listener == "inside" {
				require.Zero(t, x.Connections)
			}
		}
		stop()
		require.ErrorIs(t, <-served, ErrBrokerClosed)
	})
}

func TestStatsOfWhatEndsByReasonCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, func(c *Config) {
			c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
				r *hooks.ConnectRequest) error {
				if r.Client.ID == "banned" {
					return packets.Errorf(packets.Banned, "no")
				}
				return nil
			})
		})
		l, stop := serveMemory(t, b)
		defer stop()
		_, refused := newTestClient(t, dial(t, l), connect("banned"))
		require.Equal(t, packets.Banned, refused.Code)
		for _, how := range []func(c *testClient){
			func(c *testClient) { c.send(&packets.Disconnect{}) },
			func(c *testClient) { c.send(&packets.Disconnect{Code: packets.DisconnectWithWill}) },
			func(c *testClient) { c.nc.Close() },
			func(c *testClient) { b.Disconnect("c", packets.QuotaExceeded) },
		} {
			c, _ := newTestClient(t, dial(t, l), connect("c"))
			how(c)
			time.Sleep(time.Minute)
		}
		st := b.Stats()
		require.Equal(t, map[ReasonCode]uint64{packets.Banned: 1}, st.Refusals)
		require.EqualValues(t, 1, st.Refused)
		require.Equal(t, map[ReasonCode]uint64{
			packets.NormalDisconnection: 1, packets.DisconnectWithWill: 1, packets.UnspecifiedError: 1,
			packets.QuotaExceeded: 1,
		}, st.Disconnects)
	})
}

func TestStatsOfTimes(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		st.restart(func(c *Config) {
			c.Authenticator = hooks.AuthenticatorFunc(func(context.Context, *hooks.ConnectRequest) error {
				time.Sleep(300 * time.Millisecond)
				return nil
			})
			c.Authorizer = hooks.AuthorizerFunc(func(context.Context, *hooks.AccessRequest) error {
				time.Sleep(30 * time.Millisecond)
				return nil
			})
			c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client,
				m *packets.Message) (*packets.Message, error) {
				time.Sleep(3 * time.Second)
				return m, nil
			})
		})
		st.store.before = func([]store.Op) error { time.Sleep(60 * time.Millisecond); return nil }
		began := st.b.Stats()
		p := st.dial("p", packets.V5, false, 1)
		time.Sleep(time.Second)
		p.want(packets.TypeConnack)
		p.send(message2("t", "", packets.QoS1, 1))
		time.Sleep(10 * time.Second)
		now := st.b.Stats()
		slots := func(before, after Histogram) map[float64]uint64 {
			n := map[float64]uint64{}
			for i := range after.Counts {
				if k := after.Counts[i] - before.Counts[i]; k > 0 {
					n[after.Bounds[i]] = k
				}
			}
			return n
		}
		require.Equal(t, map[float64]uint64{0.5: 1, 0.05: 1, 5: 1},
			slots(began.HookLatency, now.HookLatency), "CONNECT, PUBLISH, and its Interceptor")
		require.InDelta(t, 3.33, now.HookLatency.Sum-began.HookLatency.Sum, 0.001)
		require.NotZero(t, now.CommitLatency.Count())
		require.Equal(t, now.CommitLatency.Count(), slots(Histogram{
			Counts: make([]uint64, len(now.CommitLatency.Counts))}, now.CommitLatency)[0.1])
		require.Equal(t, now.CommitLatency.Count(), now.CommitOperations.Count())
		require.GreaterOrEqual(t, now.CommitOperations.Sum, float64(now.CommitOperations.Count()))
		require.Equal(t, 0.1, now.CommitLatency.Quantile(0.5))
		require.Zero(t, now.DeadlineLag.Count()-began.DeadlineLag.Count())
		p.nc.Close()
		time.Sleep(10 * time.Second) // its Session expires
		now = st.b.Stats()
		require.Equal(t, map[float64]uint64{1e-5: 1}, slots(began.DeadlineLag, now.DeadlineLag))
	})
}

func TestQuantiles(t *testing.T) {
	h := Histogram{Bounds: []float64{1, 2, 3}, Counts: []uint64{10, 80, 9, 1}}
	for q, want := range map[float64]float64{0: 0, 0.1: 1, 0.11: 2, 0.5: 2, 0.9: 2, 0.95: 3, 1: 3} {
		require.Equal(t, want, h.Quantile(q), "%v", q)
	}
	require.Zero(t, (&Histogram{Bounds: []float64{1}, Counts: []uint64{0, 0}}).Quantile(0.5))
}

// Stats waits for no Session, and what it says of them is what there is.
func TestStatsWaitsForNoSession(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		c := st.durable("c", packets.V5)
		c.subscribe("t", packets.QoS1)
		sub := mustSubscribe(t, st.b, "t", nil)
		p := st.clean("p")
		p.send(message2("t", "1", packets.QoS1, 1))
		c.nc.Close()
		p.send(message2("t", "22", packets.QoS1, 2))
		synctest.Wait()
		s := st.b.sessionAt("c")
		s.mu.Lock()
		held := st.b.Stats() // with the lock of a Session held
		s.mu.Unlock()
		queued, inflight, size := 0, 0, 0
		for _, s := range []*session{s, sub.s} {
			s.mu.Lock()
			queued += int(s.out.queue.Len())
			inflight += int(s.out.live)
			size += s.out.bytes
			s.mu.Unlock()
		}
		require.NotZero(t, queued)
		require.NotZero(t, inflight)
		require.Equal(t, []int{queued, inflight, size},
			[]int{held.Queued, held.Inflight, int(held.QueuedBytes)})
		kinds := held.MemoryByKind
		sum := kinds.Queued + kinds.Inflight + kinds.Retained + kinds.Output + kinds.Partial +
			kinds.Subscriptions + kinds.Routes + kinds.Sessions + kinds.Uncommitted + kinds.Connections
		require.Equal(t, held.Memory, sum)
		require.NotPanics(t, func() { st.b.holding() }, "the places are counted rightly")
	})
}

// What a connection and its Session take while they are idle.
func TestConnectionsAndSessionsAreSmall(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(conn{}), uintptr(320), "the largest of its size class")
	require.LessOrEqual(t, unsafe.Sizeof(session{}), uintptr(288), "the largest of its size class")
}

// million is a Broker with a million Sessions, each with a subscription, and retained messages.
func million(b *testing.B, n int) *Broker {
	br := newTestBroker(b, func(c *Config) { c.MaxMemory = -1 })
	b.Cleanup(func() { br.Close() })
	for i := range n {
		id := fmt.Sprintf("client-%07d", i)
		s := &session{holder: &nobody, b: br, id: id, expiry: noExpiry, out: newSender(br.memory)}
		s.num, s.subs = br.number(s), 1
		br.tree.Restore(s.num, "", fmt.Sprint("devices/", id, "/#"), subs.Options{})
		br.sessions.put(id, s)
		m := packets.Message{Topic: "devices/" + id + "/state", Payload: []byte("on"), Retain: true}
		br.retained.Restore(&message{Message: m})
	}
	return br
}

// BenchmarkAmongAMillion reads a page of 50, or Stats, where there are a million of each.
func BenchmarkAmongAMillion(b *testing.B) {
	br := million(b, 1_000_000)
	const middle = "client-0500000"
	for name, read := range map[string]func(stop func() bool){
		"Sessions": func(stop func() bool) {
			for range br.SessionsFrom(middle) {
				if stop() {
					return
				}
			}
		},
		"Subscriptions": func(stop func() bool) {
			sub := subs.Subscription{Filter: "devices/" + middle + "/#"}
			for range br.SubscriptionsFrom("", cursorAt(middle, &sub)) {
				if stop() {
					return
				}
			}
		},
		"Retained": func(stop func() bool) {
			for range br.RetainedFrom("#", "devices/"+middle) {
				if stop() {
					return
				}
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				read(func() bool { n++; return n == 50 })
				if n != 50 {
					b.Fatal("no whole page")
				}
			}
		})
	}
	b.Run("Stats", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if br.Stats().Sessions != 1_000_000 {
				b.Fatal("Sessions are missing")
			}
		}
	})
}

// A page reads few Sessions, wherever it begins: it is not read from the beginning.
func TestAPageReadsOnlyWhatItShows(t *testing.T) {
	b := newTestBroker(t, nil)
	defer b.Close()
	for i := range 10 * sessionPage {
		id := fmt.Sprintf("%06d", i)
		s := &session{holder: &nobody, b: b, id: id, out: newSender(b.memory)}
		b.sessions.put(id, s)
		if i < 5*sessionPage || i > 7*sessionPage {
			defer s.hold()() // whoever looks at it waits
		}
	}
	var page []string
	within(t, "a page", func() {
		for _, s := range b.SessionsFrom(fmt.Sprintf("%06d", 5*sessionPage)) {
			if page = append(page, s.ClientID); len(page) == 50 {
				break
			}
		}
	})
	require.Len(t, page, 50)
	require.True(t, slices.IsSorted(page))
	require.True(t, strings.HasSuffix(page[0], fmt.Sprint(5*sessionPage+1)))
}
