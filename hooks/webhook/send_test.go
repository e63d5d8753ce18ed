package webhook_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/webhook"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// takes makes a server refuse requests of more than so many bytes.
func (s *server) takes(most int) {
	s.odd = func(body string) (int, time.Duration) {
		if len(body) > most {
			return http.StatusRequestEntityTooLarge, 0
		}
		return 0, 0
	}
}

// arrived returns the events of the requests that s has not refused.
func (s *server) arrived(t *testing.T) (all []webhook.Event) {
	for i, d := range s.deliveries(t) {
		if status := 0; s.odd != nil {
			if status, _ = s.odd(s.asked[i]); status != 0 {
				continue
			}
		}
		all = append(all, d.Events...)
	}
	return all
}

func TestEventsThatWaitAreBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{wait: 4 * time.Second}
		e := s.events(t, func(o *webhook.EventOptions) {
			o.Only, o.Payloads = []string{"published"}, true
			o.QueueBytes, o.RequestBytes = 256<<10, 16<<10
		})
		m := &packets.Message{Topic: "a", Payload: make([]byte, 16<<10)}
		published := func(c *hooks.Client) {
			e.Observer().Published(hooks.Published{Client: c, Message: m, Matched: 1})
		}
		published(jane())
		synctest.Wait() // this one is on its way
		for i := range 1000 {
			c := jane()
			c.RemoteAddr = nil
			c.ID = fmt.Sprint("c", i%100)
			published(c)
		}
		require.GreaterOrEqual(t, e.Dropped(), uint64(1000-16))
		require.NoError(t, e.Close(t.Context()))
		require.LessOrEqual(t, s.questions(), 17)
	})
}

func TestOneClientDoesNotFillTheQueueOfEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{wait: time.Second}
		e := s.events(t, nil)
		o := e.Observer()
		o.SessionEnded(ended("c"))
		time.Sleep(1500 * time.Millisecond) // a request is under way
		topic := strings.Repeat("x", 65_000)
		for range 20_000 {
			o.Denied(hooks.Denied{Client: jane(), Action: hooks.ActionPublish, Topic: topic,
				MountedTopic: topic, Err: errors.New("no rule")})
		}
		before := e.Dropped()
		require.NotZero(t, before)
		other := jane()
		other.RemoteAddr = nil
		o.Connected(hooks.Connected{Client: other})
		o.Banned(banned(hooks.BanClient, "c1", "flapping", time.Time{}))
		require.Equal(t, before, e.Dropped())
		require.NoError(t, e.Close(t.Context()))
	})
}

func TestLongTextsAreCut(t *testing.T) {
	s := &server{}
	e := s.events(t, nil)
	o := e.Observer()
	long := strings.Repeat("ä", 513) // the cut would be within a character
	odd := "x" + long
	c := jane()
	c.ID, c.Username = long, long
	o.Denied(hooks.Denied{Client: c, Action: hooks.ActionPublish, Topic: odd,
		MountedTopic: "m/" + odd,
		Err:          errors.New(long)})
	o.Banned(banned(hooks.BanClient, long, long, time.Time{}))
	filter := strings.Repeat("x", 1024)
	o.Subscribed(hooks.Subscribed{Client: jane(), Filter: filter, MountedFilter: filter})
	require.NoError(t, e.Close(t.Context()))
	got := s.arrived(t)
	require.Equal(t, strings.Repeat("ä", 512), got[0].ClientID)
	require.Equal(t, "x"+strings.Repeat("ä", 511), got[0].Topic)
	require.Equal(t, []string{"client_id", "user", "topic", "mounted_topic", "error"},
		got[0].Truncated)
	require.Equal(t, []string{"value", "error"}, got[1].Truncated)
	require.Empty(t, got[2].Truncated)
	require.Len(t, got[2].Topic, 1024)
}

func TestRequestsAreBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		e := s.events(t, func(o *webhook.EventOptions) { o.RequestBytes = 10_000 })
		o := e.Observer()
		began := time.Now()
		for range 90 {
			o.SessionEnded(ended("\x01" + strings.Repeat("\x02", 299))) // a byte takes six in JSON
		}
		synctest.Wait()
		require.NotZero(t, s.questions(), "a full request goes at once")
		require.NoError(t, e.Close(t.Context()))
		require.Zero(t, time.Since(began))
		for _, body := range s.asked {
			require.LessOrEqual(t, len(body), 10_200)
		}
		require.Len(t, s.arrived(t), 90)
	})
}

func TestARequestThatIsTooLargeIsHalved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		s.takes(3000)
		e := s.events(t, func(o *webhook.EventOptions) {
			o.Only,
				o.Payloads = []string{"published", "session_ended"}, true
		})
		o := e.Observer()
		for range 50 {
			o.SessionEnded(ended(strings.Repeat("c", 100)))
		}
		large := &packets.Message{Topic: "large", Payload: make([]byte, 10_000)}
		o.Published(hooks.Published{Client: jane(), Message: large, Matched: 1})
		for range 49 {
			o.SessionEnded(ended(strings.Repeat("c", 100)))
		}
		synctest.Wait()
		all := s.arrived(t)
		require.Len(t, all, 100, "all have come, without a pause")
		require.True(t, slices.IsSortedFunc(all,
			func(a, b webhook.Event) int { return int(a.Seq) - int(b.Seq) }), "in order")
		require.Equal(t, []string{"payload"}, all[50].Truncated)
		require.Empty(t, all[50].Payload)
		require.Equal(t, 10_000, *all[50].Size)
		require.Zero(t, e.Dropped())

		before := s.questions()
		for range 100 {
			o.SessionEnded(ended(strings.Repeat("c", 100)))
		}
		synctest.Wait()
		require.Len(t, s.arrived(t), 200)
		for _, body := range s.asked[before:] {
			require.LessOrEqual(t, len(body), 3000, "it does not try large ones again")
		}

		s.takes(100)
		o.SessionEnded(ended("c"))
		require.NoError(t, e.Close(t.Context()))
		require.EqualValues(t, 1, e.Dropped(), "an event that cannot be made smaller")
	})
}

func TestNumbersAreInTheOrderOfDelivery(t *testing.T) {
	s := &server{}
	e := s.events(t, func(o *webhook.EventOptions) { o.Batch = 7 })
	o := e.Observer()
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() { // waited for below
			for range 200 {
				o.SessionEnded(ended(fmt.Sprint(i)))
			}
		})
	}
	all.Wait()
	require.NoError(t, e.Close(t.Context()))
	next := uint64(1)
	for _, x := range s.arrived(t) {
		require.Equal(t, next, x.Seq)
		next++
	}
	require.EqualValues(t, 3201, next)
}

// A tripper is an http.RoundTripper.
type tripper func(r *http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A RoundTripper of the program that panics does not end the program: the events are sent again.
func TestARoundTripperThatPanicsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		e, err := webhook.NewEvents(webhook.EventOptions{URL: "http://localhost/",
			Client: &http.Client{Transport: tripper(func(*http.Request) (*http.Response, error) {
				if calls++; calls == 1 {
					panic("transport")
				}
				return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
			})}})
		require.NoError(t, err)
		e.Observer().Connected(hooks.Connected{Client: &hooks.Client{ID: "c"}})
		require.NoError(t, e.Close(t.Context()))
		require.Equal(t, 2, calls)
		require.Zero(t, e.Dropped())
	})
}
