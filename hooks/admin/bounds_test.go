package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Many refusals do not hide what else has happened, also if each has another name.
func TestAFloodOfRefusalsHidesNothing(t *testing.T) {
	events := NewEvents()
	b := newBench(t, func(o *Options) { o.Events = map[string]*Events{"main": events} })
	o := events.Observer()
	o.StoreFailed(hooks.StoreFailed{Err: errors.New("disk")})
	o.Panicked(hooks.Panicked{Client: &hooks.Client{ID: "victim"}})
	from := func(host byte, id string) *hooks.Client {
		return &hooks.Client{ID: id, Username: id, HasUsername: true,
			RemoteAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, host), Port: 1000}}
	}
	o.Refused(hooks.Refused{Client: from(1, "ann"), Code: packets.NotAuthorized})
	for i := range 5000 {
		o.Refused(hooks.Refused{Client: from(2, fmt.Sprint("id", i)), Code: packets.NotAuthorized})
		o.Denied(hooks.Denied{Client: from(2, "c"), Topic: fmt.Sprint("t", i)})
	}
	var list page[securityEvent]
	b.get(&list, "security", "limit", "500")
	found := map[string]uint64{}
	for _, x := range list.Items {
		found[x.What+" "+hostOf(x.Remote)] += x.Count
		require.False(t, x.First.After(x.At))
	}
	require.Equal(t, map[string]uint64{"store failed ": 1, "panic ": 1, "refused 192.0.2.1": 1,
		"refused 192.0.2.2": 5000, "denied 192.0.2.2": 5000}, found)
	for i := range 5000 { // many addresses
		o.Refused(hooks.Refused{Client: &hooks.Client{RemoteAddr: &net.UnixAddr{
			Name: fmt.Sprint(i)}}, Code: packets.NotAuthorized})
	}
	require.Len(t, events.refused.newest(10_000), keptEvents)
	require.Len(t, events.store.newest(10), 1)
}

// Whoever may only look cannot push the audit out.
func TestRefusedActionsDoNotHideTheAudit(t *testing.T) {
	b := newBench(t)
	b.broker.Client(t, "c")
	b.act(1, "disconnect", `{"id":"c"}`)
	b.role = "reader"
	for range 2 * keptRecords {
		b.actRefused(403, "ban", `{}`)
	}
	b.role = "actor"
	var list page[Record]
	text := b.do(b.request("GET", api+"/audit", ""), 200)
	require.NoError(t, json.Unmarshal([]byte(text), &list))
	require.Len(t, list.Items, 2)
	require.Equal(t, "ban", list.Items[0].Action)
	require.EqualValues(t, 2*keptRecords, list.Items[0].Count)
	require.Equal(t, "disconnect", list.Items[1].Action)
	require.Zero(t, list.Items[1].Count)
}

// Tokens that clients send as their User Names are secrets.
func TestTokensAreNotShown(t *testing.T) {
	const token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"
	events := NewEvents()
	b := newBench(t, func(o *Options) { o.Events = map[string]*Events{"main": events} })
	as := func(p *packets.Connect) { p.HasUsername, p.Username = true, token }
	b.broker.Client(t, "c", as)
	b.broker.Client(t, "gone", as).Disconnect()
	synthetic := &hooks.Client{ID: "c", HasUsername: true, Username: token}
	events.Observer().Refused(hooks.Refused{Client: synthetic, Code: packets.NotAuthorized})
	for _, path := range []string{"clients", "client?id=c", "ended", "security"} {
		text := b.do(b.request("GET", at("")+path, ""), 200)
		require.Contains(t, text, "(a token, ", path)
		require.NotContains(t, text, "c2ln", path)
	}
}

