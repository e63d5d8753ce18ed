package admin

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks/trace"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestTraces(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret.txt"), []byte("secret"), 0o600))
	b := newBench(t)
	b.actRefused(501, "start-trace", `{"name":"x","format":"text"}`)
	r := trace.New(b.broker.Broker(), trace.Options{Dir: dir})
	defer r.Close()
	b.h.brokers["main"].traces.recorder = r
	b.act(1, "start-trace", `{"name":"kitchen","format":"text","id":"c"}`)
	c := b.broker.Client(t, "c")
	c.Send(&packets.Publish{Topic: []byte("home"), Payload: []byte("hello")}, &packets.Pingreq{})
	c.WantType("an answer", packets.TypePingresp)
	b.actRefused(400, "start-trace", `{"name":"kitchen","format":"text"}`)
	b.act(1, "stop-trace", `{"name":"kitchen"}`)
	b.actRefused(404, "stop-trace", `{"name":"kitchen"}`)
	var page page[traceView]
	b.get(&page, "traces")
	require.Len(t, page.Items, 1)
	require.False(t, page.Items[0].Running)
	require.Positive(t, page.Items[0].Packets)
	require.Equal(t, 1, page.Items[0].Files)
	text := b.do(b.request("GET", at("trace-file", "name", "kitchen"), ""), 200)
	require.Contains(t, text, "PUBLISH")
	w := httptest.NewRecorder()
	b.h.ServeHTTP(w, b.request("GET", at("trace-file", "name", "kitchen"), ""))
	require.Equal(t, "close", w.Header().Get("Connection"), "the deadline is only for this answer")
	b.role = "reader"
	b.refused(403, "trace-file", "name", "kitchen")
	b.role = "actor"
	for _, name := range []string{"../secret", "secret", "..", "secret.txt", "/etc/passwd"} {
		b.refused(404, "trace-file", "name", name)
	}
	b.refused(404, "trace-file", "name", "kitchen", "file", "3")
	for _, body := range []string{`{"name":"../x","format":"text"}`, `{"name":"x","format":"doc"}`,
		`{"name":"","format":"text"}`, `{"name":"x","format":"text","seconds":-1}`,
		`{"name":"x","format":"text","seconds":99999999}`,
		`{"name":"x","format":"text","address":"nowhere"}`} {
		b.actRefused(400, "start-trace", body)
	}
}

func TestTracesThatAreRememberedAreBounded(t *testing.T) {
	var x traces
	for i := range 3 * keptTraces {
		x.add(&trace.Trace{Name: string(rune('a' + i))})
	}
	require.Len(t, x.list(), keptTraces+1)
	x.add(&trace.Trace{Name: x.list()[3].Name})
	require.Len(t, x.list(), keptTraces+1, "one with the same name takes the place of the other")
}
