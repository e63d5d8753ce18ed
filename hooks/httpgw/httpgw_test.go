package httpgw

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// An opened is a door over a broker where users have their name as the password, and each the
// topics below the name.
type opened struct {
	t   *testing.T
	b   *dunlin.Broker
	h   *Handler
	url string
}

func open(t *testing.T, edit func(o *Options)) *opened {
	users := hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		if r.Connect.Username == "" || string(r.Connect.Password) != r.Connect.Username {
			return packets.Errorf(packets.BadUserNameOrPassword, "no")
		}
		return nil
	})
	rules := hooks.AuthorizerFunc(func(_ context.Context, r *hooks.AccessRequest) error {
		if strings.HasPrefix(r.Topic, r.Client.Identity.Principal+"/") {
			return nil
		}
		return packets.Errorf(packets.NotAuthorized, "no")
	})
	b, err := dunlin.New(dunlin.Config{Authenticator: users, Authorizer: rules,
		Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	o := Options{Authenticator: users, Authorizer: rules, Origins: []string{"https://page.example"}}
	if edit != nil {
		edit(&o)
	}
	h, err := New(b, o)
	require.NoError(t, err)
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		h.Close()
		s.Close()
		b.Close()
	})
	return &opened{t, b, h, s.URL}
}

// do sends a request of a user and returns the status and the body.
func (d *opened) do(user, method, path, body string) (int, string) {
	d.t.Helper()
	r, err := http.NewRequest(method, d.url+path, strings.NewReader(body))
	require.NoError(d.t, err)
	if user != "" {
		r.SetBasicAuth(user, user)
	}
	a, err := http.DefaultClient.Do(r)
	require.NoError(d.t, err)
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	require.NoError(d.t, err)
	return a.StatusCode, string(text)
}

func TestPublishAndReadRetained(t *testing.T) {
	d := open(t, func(o *Options) { o.MaxBody = 10 })
	code, text := d.do("ann", "POST", "/topics/ann/a?qos=1&retain=1", "one")
	require.Equal(t, 200, code, text)
	require.JSONEq(t, `{"matched":0,"acknowledged":0,"lost":0}`, text)
	code, text = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, 200, code)
	require.Equal(t, "one", text)
	code, text = d.do("ann", "GET", "/retained?filter=ann/%23", "")
	require.Equal(t, 200, code)
	require.JSONEq(t, `[{"topic":"ann/a","payload":"b25l","qos":1,"retain":true}]`, text)
	sub, err := d.b.Subscribe(t.Context(), "ann/#", &dunlin.SubscribeOptions{QoS: 1,
		RetainHandling: dunlin.RetainHandlingSkip})
	require.NoError(t, err)
	go func() { // ends with the message
		sub.Next(t.Context())
	}()
	_, text = d.do("ann", "POST", "/topics/ann/b?qos=1&wait=60", "two")
	require.JSONEq(t, `{"matched":1,"acknowledged":1,"lost":0}`, text)

	for _, x := range []struct {
		user, method, path, body string
		want                     int
	}{
		{"", "POST", "/topics/ann/a", "x", 401},
		{"bob", "POST", "/topics/ann/a", "x", 403},
		{"bob", "GET", "/topics/ann/a", "", 403},
		{"bob", "GET", "/retained?filter=%23", "", 403},
		{"bob", "GET", "/events?filter=ann/%23", "", 403},
		{"bob", "GET", "/poll?filter=ann/%23", "", 403},
		{"bob", "GET", "/events?filter=$share/g/bob/x", "", 400},
		{"ann", "GET", "/topics/ann/none", "", 404},
		{"ann", "POST", "/topics/ann/%23", "x", 400},
		{"ann", "POST", "/topics/ann/a?qos=3", "x", 400},
		{"ann", "POST", "/topics/ann/a", "more than ten bytes", 413},
		{"ann", "POST", "/topics/$SYS/a", "x", 403},
		{"ann", "DELETE", "/topics/ann/a", "", 405},
	} {
		code, text := d.do(x.user, x.method, x.path, x.body)
		require.Equal(t, x.want, code, "%s %s: %s", x.method, x.path, text)
	}
	require.NoError(t, d.b.Ban(dunlin.Ban{Kind: dunlin.BanUser, Value: "ann"}))
	code, _ = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, 403, code)
}

// A stream reads events.
type stream struct {
	lines *bufio.Scanner
	last  string
	close func()
}

func (d *opened) stream(filter, last string) *stream {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, "GET", d.url+"/events?filter="+filter, nil)
	require.NoError(d.t, err)
	r.SetBasicAuth("ann", "ann")
	r.Header.Set("Last-Event-ID", last)
	a, err := http.DefaultClient.Do(r)
	require.NoError(d.t, err)
	require.Equal(d.t, 200, a.StatusCode)
	end := func() { cancel(); a.Body.Close() }
	d.t.Cleanup(end)
	return &stream{lines: bufio.NewScanner(a.Body), close: end}
}

// next returns the payload of the next event.
func (s *stream) next(t *testing.T) string {
	t.Helper()
	for s.lines.Scan() {
		if id, ok := strings.CutPrefix(s.lines.Text(), "id: "); ok {
			s.last = id
		}
		if data, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok {
			var e event
			if json.Unmarshal([]byte(data), &e) != nil {
				return "lost " + data
			}
			return string(e.Payload)
		}
	}
	return "the end"
}

func (d *opened) publish(payload string) {
	d.t.Helper()
	code, text := d.do("ann", "POST", "/topics/ann/a?qos=1", payload)
	require.Equal(d.t, 200, code, text)
}

