package presence_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/presence"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A rig is a Presence in virtual time, and what it has published.
type rig struct {
	t *testing.T
	*presence.Presence
	*hooks.Observer
	mu  sync.Mutex
	got []*packets.Message // guarded by mu
	// What is retained, by topic; guarded by mu
	retained map[string]*packets.Message
	fails    bool          // guarded by mu: nothing is published
	gate     chan struct{} // guarded by mu: what is published waits until it is closed
}

// Publish and Retained are those of a broker.
func (r *rig) Publish(_ context.Context, m *packets.Message) error {
	r.mu.Lock()
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fails {
		return errors.New("the Store has failed")
	}
	r.got = append(r.got, m)
	if m.Retain {
		r.retained[m.Topic] = m
	}
	return nil
}

func (r *rig) Retained(filter string) iter.Seq[*packets.Message] {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Collect(maps.Values(r.retained))
	return func(yield func(*packets.Message) bool) {
		for _, m := range all {
			if packets.MatchTopic(filter, m.Topic) && len(m.Payload) > 0 && !yield(m) {
				return
			}
		}
	}
}

func withPresence(t *testing.T, o presence.Options, f func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, retained: map[string]*packets.Message{}}
		end := r.start(o)
		f(r)
		end()
	})
}

// start begins with a new Presence.
func (r *rig) start(o presence.Options) (end func()) {
	r.Presence = presence.New(o)
	r.Observer = r.Presence.Observer()
	ctx, cancel := context.WithCancelCause(r.t.Context())
	over := errors.New("over")
	done := make(chan error)
	go func() { done <- r.Run(ctx, r) }() // waited for by end
	return func() {
		cancel(over)
		require.ErrorIs(r.t, <-done, over)
	}
}

// story is what was published, in short, and since the last call.
func (r *rig) story() (all []string) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.got {
		var e presence.Event
		require.NoError(r.t, json.Unmarshal(m.Payload, &e))
		line := fmt.Sprint(m.Topic, " ", e.State, " ", e.Address)
		if e.ReasonCode != nil {
			line += fmt.Sprintf(" %#x %s", *e.ReasonCode, e.Reason)
		}
		all = append(all, line)
	}
	r.got = nil
	return all
}

// client is a client whose address is a number.
func client(id string, n int) *hooks.Client {
	return &hooks.Client{ID: id, Version: packets.V5, RemoteAddr: &net.UnixAddr{Name: fmt.Sprint(n)}}
}

func (r *rig) connect(c *hooks.Client) time.Time {
	time.Sleep(time.Nanosecond) // so that the next one is later
	at := time.Now()
	r.Connected(hooks.Connected{Client: c, At: at})
	return at
}

func (r *rig) disconnect(c *hooks.Client, at time.Time, code packets.ReasonCode) {
	r.Disconnected(hooks.Disconnected{Client: c, ConnectedAt: at, Code: code})
}

func TestWhatIsPublished(t *testing.T) {
	withPresence(t, presence.Options{}, func(r *rig) {
		c := &hooks.Client{
			ID: "a/b+#%\n", Version: packets.V311, Username: "u", HasUsername: true, KeepAlive: 60,
			RemoteAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711}, CleanStart: true,
			Identity: hooks.Identity{Principal: "jane"}, Listener: &hooks.Listener{Name: "public"},
		}
		at := time.Now()
		r.Connected(hooks.Connected{Client: c, SessionPresent: true, At: at})
		time.Sleep(time.Minute)
		r.Disconnected(hooks.Disconnected{
			Client: c, ConnectedAt: at, Code: packets.UnspecifiedError, Err: io.EOF,
		})
		synctest.Wait()
		require.Len(r.t, r.got, 2)
		const prefix = "$SYS/broker/clients/a%2Fb%2B%23%25%0A"
		require.Equal(r.t, prefix+"/connected", r.got[0].Topic)
		require.Equal(r.t, prefix+"/disconnected", r.got[1].Topic)
		for _, m := range r.got {
			require.Equal(r.t, "application/json", m.ContentType())
			require.False(r.t, m.Retain)
			_, ok := m.Expiry()
			require.False(r.t, ok)
			require.True(r.t, packets.ValidTopicName(m.Topic))
		}
		when := at.Format(time.RFC3339Nano)
		require.JSONEq(r.t, `{"state":"connected","client":"a/b+#%\n","user":"jane",`+
			`"address":"192.0.2.7:4711","listener":"public","protocol":"3.1.1","clean_start":true,`+
			`"keep_alive":60,"session_present":true,"connected_at":"`+when+`"}`, string(r.got[0].Payload))
		require.JSONEq(r.t, `{"state":"disconnected","client":"a/b+#%\n","user":"jane",`+
			`"address":"192.0.2.7:4711","listener":"public","protocol":"3.1.1","clean_start":true,`+
			`"keep_alive":60,"session_present":true,"connected_at":"`+when+`",`+
			`"disconnected_at":"`+at.Add(time.Minute).Format(time.RFC3339Nano)+`",`+
			`"reason_code":128,"reason":"Unspecified error","error":"EOF"}`, string(r.got[1].Payload))
	})
}

func TestATokenInTheUserNameIsNotPublished(t *testing.T) {
	withPresence(t, presence.Options{}, func(r *rig) {
		c := client("c", 1)
		c.Username, c.HasUsername = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", true
		r.connect(c)
		synctest.Wait()
		require.NotContains(r.t, string(r.got[0].Payload), "c2ln")
	})
}

