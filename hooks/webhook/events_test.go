package webhook_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/webhook"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// A delivery is a request with events.
type delivery struct {
	Sent    time.Time
	Dropped uint64
	Events  []webhook.Event
}

// deliveries decodes what s was sent.
func (s *server) deliveries(t *testing.T) (ds []delivery) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.asked {
		var d delivery
		require.NoError(t, json.Unmarshal([]byte(b), &d))
		ds = append(ds, d)
	}
	return ds
}

func (s *server) events(t *testing.T, change func(*webhook.EventOptions)) *webhook.Events {
	t.Helper()
	o := webhook.EventOptions{URL: "https://api.example.org/events",
		Client: &http.Client{Transport: s}, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	e, err := webhook.NewEvents(o)
	require.NoError(t, err)
	return e
}

// numbers returns the seq of each event, as text.
func numbers(d delivery) (of []uint64) {
	for _, e := range d.Events {
		of = append(of, e.Seq)
	}
	return of
}

// ended is the event that the Session of a client ended of which only the identifier is known.
func ended(id string) hooks.SessionEnded {
	return hooks.SessionEnded{Client: &hooks.Client{ID: id}}
}

// banned is the event of a Ban.
func banned(kind hooks.BanKind, value, reason string, until time.Time) hooks.Banned {
	return hooks.Banned{Ban: hooks.Ban{Kind: kind, Value: value, Reason: reason, Until: until}}
}

func TestEveryEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		e := s.events(t, func(o *webhook.EventOptions) {
			o.Payloads = true
			o.Only = []string{
				"connected", "refused", "disconnected", "session_ended", "subscribed",
				"unsubscribed", "denied", "revoked", "banned", "panicked",
				"store_failed", "store_recovered", "published", "delivered", "acknowledged",
				"dropped", "settled",
			}
		})
		o := e.Observer()
		m := &packets.Message{Topic: "a/b", Payload: []byte("hi"), QoS: 1, Retain: true}
		c := jane()
		o.Connected(hooks.Connected{Client: c, SessionPresent: true})
		o.Refused(hooks.Refused{Client: c, Code: packets.NotAuthorized, Err: errors.New("why")})
		o.Disconnected(hooks.Disconnected{Client: c, Code: packets.NormalDisconnection})
		o.SessionEnded(hooks.SessionEnded{Client: c})
		o.Subscribed(hooks.Subscribed{Client: c, Filter: "a/#", MountedFilter: "a/#"})
		o.Unsubscribed(hooks.Unsubscribed{Client: c, Filter: "a/#", MountedFilter: "m/a/#"})
		o.Denied(hooks.Denied{Client: c, Action: hooks.ActionSubscribe, Topic: "#",
			MountedTopic: "#",
			Err:          errors.New("no rule")})
		o.Revoked(hooks.Revoked{Client: c, Filter: "a/#", MountedFilter: "m/a/#",
			Err: errors.New("no rule")})
		o.Banned(banned(hooks.BanClient, "c1", "flapping", time.Now().Add(time.Hour)))
		o.Banned(banned(hooks.BanAddress, "192.0.2.7", "by hand", time.Time{}))
		o.Panicked(hooks.Panicked{Client: c, Value: "oh"})
		o.StoreFailed(hooks.StoreFailed{Err: errors.New("disk full")})
		o.StoreRecovered(hooks.StoreRecovered{})
		c.MountPoint = "a/"
		o.Published(hooks.Published{Client: c, Message: m})
		o.Published(hooks.Published{Client: new(hooks.Client), Message: m, Matched: 2})
		o.Delivered(hooks.Delivered{Client: c, Message: m})
		o.Acknowledged(hooks.Acknowledged{Client: c, PacketID: 7})
		o.Dropped(hooks.Dropped{Client: c, Message: m, Reason: hooks.DropQueueFull})
		o.Dropped(hooks.Dropped{Client: c, Reason: hooks.DropRefused})
		o.Settled(hooks.Settled{Client: c, Receipt: "push-1", QoS: 1})
		o.Settled(hooks.Settled{Client: c, Receipt: "push-2", QoS: 2, Reason: hooks.DropExpired})
		m.Payload[0] = 'x' // it was only lent
		require.NoError(t, e.Close(t.Context()))

		var got struct{ Events []map[string]any }
		require.NoError(t, json.Unmarshal([]byte(s.asked[0]), &got))
		var want []map[string]any
		require.NoError(t, json.Unmarshal([]byte(`[
			{"event":"connected","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","session_present":true},
			{"event":"refused","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","reason_code":135,"error":"why"},
			{"event":"disconnected","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","reason_code":0},
			{"event":"session_ended","client_id":"c1","user":"jane","remote_ip":"192.0.2.7"},
			{"event":"subscribed","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","topic":"a/#","qos":0},
			{"event":"unsubscribed","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","topic":"a/#","mounted_topic":"m/a/#"},
			{"event":"denied","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","action":"subscribe","topic":"#","error":"no rule"},
			{"event":"revoked","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","topic":"a/#","mounted_topic":"m/a/#","error":"no rule"},
			{"event":"banned","kind":"client","value":"c1","error":"flapping","until":"2000-01-01T01:00:00Z"},
			{"event":"banned","kind":"address","value":"192.0.2.7","error":"by hand"},
			{"event":"panicked","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","error":"oh"},
			{"event":"store_failed","error":"disk full"},
			{"event":"store_recovered"},
			{"event":"published","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","topic":"b","mounted_topic":"a/b","qos":1,"retain":true,"size":2,"payload":"aGk=","matched":0},
			{"event":"published","topic":"a/b","qos":1,"retain":true,"size":2,"payload":"aGk=","matched":2},
			{"event":"delivered","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","topic":"b","mounted_topic":"a/b","qos":0,"retain":true,"size":2,"payload":"aGk="},
			{"event":"acknowledged","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","packet_id":7},
			{"event":"dropped","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","topic":"b","mounted_topic":"a/b","qos":1,"retain":true,"size":2,"payload":"aGk=","error":"queue full"},
			{"event":"dropped","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","error":"refused"},
			{"event":"settled","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","qos":1,"receipt":"push-1"},
			{"event":"settled","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","qos":2,"receipt":"push-2","error":"expired"}
		]`), &want))
		require.Len(t, got.Events, len(want))
		for i, x := range got.Events {
			require.Equal(t, float64(i+1), x["seq"])
			require.Equal(t, time.Now().UTC().Format(time.RFC3339), x["time"])
			delete(x, "seq")
			delete(x, "time")
		}
		require.Equal(t, want, got.Events)
	})
}