// Only so many requests look at a time; others wait for a bounded time, and give up with their
// client.
func TestLooksAreBounded(t *testing.T) {
	for _, tt := range []struct {
		name string
		of   func(b *bench) *places
		path []string
	}{
		{"all", func(b *bench) *places { return b.h.looks }, []string{"clients"}},
		{"a sorted list", func(b *bench) *places { return b.h.brokers["main"].whole },
			[]string{"clients", "sort", "queued"}},
		{"a count", func(b *bench) *places { return b.h.brokers["main"].whole },
			[]string{"retained/count"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				p := tt.of(b)
				for range cap(p.taken) {
					_, err := p.take(t.Context())
					require.NoError(t, err)
				}
				began, w := time.Now(), httptest.NewRecorder()
				b.h.ServeHTTP(w, b.request("GET", at(tt.path[0], tt.path[1:]...), ""))
				require.Equal(t, 503, w.Code)
				require.Equal(t, "5", w.Header().Get("Retry-After"))
				require.Equal(t, "busy", asError(t, w.Body.String()).Code)
				require.Equal(t, maxWait, time.Since(began))

				ctx, cancel := context.WithCancel(t.Context())
				gone := make(chan int)
				go func() {
					w := httptest.NewRecorder()
					b.h.ServeHTTP(w, b.request("GET", at(tt.path[0], tt.path[1:]...), "").
						WithContext(ctx))
					gone <- w.Code
				}()
				synctest.Wait()
				require.EqualValues(t, 1, p.waiting.Load())
				before := time.Now()
				cancel()
				require.Equal(t, 503, <-gone)
				require.Equal(t, before, time.Now(), "nobody waits for a client that has gone")
				p.waiting.Store(maxQueue)
				b.refused(503, tt.path[0], tt.path[1:]...)
				require.Equal(t, before, time.Now(), "the queue is full")
				p.waiting.Store(0)
				<-p.taken
				b.do(b.request("GET", at(tt.path[0], tt.path[1:]...), ""), 200)
			})
		})
	}
}

// A page of another site can read nothing, and start nothing.
func TestAGETOfAnotherSiteIsRefused(t *testing.T) {
	b := newBench(t)
	headers := func(path string, pairs ...string) int {
		r := b.request("GET", path, "")
		for i := 0; i < len(pairs); i += 2 {
			r.Header.Set(pairs[i], pairs[i+1])
		}
		w := httptest.NewRecorder()
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // of a stream
		b.h.ServeHTTP(w, r.WithContext(ctx))
		return w.Code
	}
	for _, path := range []string{at("packets", "filter", "#"), at("events"), at("bans"),
		"/metrics", "/app.js"} {
		require.Equal(t, 403, headers(path, "Sec-Fetch-Site", "cross-site"), path)
		require.Equal(t, 403, headers(path, "Sec-Fetch-Site", "same-site"), path)
		require.Equal(t, 403, headers(path, "Origin", "https://evil.example"), path)
		require.Equal(t, 403, headers(path, "Origin", "null"), path)
		require.Equal(t, 403, headers(path, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode",
			"navigate", "Sec-Fetch-Dest", "document"), path)
		require.NotEqual(t, 403, headers(path), "a program: "+path)
		require.NotEqual(t, 403, headers(path, "Sec-Fetch-Site", "same-origin"), path)
		require.NotEqual(t, 403, headers(path, "Sec-Fetch-Site", "none"), path)
	}
	link := []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}
	require.Equal(t, 200, headers("/", append(link, "Sec-Fetch-Dest", "document")...), "a link")
	require.Equal(t, 403, headers("/", append(link, "Sec-Fetch-Dest", "iframe")...))
}

// Pages end before they are too large, and the next one goes on there.
func TestPagesAreBoundedInBytes(t *testing.T) {
	b := newBench(t)
	b.subscribe("c", "first")
	long := func(i int) string { return fmt.Sprintf("%03d", i) + strings.Repeat("x", 60_000) }
	const n = 40
	for i := range n {
		b.retain(long(i))
		b.act(1, "subscribe", `{"id":"c","filter":`+quote(long(i))+`}`)
		require.NoError(t, b.broker.Broker().Ban(hooks.Ban{Kind: hooks.BanClient, Value: long(i)}))
	}
	for _, tt := range []struct {
		path  string
		query []string
		field string
	}{
		{"retained", nil, "topic"}, {"topics", nil, "topic"}, {"bans", nil, "value"},
		{"subscriptions", []string{"id", "c"}, "filter"},
	} {
		var got []string
		pages := 0
		for after := ""; ; pages++ {
			var p struct {
				Items []map[string]any
				Next  string
			}
			text := b.do(b.request("GET", at(tt.path, append(tt.query, "limit", "500", "after",
				after)...), ""), 200)
			require.Less(t, len(text), 4<<20, tt.path)
			require.NoError(t, json.Unmarshal([]byte(text), &p))
			for _, x := range p.Items {
				if text := x[tt.field].(string); len(text) > 60_000 {
					got = append(got, text[:3])
				}
			}
			if after = p.Next; after == "" {
				break
			}
		}
		require.Greater(t, pages, 1, tt.path)
		require.Len(t, got, n, tt.path)
		require.IsIncreasing(t, got, tt.path)
	}
}

