package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// serve serves a Handler in memory, so that time is that of the bubble.
func (b *bench) serve() (dial func() net.Conn) {
	l := listeners.NewMemory()
	srv := &http.Server{Handler: b.h}
	go srv.Serve(l) // ends with srv
	b.t.Cleanup(func() { srv.Close() })
	return func() net.Conn {
		c, err := l.Dial()
		require.NoError(b.t, err)
		b.t.Cleanup(func() { c.Close() })
		return c
	}
}

// open opens the stream of events on a connection.
func (b *bench) open(c net.Conn) {
	require.NoError(b.t, b.request("GET", at("events"), "").Write(c))
}

// read opens the stream, and returns what is read of it.
func (b *bench) read(c net.Conn) *bufio.Reader { return b.readAt(c, "events") }

// readAt opens the stream at a path, and returns what is read of it.
func (b *bench) readAt(c net.Conn, path string, query ...string) *bufio.Reader {
	require.NoError(b.t, b.request("GET", at(path, query...), "").Write(c))
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(b.t, err)
	require.Equal(b.t, "text/event-stream", answer.Header.Get("Content-Type"))
	return bufio.NewReader(answer.Body)
}

// next reads events of a stream until there is one of that name, and returns its data.
func next(t *testing.T, r *bufio.Reader, name string) []byte {
	for {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		if strings.TrimRight(line, "\r\n") != "event: "+name {
			continue
		}
		data, err := r.ReadString('\n')
		require.NoError(t, err)
		return []byte(strings.TrimPrefix(data, "data: "))
	}
}

func TestAStreamHasASampleAtOnceAndThenEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		synctest.Wait() // the first sample
		r := b.read(b.serve()())
		var s statsView
		require.NoError(t, json.Unmarshal(next(t, r, "stats"), &s))
		require.Zero(t, s.Connections)
		first := s.At
		b.connect("c")
		require.NoError(t, json.Unmarshal(next(t, r, "stats"), &s))
		require.Equal(t, 1, s.Connections)
		require.Equal(t, defaultInterval, s.At.Sub(first))

		var h historyView
		b.get(&h, "history")
		require.Len(t, h.At, 2)
		require.Equal(t, []float64{0, 1}, h.Columns["connections"])
		for _, column := range columns {
			require.Len(t, h.Columns[column.name], 2, column.name)
		}
		b.h.Close()
		_, err := io.Copy(io.Discard, r)
		require.NoError(t, err, "the stream ends well")
		require.Empty(t, b.h.streams, "Close ends the streams")
	})
}

func TestAnHourIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		var h historyView
		b.get(&h, "history")
		require.Len(t, h.At, int(kept/defaultInterval))
		require.InDelta(t, (kept - defaultInterval).Seconds(), h.At[len(h.At)-1]-h.At[0], 0.1)
	})
}

// A thousand readers that read nothing delay neither the broker nor the one that reads, and their
// streams end.
func TestSlowReadersCostNobodyAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.MaxStreams = 1001 })
		dial := b.serve()
		for range 1000 {
			b.open(dial())
		}
		r := b.read(dial())
		var s statsView
		require.NoError(t, json.Unmarshal(next(t, r, "stats"), &s))
		synctest.Wait() // all are open
		require.Equal(t, "streams", b.refused(503, "events").Code, "there is a most of streams")
		require.Len(t, b.h.streams, 1001)
		for last := s.At; len(b.h.streams) > 1; last = s.At {
			require.NoError(t, json.Unmarshal(next(t, r, "stats"), &s))
			require.Equal(t, defaultInterval, s.At.Sub(last), "the reader misses none")
		}
		require.Len(t, b.broker.Failures(), 0)
	})
}

// Events that nobody takes are not kept.
func TestAHubWaitsForNobody(t *testing.T) {
	var x hub
	x.send([]byte("nobody is there"))
	events, leave := x.join()
	for range 10 * waiting {
		x.send([]byte("e"))
	}
	require.Len(t, events, waiting)
	leave()
	x.send([]byte("e"))
	require.Empty(t, x.streams)
}

func TestEventsHaveNoLineOfTheirOwn(t *testing.T) {
	require.Equal(t, "event: x\ndata: a\ndata: event: b\n\n",
		string(event("x", []byte("a\r\nevent: b\n"))))
}

func TestSecurityEvents(t *testing.T) {
	events := NewEvents()
	b := newBench(t, func(o *Options) { o.Events = map[string]*Events{"main": events} })
	o := events.Observer()
	client := &hooks.Client{ID: "<b>", Username: "ann", HasUsername: true,
		RemoteAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1}}
	o.Refused(hooks.Refused{Client: client, Code: packets.BadUserNameOrPassword,
		Err: errors.New("no such user")})
	o.Denied(hooks.Denied{Client: client, Action: hooks.ActionPublish,
		Topic: strings.Repeat("t", 9999)})
	o.Revoked(hooks.Revoked{Client: client, Filter: "f"})
	o.Banned(hooks.Banned{Ban: dunlin.Ban{Kind: dunlin.BanUser, Value: "ann", Reason: "why"}})
	o.Panicked(hooks.Panicked{Client: client})
	o.StoreFailed(hooks.StoreFailed{Err: errors.New("disk")})
	o.StoreRecovered(hooks.StoreRecovered{})
	require.Nil(t, o.Published, "no message costs anything")
	require.Nil(t, o.Delivered)
	require.Nil(t, o.Dropped)
	var page page[securityEvent]
	b.get(&page, "security")
	var what []string
	for _, x := range page.Items {
		what = append(what, x.What)
		require.Less(t, len(x.About), 600)
	}
	require.Equal(t, []string{"store works", "store failed", "panic", "banned", "revoked", "denied",
		"refused"}, what)
	require.Equal(t, "192.0.2.7:1", page.Items[6].Remote)
	require.Equal(t, "no such user", page.Items[6].Reason)
	other := newBench(t)
	other.get(&page, "security")
	require.Empty(t, page.Items)
}

func TestARequestThatIsGivenUpEndsTheLook(t *testing.T) {
	b := newBench(t)
	for i := range 1100 {
		b.retain("t/" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + time.Duration(i).String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := b.request("GET", at("retained/count"), "").WithContext(ctx)
	require.Equal(t, "interrupted", asError(t, b.do(r, 503)).Code)
}
