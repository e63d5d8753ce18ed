package dunlin

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// waitsIn returns when a goroutine waits for a lock in a function.
func waitsIn(function string) {
	for waiting := regexp.MustCompile(`\[sync\.(RW)?Mutex\.R?Lock`); ; runtime.Gosched() {
		for goroutine := range strings.SplitSeq(string(stacks()), "\n\n") {
			head, _, _ := strings.Cut(goroutine, "\n")
			if waiting.MatchString(head) && strings.Contains(goroutine, function+"(") {
				return
			}
		}
	}
}

// hold locks s until release is called.
func (s *session) hold() (release func()) {
	locked, free := make(chan struct{}), make(chan struct{})
	go func() { // ends with release
		s.mu.Lock()
		close(locked)
		<-free
		s.mu.Unlock()
	}()
	<-locked
	return func() { close(free) }
}

// Whoever has to wait for one Session, because somebody works on it for long, has locked nothing
// that others need.
func TestWhoWaitsForASessionHoldsUpNobody(t *testing.T) {
	for _, tt := range []struct {
		name     string
		function string // that waits
		do       func(t *testing.T, b *Broker, dial func() *testClient)
	}{
		{"a Ban of a user", "endBanned", func(t *testing.T, b *Broker, _ func() *testClient) {
			require.NoError(t, b.Ban(Ban{Kind: BanUser, Value: "nobody"}))
		}},
		{"a Ban of a client", "endBanned", func(t *testing.T, b *Broker, _ func() *testClient) {
			require.NoError(t, b.Ban(Ban{Kind: BanClient, Value: "held"}))
		}},
		{"making room in memory", "shed", func(t *testing.T, b *Broker, _ func() *testClient) {
			var counted int32
			b.memory.Recount(budget.Output, &counted, 1<<20)
			b.crowded()
		}},
		{"Sessions", "facts", func(t *testing.T, b *Broker, _ func() *testClient) {
			for range b.Sessions() {
			}
		}},
		{"Session", "facts", func(t *testing.T, b *Broker,
			_ func() *testClient) {
			b.Session("held")
		}},
		{"Disconnect", "disconnect", func(t *testing.T, b *Broker, _ func() *testClient) {
			b.Disconnect("held", packets.AdministrativeAction)
		}},
		{"DeleteSession", "DeleteSession", func(t *testing.T, b *Broker, _ func() *testClient) {
			b.DeleteSession(context.Background(), "held")
		}},
		{"other rules", "reviewSession", func(t *testing.T, b *Broker,
			_ func() *testClient) {
			b.reloaded()
		}},
		{"another connection of the client", "attach",
			func(t *testing.T, b *Broker, dial func() *testClient) {
				dial().send(connect("held"))
			}},
		{"a message in its name", "originOf", func(t *testing.T, b *Broker,
			_ func() *testClient) {
			b.originOf("held")
		}},
		{"another reader of a named Subscription", "attachLocal",
			func(t *testing.T, b *Broker, _ func() *testClient) {
				b.Subscribe(context.Background(), "t", &SubscribeOptions{Name: "held"})
			}},
		{"the end of a Subscription", "end", func(t *testing.T, b *Broker, _ func() *testClient) {
			b.mu.Lock()
			var open *Subscription
			for open = range b.locals {
			}
			b.mu.Unlock()
			open.Close()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newTestBroker(t, func(c *Config) {
				c.MaxMemory = 1 << 20
				c.Authorizer = hooks.AuthorizerFunc(func(context.Context,
					*hooks.AccessRequest) error {
					return nil
				})
			})
			l, stop := serveMemory(t, b)
			defer stop()
			dialled := func() *testClient {
				nc := dial(t, l)
				return &testClient{t: t, nc: nc, r: packets.NewReader(nc, packets.Limits{}),
					v: packets.V5}
			}
			_, _ = newTestClient(t, dial(t, l), as("held", "-"))
			mustSubscribe(t, b, "t", &SubscribeOptions{Name: "held"})
			release := []func(){b.sessionAt("held").hold(),
				b.sessionAt(localPrefix + "held").hold()}
			done := make(chan struct{})
			go func() { // the end of this test waits for it
				defer close(done)
				tt.do(t, b, dialled)
			}()
			waitsIn(tt.function)
			free := b.mu.TryLock()
			if free {
				b.mu.Unlock()
			}
			for _, f := range release {
				f()
			}
			<-done
			require.True(t, free, "the lock of the Broker is held")
		})
	}
}

// Sessions come in order, page by page, and those that are there all the time come once.
func TestSessionsComeOnceWhileOthersComeAndGo(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	b := newTestBroker(t, nil)
	defer b.Close()
	add := func(id string) *session {
		s := &session{holder: &nobody, b: b, id: id}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.sessions.put(s.place(), s)
		return s
	}
	var stay, come []*session
	for i := range 10 * sessionPage {
		id := fmt.Sprintf("%d-%d", rnd.IntN(1000), i)
		if s := add(id); i%2 == 0 {
			stay = append(stay, s)
		} else {
			come = append(come, s)
		}
	}
	var got []*session
	for s := range b.allSessions() {
		got = append(got, s)
		b.unregister(come[rnd.IntN(len(come))])
		add(fmt.Sprintf("%d-x%d", rnd.IntN(1000), len(got)))
	}
	require.True(t, slices.IsSortedFunc(got,
		func(x, y *session) int { return strings.Compare(x.place(), y.place()) }))
	require.Equal(t, len(got), len(slices.Compact(got)), "none comes twice")
	for _, s := range stay {
		require.Contains(t, got, s)
	}
}

func TestTheSessionsOfAClientAreThoseWithItsIdentifier(t *testing.T) {
	b := newTestBroker(t, func(c *Config) { c.SessionPerPrincipal = true })
	defer b.Close()
	var want []*session
	for _, id := range []string{"", "a", "a\x01", "ab", "b"} {
		for _, principal := range []string{"", "ann", "bob"} {
			s := &session{b: b, id: id, holder: b.holder(id, principal, principal != "", "")}
			b.sessions.put(s.place(), s)
			if id == "a" {
				want = append(want, s)
			}
		}
	}
	require.Equal(t, want, b.ofClient("a"))
	require.Empty(t, b.ofClient("aa"))
	require.Len(t, b.ofClient("b"), 3)
	s := want[1]
	b.unregister(&session{b: b, id: s.id, holder: s.holder})
	require.Equal(t, want, b.ofClient("a"), "another Session with the same place")
	b.unregister(s)
	require.Equal(t, []*session{want[0], want[2]}, b.ofClient("a"))
}