func TestAPagerHasRoomForOne(t *testing.T) {
	p := newPager(3)
	require.True(t, p.takes(10<<20), "the first one always")
	require.False(t, p.takes(1))
	p = newPager(2)
	require.True(t, p.takes(1))
	require.True(t, p.takes(1))
	require.False(t, p.takes(1))
}

func TestSubscriptionsOfAnOperator(t *testing.T) {
	b := newBench(t)
	c := b.broker.Client(t, "c")
	b.act(1, "subscribe", `{"id":"c","filter":"a/+","qos":1}`)
	b.act(1, "publish", `{"topic":"a/b","text":"hello"}`)
	m := c.WantType("the message", packets.TypePublish).(*packets.Publish)
	require.Equal(t, "hello", string(m.Payload))
	var list page[subscriptionView]
	b.get(&list, "subscriptions", "id", "c")
	require.Equal(t, []subscriptionView{{Filter: "a/+", QoS: 1, ByServer: true}}, list.Items)
	b.act(1, "unsubscribe", `{"id":"c","filter":"a/+"}`)
	require.Equal(t, "no_subscription", b.actRefused(404, "unsubscribe",
		`{"id":"c","filter":"a/+"}`).Code)
	c.Send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "own"}}})
	c.WantType("a SUBACK", packets.TypeSuback)
	b.actRefused(404, "unsubscribe", `{"id":"c","filter":"own"}`)
	b.get(&list, "subscriptions", "id", "c")
	require.Len(t, list.Items, 1, "what the client has made stays")
	b.act(1, "subscribe", `{"id":"later","filter":"b"}`)
	for _, body := range []string{`{"id":"c","filter":"a/#/b"}`, `{"id":"","filter":"a"}`,
		`{"id":"c","filter":""}`, `{"id":"$local/x","filter":"a"}`} {
		b.actRefused(422, "subscribe", body)
	}
	b.actRefused(400, "subscribe", `{"id":"c","filter":"a","qos":3}`)
}

// Somebody who asks for the packets of all topics and does not read them delays no message, and
// their Tap ends.
func TestAFilterThatMatchesEverythingDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		synctest.Wait()
		sub := b.broker.Client(t, "sub")
		sub.Send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "#"}}})
		sub.WantType("an answer", packets.TypeSuback)
		c := b.serve()()
		r := b.request("GET", at("packets", "filter", "#"), "")
		require.NoError(t, r.Write(c)) // and it reads nothing
		synctest.Wait()
		pub := b.broker.Client(t, "pub")
		began := time.Now()
		const n = 5000
		for i := range n {
			pub.Send(&packets.Publish{Topic: []byte("t"), Payload: make([]byte, 1000)})
			sub.WantType("message "+strconv.Itoa(i), packets.TypePublish)
		}
		require.Zero(t, time.Since(began))
		require.Zero(t, b.broker.Broker().Stats().MessagesDropped)
		time.Sleep(2 * patience)
		synctest.Wait()
		require.Empty(t, b.h.streams, "the stream has ended")
		for range 16 { // as many Taps as there may be
			_, err := b.broker.Broker().Tap(t.Context(), dunlin.TapOptions{})
			require.NoError(t, err)
		}
	})
}

// Whoever asks for large pages and does not read them keeps nobody from looking.
func TestWhoDoesNotReadAPageKeepsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for i := range 300 {
			require.NoError(t, b.broker.Broker().Publish(t.Context(), &dunlin.Message{Retain: true,
				Topic: "t/" + strconv.Itoa(i), Payload: bytes.Repeat([]byte("x"), maxShown)}))
		}
		dial := b.serve()
		for range 2 * looksAtOnce {
			require.NoError(t, b.request("GET", at("retained", "limit", "500"), "").Write(dial()))
		}
		synctest.Wait()
		began := time.Now()
		b.get(new(clientPage), "clients")
		b.get(new(clientPage), "clients", "sort", "queued")
		require.Zero(t, time.Since(began), "nobody waits")
	})
}
