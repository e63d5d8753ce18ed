package audit_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/audit"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

func jane() *hooks.Client {
	return &hooks.Client{
		ID: "c1", Username: "admin", HasUsername: true, Version: packets.V5,
		Identity:   hooks.Identity{Principal: "jane"},
		RemoteAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711},
		LocalAddr:  &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 8883},
	}
}

// records returns what h wrote, without times.
func records(t *testing.T, b *bytes.Buffer) (of []map[string]any) {
	t.Helper()
	for line := range strings.Lines(b.String()) {
		m := map[string]any{}
		require.NoError(t, json.Unmarshal([]byte(line), &m), "%s", line)
		require.NotEmpty(t, m["time"])
		delete(m, "time")
		of = append(of, m)
	}
	return of
}

// denied is the event that jane may not publish to a topic.
func denied(topic string, err error) hooks.Denied {
	return hooks.Denied{Client: jane(), Action: hooks.ActionPublish, Topic: topic,
		MountedTopic: topic,
		Err:          err}
}

func TestRecords(t *testing.T) {
	var b bytes.Buffer
	trail := audit.New(slog.NewJSONHandler(&b, nil), 0)
	o := trail.Observer()
	leaf := testcert.CA(t, "ca").Issue("sensor").Leaf
	secured := &hooks.Client{ID: "s",
		TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf},
			VerifiedChains: [][]*x509.Certificate{{leaf}}}}
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

	o.Connected(hooks.Connected{Client: jane(), SessionPresent: true})
	o.Connected(hooks.Connected{Client: secured})
	o.Refused(hooks.Refused{Client: &hooks.Client{ID: "c\n2"}, Code: packets.BadUserNameOrPassword,
		Err: errors.New("no such \"user\"")})
	o.Disconnected(hooks.Disconnected{Client: jane(), Code: packets.NormalDisconnection})
	o.Denied(denied("a/b", errors.New("acl:3: deny a/b")))
	o.Denied(denied("$SYS/x", nil))
	o.Revoked(hooks.Revoked{Client: jane(), Filter: "a/#", MountedFilter: "a/#",
		Err: errors.New("no rule")})
	o.Banned(hooks.Banned{Ban: hooks.Ban{Kind: hooks.BanClient, Value: "c1", Reason: "flapping",
		Until: until}})
	o.Banned(hooks.Banned{Ban: hooks.Ban{Kind: hooks.BanAddress, Value: "192.0.2.7",
		Reason: "by hand"}})
	o.Panicked(hooks.Panicked{Client: jane(), Value: "oh"})
	trail.Reload("acl file", nil)
	trail.Reload("acl file", errors.New("acl:1: nonsense"))
	o.Refused(hooks.Refused{Client: &hooks.Client{ID: strings.Repeat("ä", 300), HasUsername: true,
		Username: "eyJh.eyJz.c2ln"}, Code: packets.NotAuthorized})
	require.NoError(t, trail.Close(t.Context()))
	require.NoError(t, trail.Close(t.Context()), "twice does no harm")
	o.Connected(hooks.Connected{Client: jane()})

	var want []map[string]any
	client := `"client_id":"c1","user":"jane","remote":"192.0.2.7:4711","local":"198.51.100.1:8883"`
	require.NoError(t, json.Unmarshal([]byte(`[
		{"level":"INFO","msg":"connect accepted",`+client+`,"version":"`+packets.V5.String()+`","session_present":true},
		{"level":"INFO","msg":"connect accepted","client_id":"s","certificate":"`+auth.Fingerprint(leaf)+`","version":"`+packets.Version(0).String()+`","session_present":false},
		{"level":"WARN","msg":"connect refused","client_id":"c\n2","code":134,"reason":"Bad User Name or Password","err":"no such \"user\""},
		{"level":"INFO","msg":"disconnected",`+client+`,"code":0,"reason":"`+packets.NormalDisconnection.String()+`"},
		{"level":"WARN","msg":"access denied",`+client+`,"action":"publish","topic":"a/b","err":"acl:3: deny a/b"},
		{"level":"WARN","msg":"access denied",`+client+`,"action":"publish","topic":"$SYS/x"},
		{"level":"WARN","msg":"access revoked",`+client+`,"topic":"a/#","err":"no rule"},
		{"level":"WARN","msg":"banned","kind":"client","value":"c1","why":"flapping","until":"2026-01-02T03:04:05Z"},
		{"level":"WARN","msg":"banned","kind":"address","value":"192.0.2.7","why":"by hand"},
		{"level":"ERROR","msg":"panic",`+client+`,"err":"oh"},
		{"level":"INFO","msg":"reloaded","what":"acl file"},
		{"level":"ERROR","msg":"reload failed","what":"acl file","err":"acl:1: nonsense"},
		{"level":"WARN","msg":"connect refused","client_id":"`+strings.Repeat("ä", 256)+`...","user":"(a token, 7b6f9a38fba2b410)","code":135,"reason":"Not authorized"}
	]`), &want))
	require.Equal(t, want, records(t, &b))
}

