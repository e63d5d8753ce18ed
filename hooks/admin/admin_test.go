package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// example is the path of a route, for the broker of a bench.
func (x *route) example() string {
	return strings.NewReplacer("{broker}", "main", "{$}", "").Replace(x.path)
}

func TestEveryRouteTakesItsRole(t *testing.T) {
	b := newBench(t)
	require.Greater(t, len(b.h.routes), 20)
	for i := range b.h.routes {
		x := &b.h.routes[i]
		for _, tt := range []struct {
			role string
			want int
		}{{"", 401}, {"nobody", 403}, {"reader", 403}} {
			if tt.role == "reader" && x.role != RoleAct {
				continue
			}
			b.role = tt.role
			b.do(b.request(x.method, x.example(), "{}"), tt.want)
		}
	}
	for _, path := range []string{"/nowhere", "/api/v1/brokers/none/clients", "/api/v2"} {
		b.role = ""
		b.do(b.request("GET", path, ""), 401)
		b.role = "nobody"
		b.do(b.request("GET", path, ""), 403)
		b.role = "reader"
		b.do(b.request("GET", path, ""), 404)
	}
}

func TestWithoutAuthorizeEverythingIsRefused(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Authorize, o.OpenProbes = nil, true })
	for i := range b.h.routes {
		b.do(b.request(b.h.routes[i].method, b.h.routes[i].example(), "{}"), 403)
	}
}

func TestARequestForAnotherHostIsRefused(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Hosts = []string{"Broker.example"} })
	for host, want := range map[string]int{
		"127.0.0.1:8080": 200, "[::1]:8080": 200, "[::1]": 200, "192.0.2.7": 200,
		"localhost": 200, "localhost:1": 200, "desk.localhost:80": 200,
		"broker.example": 200, "BROKER.example.:8443": 200,
		"evil.example": 421, "broker.example.evil.example": 421, "127.0.0.1.evil.example": 421,
		"localhost.evil.example:8080": 421, "": 421,
	} {
		r := b.request("GET", at("clients"), "")
		r.Host = host
		b.do(r, want)
	}
}

func TestARequestOfAnotherSiteIsRefused(t *testing.T) {
	b := newBench(t)
	b.broker.Client(t, "victim")
	for _, tt := range []struct{ name, header, value string }{
		{"a form or script of another site", "Sec-Fetch-Site", "cross-site"},
		{"a page of a neighbour", "Sec-Fetch-Site", "same-site"},
		{"an old browser", "Origin", "https://evil.example"},
		{"a page without origin", "Origin", "null"},
	} {
		r := b.request("POST", at("disconnect"), `{"id":"victim"}`)
		r.Header.Del("Sec-Fetch-Site")
		r.Header.Set(tt.header, tt.value)
		require.Equal(t, "cross_site", asError(t, b.do(r, 403)).Code, tt.name)
	}
	// A form can send text/plain without a question of the browser, but no JSON.
	r := b.request("POST", at("disconnect"), `{"id":"victim"}`)
	r.Header.Set("Content-Type", "text/plain")
	require.Equal(t, "content_type", asError(t, b.do(r, 415)).Code)
	var c clientView
	b.get(&c, "client", "id", "victim")
	require.True(t, c.Connected, "no request has done anything")
}

func TestBodiesAreSmallAndKnown(t *testing.T) {
	b := newBench(t)
	large := `{"id":"` + strings.Repeat("x", 10<<20) + `"}`
	require.Equal(t, "too_large", b.actRefused(413, "disconnect", large).Code)
	for _, body := range []string{"", "{", "[]", "null null", `{"id":"a"} {}`, `{"id":1}`,
		`{"id":"a","more":1}`, "{\"id\":\"a\x01\"}"} {
		require.Equal(t, "bad_json", b.actRefused(400, "disconnect", body).Code, body)
	}
}

func TestWhatAPathCannotBe(t *testing.T) {
	b := newBench(t)
	for path, want := range map[string]int{
		"/api/v1/../../etc/passwd": 404, "/%2e%2e/%2e%2e/etc/passwd": 404, "//evil.example/": 404,
		"/api/v1/brokers/main": 404, "/web/index.html": 404, "/admin.go": 404,
		"/api/v1/brokers/..%2fmain/clients": 404, "/api/v1/brokers/%3Cscript%3E/clients": 404,
	} {
		text := b.do(b.request("GET", path, ""), want)
		require.NotContains(t, text, "<", path)
		asError(t, text)
	}
	for method, path := range map[string]string{"DELETE": "clients", "PUT": "ban"} {
		b.do(b.request(method, at(path), "{}"), 405)
	}
	b.do(b.request("GET", at("ban"), ""), 405)
}

