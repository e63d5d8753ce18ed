package webhook_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/webhook"
	"github.com/stretchr/testify/require"
)

// from returns the CONNECT of a client at an address.
func from(ip, user string) *hooks.ConnectRequest {
	r := connect("pencil")
	r.Client.RemoteAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1))
	r.Client.ID, r.Client.Username, r.Connect.Username = "id of "+user, user, user
	return r
}

// The server is slow, and is asked about many clients from one address. Others get their answers,
// and soon.
func TestOneAddressDoesNotKeepTheAnswersFromOthers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int           // of the answers about the address
		wait   time.Duration // before them
	}{
		{"answers after a second", 200, time.Second},
		{"answers that do not come", 200, time.Hour},
		{"answers that make no sense", 500, 0},
		{"answers that make no sense, after a second", 500, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &server{body: `{"result":"allow"}`, wait: 10 * time.Millisecond}
				s.odd = func(body string) (int, time.Duration) {
					if strings.Contains(body, "203.0.113.1") {
						return tt.status, tt.wait
					}
					return 0, 0
				}
				a := s.authenticator(t, func(o *webhook.Options) { o.AllowFor = -1 })
				var all sync.WaitGroup
				for i := range 3000 {
					all.Go(func() { // waited for below
						time.Sleep(time.Duration(i) * time.Millisecond)
						_ = a.Authenticate(t.Context(),
							from("203.0.113.1", fmt.Sprint("nobody", i)))
					})
				}
				for i := range 20 {
					time.Sleep(500 * time.Millisecond)
					began := time.Now()
					require.NoError(t, a.Authenticate(t.Context(),
						from("192.0.2.1", fmt.Sprint("jane", i))))
					require.LessOrEqual(t, time.Since(began), time.Second)
				}
				all.Wait()
				require.NoError(t, a.Authenticate(t.Context(), from("192.0.2.1", "jane")))
			})
		})
	}
}

func TestOnePeerDoesNotHaveAllRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{body: `{"result":"allow"}`, wait: time.Second}
		a := s.authorizer(t, func(o *webhook.Options) { o.MaxConcurrent = 8 })
		var all sync.WaitGroup
		for i := range 20 {
			// waited for below
			all.Go(func() { require.NoError(t, a.Authorize(t.Context(), publish(fmt.Sprint(i)))) })
		}
		synctest.Wait()
		require.Equal(t, 6, s.most)
		began := time.Now()
		r := publish("a")
		r.Client.Identity.Principal = "joe"
		require.NoError(t, a.Authorize(t.Context(), r))
		require.Equal(t, time.Second, time.Since(began), "it had a turn at once")
		all.Wait()
	})
}

// What waits is bounded in bytes, and who has most of it gives way.
func TestWaitingQuestionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{body: `{"result":"allow"}`, wait: time.Second}
		a := s.authorizer(t, func(o *webhook.Options) { o.MaxConcurrent, o.MaxWaiting = 2, 1<<20 })
		var all sync.WaitGroup
		var allowed atomic.Int64
		large := strings.Repeat("x", 60_000)
		for i := range 100 {
			all.Go(func() { // waited for below
				if a.Authorize(t.Context(), publish(fmt.Sprint(large, i))) == nil {
					allowed.Add(1)
				}
			})
		}
		synctest.Wait()
		for i := range 3 {
			all.Go(func() {
				r := publish("a")
				r.Client.Identity.Principal = fmt.Sprint("user ", i)
				require.NoError(t, a.Authorize(t.Context(), r))
			})
		}
		all.Wait()
		require.LessOrEqual(t, allowed.Load(), int64(1<<20/60_000+1))
		require.NotZero(t, allowed.Load())
	})
}

func TestTheCircuitOfOnePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{body: `{"result":"allow"}`}
		s.odd = func(body string) (int, time.Duration) {
			if strings.Contains(body, "odd") {
				return 500, 0
			}
			return 0, 0
		}
		a := s.authenticator(t, func(o *webhook.Options) { o.AllowFor = -1 })
		n := 0
		ask := func(ip, user string) error {
			n++
			return a.Authenticate(t.Context(), from(ip, fmt.Sprint(user, n)))
		}
		for range 10 {
			require.Error(t, ask("203.0.113.1", "odd"))
		}
		require.Equal(t, 5, s.questions())
		require.Error(t, ask("203.0.113.1", "jane"), "its circuit is open")
		require.NoError(t, ask("192.0.2.1", "jane"))
		known := from("203.0.113.1", "joe")
		known.Known = true
		require.NoError(t, a.Authenticate(t.Context(), known),
			"a name that is known there is a peer of its own")
		time.Sleep(10 * time.Second)
		require.NoError(t, ask("203.0.113.1", "jane"), "one question tries, and is answered")
		require.NoError(t, ask("203.0.113.1", "jane"))

		for i := range 4 { // failures about different peers are those of the server
			require.Error(t, ask(fmt.Sprint("198.51.100.", i), "odd"))
		}
		require.NoError(t, ask("192.0.2.1", "jane"))
		for i := range 5 {
			require.Error(t, ask(fmt.Sprint("198.51.100.", i), "odd"))
		}
		require.Error(t, ask("192.0.2.1", "jane"), "the circuit of all is open")
	})
}

// Who only claims to be jane takes the place of others at the same address, and not hers.
func TestAClaimedNameTakesNoKeptAnswersOfItsPrincipal(t *testing.T) {
	s := &server{body: `{"result":"allow"}`}
	a := s.authorizer(t, func(o *webhook.Options) { o.MaxCached = 80 })
	ask := func(unverified bool, topic int) {
		r := publish(fmt.Sprint(topic))
		r.Client.RemoteAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:1"))
		r.Client.Identity = hooks.Identity{Principal: "jane", Unverified: unverified}
		require.NoError(t, a.Authorize(t.Context(), r))
	}
	for i := range 40 {
		ask(false, i)
	}
	for i := range 1000 {
		ask(true, 100+i)
	}
	before := s.questions()
	for i := range 40 {
		ask(false, i)
	}
	require.Equal(t, before, s.questions(), "hers are kept")
}

func TestOnePeerDoesNotTakeTheKeptAnswersOfOthers(t *testing.T) {
	for name, limit := range map[string]func(*webhook.Options){
		"by number": func(o *webhook.Options) { o.MaxCached = 80 },
		"by bytes":  func(o *webhook.Options) { o.MaxCachedBytes = 80 * 1024 },
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{body: `{"result":"allow","tenant":"` + strings.Repeat("x", 450) + `"}`}
			a := s.authorizer(t, limit)
			ask := func(principal string, topic int) {
				r := publish(fmt.Sprint(topic))
				r.Client.Identity.Principal = principal
				require.NoError(t, a.Authorize(t.Context(), r))
			}
			for i := range 40 {
				ask("jane", i)
			}
			for i := range 1000 {
				ask("joe", i)
			}
			before := s.questions()
			for i := range 40 {
				ask("jane", i)
			}
			require.Equal(t, before, s.questions(), "hers are kept")
			for i := 999; i > 999-30; i-- {
				ask("joe", i)
			}
			require.Equal(t, before, s.questions(), "and his last ones, as long as there is room")
		})
	}
}