// slow is a Handler that takes its time.
type slow struct {
	slog.Handler
	pause time.Duration
}

func (s slow) Handle(ctx context.Context, r slog.Record) error {
	time.Sleep(s.pause)
	return s.Handler.Handle(ctx, r)
}

// TestSlowHandler: the broker never waits, and what was lost is told.
func TestSlowHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		trail := audit.New(slow{slog.NewJSONHandler(&b, nil), time.Second}, 10)
		o := trail.Observer()
		began := time.Now()
		o.Connected(hooks.Connected{Client: jane()})
		synctest.Wait() // this one is being written
		for range 100 {
			o.Denied(denied("a", nil))
		}
		other := jane()
		other.RemoteAddr = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 8), Port: 4711}
		o.Connected(hooks.Connected{Client: other})
		trail.Reload("acl file", nil)
		require.Zero(t, time.Since(began))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		require.ErrorIs(t, trail.Close(ctx), context.DeadlineExceeded)
		require.NoError(t, trail.Close(t.Context()))
		require.Equal(t, 12*time.Second, time.Since(began))
		got := records(t, &b)
		require.Len(t, got, 12)
		require.Equal(t, map[string]any{"level": "ERROR", "msg": "records lost",
			"count": float64(92)},
			got[1])
		require.Equal(t, "connect accepted", got[10]["msg"],
			"one address does not keep the records of others out")
		require.Equal(t, "reloaded", got[11]["msg"])
	})
}

// failing is a Handler that fails for a while, as on a full disk.
type failing struct {
	slog.Handler
	n *int
}

func (f failing) Handle(ctx context.Context, r slog.Record) error {
	if *f.n--; *f.n >= 0 {
		return errors.New("no space left on device")
	}
	return f.Handler.Handle(ctx, r)
}

func TestRecordsThatCannotBeWrittenAreCounted(t *testing.T) {
	var b bytes.Buffer
	fails := 5 // two records, each with one that says how many are lost, and a third
	trail := audit.New(failing{slog.NewJSONHandler(&b, nil), &fails}, 0)
	for range 3 {
		trail.Observer().Connected(hooks.Connected{Client: jane()})
	}
	require.NoError(t, trail.Close(t.Context()))
	got := records(t, &b)
	require.Len(t, got, 1)
	require.Equal(t, map[string]any{"level": "ERROR", "msg": "records lost", "count": float64(3)},
		got[0])
}

// A Handler that panics ends neither the program nor the Trail.
func TestRecordsOfAHandlerThatPanicsAreCounted(t *testing.T) {
	var b bytes.Buffer
	panics := 1
	trail := audit.New(panicking{slog.NewJSONHandler(&b, nil), &panics}, 0)
	for range 2 {
		trail.Observer().Connected(hooks.Connected{Client: jane()})
	}
	require.NoError(t, trail.Close(t.Context()))
	got := records(t, &b)
	require.Len(t, got, 2)
	require.Equal(t, map[string]any{"level": "ERROR", "msg": "records lost", "count": float64(1)},
		got[0])
}

// panicking panics for the first n records.
type panicking struct {
	slog.Handler
	n *int
}

func (p panicking) Handle(ctx context.Context, r slog.Record) error {
	if *p.n--; *p.n >= 0 {
		panic("handler")
	}
	return p.Handler.Handle(ctx, r)
}

func TestLevels(t *testing.T) {
	var b bytes.Buffer
	trail := audit.New(slog.NewJSONHandler(&b, &slog.HandlerOptions{Level: slog.LevelWarn}), 0)
	trail.Observer().Connected(hooks.Connected{Client: jane()})
	trail.Observer().Denied(denied("a", nil))
	require.NoError(t, trail.Close(t.Context()))
	require.Len(t, records(t, &b), 1, "what the Handler does not want it is not given")
}

// A queue of any length can be asked for.
func TestTheQueueAtItsEdges(t *testing.T) {
	for _, queue := range []int{math.MinInt, -1, 1, math.MaxInt} {
		var b bytes.Buffer
		trail := audit.New(slog.NewJSONHandler(&b, nil), queue)
		trail.Reload("acl file", nil)
		require.NoError(t, trail.Close(t.Context()))
		require.Len(t, records(t, &b), 1)
	}
}