func TestAQueryHasNoUnknownParameters(t *testing.T) {
	b := newBench(t)
	for _, query := range []string{"limit=0", "limit=501", "limit=x", "limit=-1", "nothing=1",
		"limit=1&limit=2", "after=%25", "connected=yes", "address=nowhere", "sort=beauty", "a=%zz",
		"sort=queued&after=eA"} {
		asError(t, b.do(b.request("GET", at("clients")+"?"+query, ""), 400))
	}
}

func TestThePageLoadsOnlyItself(t *testing.T) {
	b := newBench(t)
	w := httptest.NewRecorder()
	b.h.ServeHTTP(w, b.request("GET", "/", ""))
	require.Equal(t, 200, w.Code)
	csp := w.Header().Get("Content-Security-Policy")
	require.Contains(t, csp, "default-src 'none'")
	require.NotContains(t, csp, "unsafe")
	require.Contains(t, csp, "frame-ancestors 'none'")
	require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	page := w.Body.String()
	require.NotContains(t, page, "<style")
	require.NotContains(t, page, " style=")
	require.NotContains(t, page, "onclick")
	require.NotContains(t, page, "http")
}

func TestProbes(t *testing.T) {
	b := newBench(t, func(o *Options) { o.OpenProbes = true })
	for _, role := range []string{"", "nobody", "reader"} {
		b.role = role
		require.JSONEq(t, `{"ok":true}`, b.do(b.request("GET", "/livez", ""), 200))
		require.JSONEq(t, `{"ok":true}`, b.do(b.request("GET", "/readyz", ""), 200))
	}
	b.broker.Broker().Close()
	require.JSONEq(t, `{"ok":true}`, b.do(b.request("GET", "/livez", ""), 200))
	require.Contains(t, b.do(b.request("GET", "/readyz", ""), 503), "closed")
	b.role = ""
	require.JSONEq(t, `{"ok":false}`, b.do(b.request("GET", "/readyz", ""), 503),
		"whoever has no role is not told why")
}

func TestActionsAreAudited(t *testing.T) {
	var told []Record
	var logged bytes.Buffer
	b := newBench(t, func(o *Options) {
		o.Audit = func(x Record) { told = append(told, x) }
		o.Logger = slog.New(slog.NewJSONHandler(&logged, nil))
	})
	b.broker.Client(t, "c")
	b.act(1, "disconnect", `{"id":"c"}`)
	b.actRefused(404, "disconnect", `{"id":"c<b>\u001b[31m"}`)
	b.role = "reader"
	b.actRefused(403, "ban", `{"kind":"client","value":"c"}`)
	require.Len(t, told, 3)
	require.Equal(t, "disconnect", told[0].Action)
	require.Equal(t, "c", told[0].About)
	require.Equal(t, "actor", told[0].User)
	require.Equal(t, "main", told[0].Broker)
	require.NotEmpty(t, told[0].Remote)
	require.Empty(t, told[0].Err)
	require.NotEmpty(t, told[1].Err)
	require.Equal(t, "reader", told[2].User)
	require.NotEmpty(t, told[2].Err)
	require.NotContains(t, logged.String(), "\x1b", "the log escapes")
	var page page[Record]
	text := b.do(b.request("GET", api+"/audit?limit=2", ""), 200)
	require.NoError(t, json.Unmarshal([]byte(text), &page))
	require.Equal(t, []string{"ban", "disconnect"},
		[]string{page.Items[0].Action, page.Items[1].Action}, "the newest first")
}

func TestARingKeepsTheNewest(t *testing.T) {
	values := func(all []counted[int]) (out []int) {
		for _, x := range all {
			out = append(out, x.value)
		}
		return out
	}
	r := ring[int]{most: 3}
	require.Empty(t, r.newest(5))
	for i := range 8 {
		r.add("", i)
	}
	require.Equal(t, []int{7, 6, 5}, values(r.newest(5)))
	require.Equal(t, []int{7, 6}, values(r.newest(2)))
	for i := range 100 {
		r.add("flood", i)
	}
	require.Equal(t, []int{99, 7, 6}, values(r.newest(5)), "a flood is one value")
	require.EqualValues(t, 100, r.newest(1)[0].count)
	for i := range 3 {
		r.add(strconv.Itoa(i), i)
	}
	require.Equal(t, []int{2, 1, 0}, values(r.newest(5)))
	require.Len(t, r.by, 3, "keys go with their values")
}

