package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks/auth"
)

// startDesk runs a server with -http, and returns the address of its listener and of the desk.
func startDesk(t *testing.T, args ...string) (broker, web string, printed *log) {
	t.Helper()
	users := write(t, "users", "ann:"+auth.Hash("secret", 1000), "joe:"+auth.Hash("pencil", 1000))
	at := make(chan string, 1)
	addrs, printed := startAs(t, func(o *options) {
		o.desk.listening = func(a net.Addr) { at <- a.String() }
	}, append([]string{"-listen", "127.0.0.1:0", "-http", ":0", "-http-users", users}, args...)...)
	return addrs[0], <-at, printed
}

// ask asks the desk, and returns the status and the answer.
func ask(t *testing.T, method, url, user, password, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	if user != "" {
		r.SetBasicAuth(user, password)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(text)
}

func TestTheDesk(t *testing.T) {
	broker, web, printed := startDesk(t, "-http-act", "ann")
	require.True(t, strings.HasPrefix(web, "127.0.0.1:"), "%s: without a host it is on loopback", web)
	connect(t, dial(t, broker), login{id: "c", name: "-", password: "-"})
	base := "http://" + web
	for _, tt := range []struct {
		what, method, path, user, password string
		status                             int
		want                               string
	}{
		{"nobody", "GET", "/", "", "", 401, "error"},
		{"a wrong password", "GET", "/", "ann", "wrong", 401, "error"},
		{"an unknown user", "GET", "/", "eve", "secret", 401, "error"},
		{"the page", "GET", "/", "joe", "pencil", 200, "<!doctype html>"},
		{"a client", "GET", "/api/v1/brokers/main/client?id=c", "joe", "pencil", 200, `"id":"c"`},
		{"metrics", "GET", "/metrics", "joe", "pencil", 200, `dunlin_connections{broker="main"} 1`},
		{"a probe, by anybody", "GET", "/readyz", "", "", 200, `"ok":true`},
		{"an action of one who may look", "POST", "/api/v1/brokers/main/disconnect", "joe",
			"pencil", 403, "error"},
		{"an action", "POST", "/api/v1/brokers/main/disconnect", "ann", "secret", 200, `"count":1`},
	} {
		status, text := ask(t, tt.method, base+tt.path, tt.user, tt.password, `{"id":"c"}`)
		require.Equal(t, tt.status, status, "%s: %s", tt.what, text)
		require.Contains(t, text, tt.want, tt.what)
	}
	require.Contains(t, printed.String(), "admin action")
	require.NotContains(t, printed.String(), "secret")
	r, err := http.NewRequestWithContext(t.Context(), "GET", base+"/livez", nil)
	require.NoError(t, err)
	r.Host = "evil.example"
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	answer.Body.Close()
	require.Equal(t, 421, answer.StatusCode, "a name that is pointed here")
}

func TestTracesOfTheDesk(t *testing.T) {
	dir := t.TempDir()
	_, web, _ := startDesk(t, "-http-act", "*", "-http-traces", dir)
	path := "http://" + web + "/api/v1/brokers/main/"
	status, text := ask(t, "POST", path+"start-trace", "joe", "pencil",
		`{"name":"x","format":"json","id":"c"}`)
	require.Equal(t, 200, status, text)
	status, text = ask(t, "POST", path+"stop-trace", "joe", "pencil", `{"name":"x"}`)
	require.Equal(t, 200, status, text)
	require.FileExists(t, filepath.Join(dir, "x.jsonl"))
}

func TestFlagsOfTheDesk(t *testing.T) {
	users := write(t, "users", "ann:"+auth.Hash("secret", 1000))
	for want, args := range map[string][]string{
		"-http needs -http-users":   {"-http", "127.0.0.1:0"},
		"need -http":                {"-http-users", users},
		"-http-users: ":             {"-http", ":0", "-http-users", "/nowhere"},
		"-http: ":                   {"-http", "8080", "-http-users", users},
		"-http-act, -http-host and": {"-http-act", "ann"},
		"-http-traces need -http":   {"-http-traces", "."},
		"-http-connections: ":       {"-http", ":0", "-http-users", users, "-http-connections", "3"},
	} {
		_, err := parse(args)
		require.ErrorContains(t, err, want)
	}
	for addr, want := range map[string]string{":1": "127.0.0.1:1", "0.0.0.0:1": "0.0.0.0:1",
		"[::1]:1": "[::1]:1"} {
		got, err := onLoopback(addr)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestTop(t *testing.T) {
	broker, web, _ := startDesk(t)
	connect(t, dial(t, broker), login{id: "\x1b[31mred", name: "joe", password: "-"})
	t.Setenv("DUNLIN_PASSWORD", "pencil")
	var out bytes.Buffer
	require.NoError(t, command([]string{"top", "-user", "joe", "-once", web}, nil, &out))
	require.Contains(t, out.String(), "clients 1 ")
	require.Contains(t, out.String(), `"\x1b[31mred"`)
	require.NotContains(t, out.String(), "\x1b", "a name of a client commands no terminal")
	t.Setenv("DUNLIN_PASSWORD", "wrong")
	err := command([]string{"top", "-user", "joe", "-once", "http://" + web + "/"}, nil, &out)
	require.ErrorContains(t, err, "the name or the password is wrong")
	require.ErrorContains(t, command([]string{"top"}, nil, &out), "expected one address")
}