// However the events of a takeover come, the first connection has ended before the second is there.
func TestTakeoversAreInOrder(t *testing.T) {
	withPresence(t, presence.Options{}, func(r *rig) {
		first, second, third := client("c", 1), client("c", 2), client("c", 3)
		at1 := r.connect(first)
		require.Equal(r.t, []string{"$SYS/broker/clients/c/connected connected 1"}, r.story())
		at2 := r.connect(second)
		at3 := r.connect(third)
		r.disconnect(second, at2, packets.SessionTakenOver)
		require.Empty(r.t, r.story(), "the first one is still there")
		r.disconnect(first, at1, packets.NormalDisconnection)
		require.Equal(r.t, []string{
			"$SYS/broker/clients/c/disconnected disconnected 1 0x0 Normal disconnection",
			"$SYS/broker/clients/c/connected connected 2",
			"$SYS/broker/clients/c/disconnected disconnected 2 0x8e Session taken over",
			"$SYS/broker/clients/c/connected connected 3",
		}, r.story())
		r.disconnect(third, at3, packets.NormalDisconnection)
		require.Len(r.t, r.story(), 1)
		at := r.connect(first)
		r.disconnect(first, at, packets.NormalDisconnection)
		require.Len(r.t, r.story(), 2)
	})
}

// A connection whose end takes long does not keep the next one from being told of.
func TestATakeoverDoesNotWaitForLong(t *testing.T) {
	withPresence(t, presence.Options{}, func(r *rig) {
		first, second, third := client("c", 1), client("c", 2), client("c", 3)
		at1 := r.connect(first)
		r.story()
		at2 := r.connect(second)
		time.Sleep(time.Second)
		r.connect(third)
		r.disconnect(second, at2, packets.KeepAliveTimeout)
		require.Empty(r.t, r.story())
		time.Sleep(time.Second)
		require.Equal(r.t, []string{
			"$SYS/broker/clients/c/disconnected disconnected 1 0x8e Session taken over",
			"$SYS/broker/clients/c/connected connected 2",
			"$SYS/broker/clients/c/disconnected disconnected 2 0x8d Keep Alive timeout",
			"$SYS/broker/clients/c/connected connected 3",
		}, r.story())
		r.disconnect(first, at1, packets.SessionTakenOver)
		time.Sleep(time.Minute)
		require.Empty(r.t, r.story(), "it has been told")
	})
}

func TestAConnectionThatIsToldOfAfterItsSuccessorIsPassedOver(t *testing.T) {
	withPresence(t, presence.Options{}, func(r *rig) {
		first, second := client("c", 1), client("c", 2)
		early := time.Now()
		r.connect(second)
		r.Connected(hooks.Connected{Client: first, At: early})
		r.disconnect(first, early, packets.SessionTakenOver)
		require.Equal(r.t, []string{"$SYS/broker/clients/c/connected connected 2"}, r.story())
	})
}

func TestRetainedPresence(t *testing.T) {
	withPresence(t, presence.Options{Retain: true, Prefix: "here", QoS: 1}, func(r *rig) {
		c := client("c", 1)
		at := r.connect(c)
		synctest.Wait()
		r.disconnect(c, at, packets.NormalDisconnection)
		synctest.Wait()
		require.Len(r.t, r.got, 2)
		for _, m := range r.got {
			require.Equal(r.t, "here/c", m.Topic)
			require.True(r.t, m.Retain)
			require.Equal(r.t, packets.QoS1, m.QoS)
		}
		_, expires := r.got[0].Expiry()
		require.False(r.t, expires, "while it is connected nothing expires")
		keep, expires := r.got[1].Expiry()
		require.True(r.t, expires)
		require.Equal(r.t, 24*time.Hour, keep)
	})
	withPresence(t, presence.Options{Retain: true, Keep: -1}, func(r *rig) {
		c := client("c", 1)
		r.disconnect(c, r.connect(c), packets.NormalDisconnection)
		synctest.Wait()
		require.Len(r.t, r.got, 1, "only the last state matters")
		_, expires := r.got[0].Expiry()
		require.False(r.t, expires)
	})
}

func TestClientsOfSeveralPrincipalsDoNotTakeOver(t *testing.T) {
	withPresence(t, presence.Options{PerPrincipal: true}, func(r *rig) {
		a, b := client("c", 1), client("c", 2)
		a.Identity.Principal, b.Identity.Principal = "a", "b/b"
		r.connect(a)
		r.connect(b)
		require.Equal(r.t, []string{
			"$SYS/broker/clients/c/a/connected connected 1",
			"$SYS/broker/clients/c/b%2Fb/connected connected 2",
		}, r.story())
	})
}

func TestLostMessagesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := presence.New(presence.Options{MaxWaiting: 10})
		o := p.Observer()
		for i := range 15 { // before anybody publishes
			o.Connected(hooks.Connected{Client: client(fmt.Sprint(i), i), At: time.Now()})
		}
		require.EqualValues(t, 5, p.Lost())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		published := 0
		err := p.Run(ctx, presence.Func(func(context.Context, *packets.Message) error {
			if published++; published > 7 {
				return errors.New("no")
			}
			return nil
		}))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 10, published)
		require.EqualValues(t, 5+3, p.Lost())
	})
}

// What clients can choose does not make an Event another one.
func TestLevelsAreDistinct(t *testing.T) {
	seen := map[string]string{}
	withPresence(t, presence.Options{}, func(r *rig) {
		for _, id := range []string{
			"a", "a/b", "a%2Fb", "a+", "a#", "%", "ä", "\u202e", "a%252Fb", strings.Repeat("/", 9),
		} {
			r.connect(client(id, 0))
			synctest.Wait()
			topic := r.got[len(r.got)-1].Topic
			require.True(r.t, packets.ValidTopicName(topic), topic)
			require.Equal(r.t, 5, packets.Levels(topic), topic)
			require.Empty(r.t, seen[topic])
			seen[topic] = id
		}
	})
}