func TestBasic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checks := 0
		authorize := Basic(func(_ context.Context, user, password string) (Role, error) {
			checks++
			if user == "ann" && password == "secret" {
				return RoleAct, nil
			}
			return RoleNone, nil
		})
		ask := func(remote, user, password string) int {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = remote
			r.SetBasicAuth(user, password)
			who, err := authorize(r)
			if err != nil {
				return asProblem(err).status
			}
			require.Equal(t, Identity{"ann", RoleAct}, who)
			return 200
		}
		_, err := authorize(httptest.NewRequest("GET", "/", nil))
		require.Equal(t, 401, asProblem(err).status)
		require.Equal(t, 200, ask("192.0.2.1:1", "ann", "secret"))
		require.Equal(t, 200, ask("192.0.2.1:2", "ann", "secret"))
		require.Equal(t, 1, checks, "a right password is remembered")
		require.Equal(t, 401, ask("192.0.2.1:3", "ann", "wrong"))
		require.Equal(t, 401, ask("192.0.2.1:3", "ann\x00secret", ""))
		time.Sleep(basicKept)
		require.Equal(t, 200, ask("192.0.2.1:1", "ann", "secret"))
		require.Equal(t, 4, checks, "but not for long")

		for i := range basicFailures {
			require.Equal(t, 401, ask("[2001:db8::1]:1", "ann", "guess"), i)
		}
		require.Equal(t, 429, ask("[2001:db8::2]:1", "ann", "guess"), "the same network")
		require.Equal(t, 200, ask("[2001:db8::2]:1", "ann", "secret"), "who is known is not kept out")
		require.Equal(t, 401, ask("192.0.2.1:1", "ann", "guess"), "another network")
		time.Sleep(basicWindow + 1)
		require.Equal(t, 401, ask("[2001:db8::1]:1", "ann", "guess"))
	})
}

func TestTablesAreBounded(t *testing.T) {
	table := map[int]int{}
	for i := range 2 * basicEntries {
		put(table, i, i)
	}
	require.Len(t, table, basicEntries)
}

func TestMetrics(t *testing.T) {
	b := newBench(t)
	b.broker.Client(t, "c")
	r := b.request("GET", "/metrics", "")
	text := b.do(r, 200)
	require.Contains(t, text, "# TYPE dunlin_connections gauge\n"+
		"dunlin_connections{broker=\"main\"} 1\n")
	require.Contains(t, text, `dunlin_info{broker="main",version="`+dunlin.Version+`"} 1`)
}

func TestSeveralBrokers(t *testing.T) {
	one, two := newBench(t), newBench(t)
	h := New(map[string]*dunlin.Broker{"b/1": one.broker.Broker(), "a": two.broker.Broker()},
		Options{Authorize: byRole})
	defer h.Close()
	one.h = h
	one.broker.Client(t, "of one")
	require.Contains(t, one.do(one.request("GET", api+"/brokers/b%2F1/clients", ""), 200), "of one")
	require.NotContains(t, one.do(one.request("GET", api+"/brokers/a/clients", ""), 200), "of one")
	require.Contains(t, one.do(one.request("GET", api+"/me", ""), 200), `"brokers":["a","b/1"]`)
	require.Contains(t, one.do(one.request("GET", "/metrics", ""), 200),
		"dunlin_connections{broker=\"a\"} 0\ndunlin_connections{broker=\"b/1\"} 1\n")
}

func TestTheLogLevel(t *testing.T) {
	var level slog.LevelVar
	b := newBench(t, func(o *Options) { o.LogLevel = &level })
	b.do(b.request("POST", api+"/log-level", `{"level":"debug"}`), 200)
	require.Equal(t, slog.LevelDebug, level.Level())
	require.Contains(t, b.do(b.request("GET", api+"/me", ""), 200), `"log_level":"DEBUG"`)
	b.do(b.request("POST", api+"/log-level", `{"level":"loud"}`), 400)
	other := newBench(t)
	other.do(other.request("POST", api+"/log-level", `{"level":"WARN"}`), 501)
}

func TestOptionsHaveBounds(t *testing.T) {
	h := New(nil, Options{Interval: 1, MaxStreams: -1})
	defer h.Close()
	require.Equal(t, time.Second, h.opts.Interval)
	require.Equal(t, defaultMaxStreams, h.opts.MaxStreams)
	require.Equal(t, "act", RoleAct.String())
	require.NoError(t, h.Close())
	require.Equal(t, http.StatusUnprocessableEntity,
		asProblem(packets.Errorf(packets.QuotaExceeded, "full")).status)
}