func TestEventsResumeWhereTheyWere(t *testing.T) {
	d := open(t, func(o *Options) { o.Keep = 3 })
	s := d.stream("ann/a", "")
	d.publish("one")
	require.Equal(t, "one", s.next(t))
	first := s.last
	d.publish("two")
	require.Equal(t, "two", s.next(t))
	s.close()
	d.publish("three")
	s = d.stream("ann/a", s.last)
	require.Equal(t, "three", s.next(t))
	d.publish("four")
	require.Equal(t, "four", s.next(t))
	s = d.stream("ann/a", first)
	for _, want := range []string{"two", "three", "four"} {
		require.Equal(t, want, s.next(t))
	}
	d.publish("five")
	require.Equal(t, "five", s.next(t))
	s = d.stream("ann/a", first)
	require.Equal(t, "lost 1", s.next(t), "only three are kept")
	require.Equal(t, "three", s.next(t))
	s = d.stream("ann/a", "another-7")
	require.Equal(t, "lost 0", s.next(t))

	poll := func(after string, wait int) (events []event, next string) {
		path := fmt.Sprintf("/poll?filter=ann/a&after=%s&wait=%d", after, wait)
		code, text := d.do("ann", "GET", path, "")
		require.Equal(t, 200, code, text)
		var got struct {
			Events []event
			After  string
		}
		require.NoError(t, json.Unmarshal([]byte(text), &got))
		return got.Events, got.After
	}
	none, after := poll("", 0)
	require.Empty(t, none)
	d.publish("six")
	events, after := poll(after, 60)
	require.Equal(t, "six", string(events[0].Payload))
	none, _ = poll(after, 0)
	require.Empty(t, none)
	require.Equal(t, "six", s.next(t))
	d.h.Close()
	require.Equal(t, "the end", s.next(t))
}

// A reader that takes nothing holds up nobody.
func TestAFrozenReaderCostsTheOthersNothing(t *testing.T) {
	d := open(t, func(o *Options) { o.Keep = 2000 })
	frozen := d.stream("ann/a", "")
	var all []*stream
	for range 20 {
		all = append(all, d.stream("ann/a", ""))
	}
	payload := strings.Repeat("x", 20_000)
	began := time.Now()
	for i := range 100 {
		m := &dunlin.Message{Topic: "ann/a", Payload: []byte(fmt.Sprint(i, " ", payload))}
		require.NoError(t, d.b.Publish(t.Context(), m))
	}
	for _, s := range all {
		s.lines.Buffer(nil, 1<<20)
		for i := range 100 {
			text, _, _ := strings.Cut(s.next(t), " ")
			require.Equal(t, fmt.Sprint(i), text)
		}
	}
	require.Less(t, time.Since(began), streamWrite, "nobody waited for the frozen one")
	frozen.close()
}

// The file describes the paths that there are.
func TestTheOpenAPIFileHasAllRoutes(t *testing.T) {
	d := open(t, nil)
	var file struct{ Paths map[string]map[string]any }
	_, text := d.do("", "GET", "/openapi.json", "")
	require.NoError(t, json.Unmarshal([]byte(text), &file))
	var described []string
	for path, methods := range file.Paths {
		for method := range methods {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	var routes []string
	for pattern := range maps.Keys(d.h.routes()) {
		routes = append(routes, strings.ReplaceAll(pattern, "...", ""))
	}
	slices.Sort(routes)
	slices.Sort(described)
	require.Equal(t, routes, described)
}

// Pages of other sites may come in if they are named.
func TestOrigins(t *testing.T) {
	d := open(t, nil)
	for origin, want := range map[string]string{"https://page.example": "https://page.example",
		"https://evil.example": ""} {
		r, _ := http.NewRequest("OPTIONS", d.url+"/topics/ann/a", nil)
		r.Header.Set("Origin", origin)
		a, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		a.Body.Close()
		require.Equal(t, want, a.Header.Get("Access-Control-Allow-Origin"))
	}
}

// What somebody makes the door keep has bounds: filters, and the bytes of events.
func TestWhatIsKeptForReadersHasBounds(t *testing.T) {
	x := open(t, func(o *Options) { o.MaxFilters, o.KeepBytes = 2, 1000 })
	f := &x.h.feeds
	v := &visitor{client: &hooks.Client{}}
	v.client.Identity.Principal = "ann"
	var all []*feed
	for _, filter := range []string{"ann/1", "ann/2"} {
		one, err := f.enter(v, filter)
		require.NoError(t, err)
		all = append(all, one)
	}
	_, err := f.enter(v, "ann/3")
	require.Equal(t, packets.QuotaExceeded, packets.CodeOf(err))

	one := all[0]
	one.mu.Lock()
	for range 5 {
		one.keepLocked(event{Topic: "a", Payload: make([]byte, 300)})
	}
	one.keepLocked(event{Topic: "a", Payload: make([]byte, 2000)})
	one.keepLocked(event{Topic: "b", Payload: make([]byte, 400)})
	one.mu.Unlock()
	require.LessOrEqual(t, f.bytes.Load(), int64(1000))
	events, lost, next, _ := one.from(0)
	require.EqualValues(t, 6, lost)
	require.Len(t, events, 1)
	require.EqualValues(t, 7, next)

	for i, one := range all {
		f.leave(one)
		f.mu.Lock()
		require.Equal(t, len(all)-i, len(f.of))
		require.True(t, f.endIdleLocked())
		f.mu.Unlock()
	}
	require.Empty(t, f.users)
	f.tasks.Wait()
	require.Zero(t, f.bytes.Load())
}