func TestWantedEvents(t *testing.T) {
	set := func(o *hooks.Observer) (names []string) {
		v := reflect.ValueOf(o).Elem()
		for i := range v.NumField() {
			if !v.Field(i).IsNil() {
				names = append(names, v.Type().Field(i).Name)
			}
		}
		return names
	}
	for _, tt := range []struct {
		name string
		only []string
		want []string
	}{
		{"by default none about single messages", nil, []string{"Connected", "Refused",
			"Disconnected", "SessionEnded", "Subscribed", "Unsubscribed", "Denied", "Revoked",
			"Banned", "StoreFailed", "StoreRecovered", "Panicked"}},
		{"some", []string{"dropped", "connected"}, []string{"Connected", "Dropped"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := new(server).events(t, func(o *webhook.EventOptions) { o.Only = tt.only })
			require.Equal(t, tt.want, set(e.Observer()))
			require.NoError(t, e.Close(t.Context()))
		})
	}
	t.Run("every event of an Observer can be had", func(t *testing.T) {
		e := new(server).events(t, func(o *webhook.EventOptions) {
			o.Only = []string{
				"connected", "refused", "disconnected", "session_ended", "subscribed",
				"unsubscribed", "denied", "revoked", "banned",
				"panicked", "store_failed", "store_recovered", "published", "delivered",
				"acknowledged", "dropped", "settled",
			}
		})
		require.Len(t, set(e.Observer()), reflect.TypeFor[hooks.Observer]().NumField(),
			"a new field of Observer belongs into Events, too")
		require.NoError(t, e.Close(t.Context()))
	})
	t.Run("payloads only where they are asked for", func(t *testing.T) {
		s := &server{}
		e := s.events(t, func(o *webhook.EventOptions) { o.Only = []string{"published"} })
		e.Observer().Published(hooks.Published{Client: jane(),
			Message: &packets.Message{Topic: "a", Payload: []byte("secret")}, Matched: 1})
		require.NoError(t, e.Close(t.Context()))
		require.NotContains(t, s.asked[0], "payload")
	})
}

func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		e := s.events(t, func(o *webhook.EventOptions) { o.Batch = 3; o.Secret = []byte("secret") })
		o := e.Observer()
		for range 7 {
			o.SessionEnded(ended("c"))
		}
		synctest.Wait()
		require.Equal(t, 2, s.questions(), "full ones go at once")
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, 2, s.questions())
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.Equal(t, 3, s.questions(), "others after a while")
		ds := s.deliveries(t)
		require.Equal(t, [][]uint64{{1, 2, 3}, {4, 5, 6}, {7}},
			[][]uint64{numbers(ds[0]), numbers(ds[1]), numbers(ds[2])})
		seen := map[string]bool{}
		for i, h := range s.headers {
			require.NoError(t, webhook.Verify([]byte("secret"), h, []byte(s.asked[i]), 0))
			seen[h.Get("Dunlin-Delivery")] = true
		}
		require.Len(t, seen, 3)
		require.NoError(t, e.Close(t.Context()))
		require.NoError(t, e.Close(t.Context()), "twice does no harm")
		require.Equal(t, 3, s.questions(), "there was nothing left")
		o.SessionEnded(ended("c"))
		require.EqualValues(t, 1, e.Dropped(), "after Close nothing is sent")
	})
}

func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := &server{err: errors.New("no network")}
		e := s.events(t, func(o *webhook.EventOptions) {
			o.Batch = 1
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		o := e.Observer()
		o.SessionEnded(ended("c"))
		time.Sleep(2 * time.Second) // pauses of up to 0.5 and 1 s, at least 0.25 and 0.5 s
		synctest.Wait()
		attempts := s.questions()
		require.GreaterOrEqual(t, attempts, 3)
		require.LessOrEqual(t, attempts, 4)
		s.set(503, "", nil)
		time.Sleep(5 * time.Second)
		s.set(204, "", nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Greater(t, s.questions(), attempts)
		require.Zero(t, e.Dropped(), "it has come in the end")
		first := s.headers[0].Get("Dunlin-Delivery")
		for _, h := range s.headers {
			require.Equal(t, first, h.Get("Dunlin-Delivery"))
		}

		before := s.questions()
		s.set(400, "", nil)
		o.SessionEnded(ended("c"))
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, before+1, s.questions(),
			"what the server does not want it is not sent again")
		require.EqualValues(t, 1, e.Dropped())

		s.set(500, "", nil)
		began := time.Now()
		o.SessionEnded(ended("c"))
		o.SessionEnded(ended("c"))
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, before+1+20, s.questions(), "ten attempts each")
		require.EqualValues(t, 3, e.Dropped())
		require.Less(t, time.Since(began), 2*time.Hour)
		s.set(200, "", nil)
		o.SessionEnded(ended("c"))
		require.NoError(t, e.Close(t.Context()))
		ds := s.deliveries(t)
		require.EqualValues(t, 3, ds[len(ds)-1].Dropped, "the server learns how many it has missed")
		require.Equal(t, []uint64{5}, numbers(ds[len(ds)-1]))
		require.Equal(t, 3, strings.Count(log.String(), "events are dropped"))
	})
}

// TestFullQueue: an Observer never waits.
func TestFullQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{wait: 4 * time.Second}
		e := s.events(t, func(o *webhook.EventOptions) { o.Batch, o.Queue = 2, 10 })
		o := e.Observer()
		began := time.Now()
		o.SessionEnded(ended("c"))
		o.SessionEnded(ended("c"))
		synctest.Wait() // these two are on their way
		for range 100 {
			o.SessionEnded(ended("c"))
		}
		require.Zero(t, time.Since(began))
		require.EqualValues(t, 92, e.Dropped(), "a place or two is left for others")
		o.SessionEnded(ended("d"))
		require.EqualValues(t, 92, e.Dropped())
		require.NoError(t, e.Close(t.Context()))
		n := 0
		for _, d := range s.deliveries(t) {
			n += len(d.Events)
		}
		require.Equal(t, 11, n)
	})
}

func TestCloseGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{wait: time.Hour}
		e := s.events(t, func(o *webhook.EventOptions) { o.Batch = 2 })
		for range 5 {
			e.Observer().SessionEnded(ended("c"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		err := e.Close(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "5 events")
		require.Equal(t, 10*time.Second, time.Since(began))
		require.EqualValues(t, 5, e.Dropped())
	})
}

// A ban may end when JSON has no more years. The events that it shares a request with are sent all
// the same, and without further attempts.
func TestABanBeyondTheYears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		e := s.events(t, nil)
		o := e.Observer()
		began := time.Now()
		o.Connected(hooks.Connected{Client: jane(), SessionPresent: true})
		o.Banned(banned(hooks.BanClient, "c1", "for good",
			time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)))
		require.NoError(t, e.Close(t.Context()))
		require.Zero(t, time.Since(began))
		require.Zero(t, e.Dropped())
		ds := s.deliveries(t)
		require.Len(t, ds, 1)
		require.Len(t, ds[0].Events, 2)
		require.Equal(t, 9999, ds[0].Events[1].Until.Year())
	})
}
