package crash

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/segment"
)

// Sessions of absent clients with the same messages in their queues, over a restart.
// DUNLIN_OFFLINE=10000x1000 makes it 10 million places in queues, and prints what they cost.
func TestOfflineSessions(t *testing.T) {
	sessions, messages := 100, 50
	if s := os.Getenv("DUNLIN_OFFLINE"); s != "" {
		if _, err := fmt.Sscanf(s, "%dx%d", &sessions, &messages); err != nil {
			t.Fatalf("DUNLIN_OFFLINE: %v", err)
		}
	}
	dir := t.TempDir()
	empty := heap()
	b, l := local(t, dir)
	for i := range sessions {
		nc, r := attach(t, l, fmt.Sprint("s", i))
		write(t, nc, &packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "all/#", QoS: 1}}})
		if _, err := r.ReadPacket(); err != nil {
			t.Fatal(err)
		}
		write(t, nc, new(packets.Disconnect))
		// the Session is on its own before the broker closes the connection
		if _, err := r.ReadPacket(); err != io.EOF {
			t.Fatalf("DISCONNECT was answered with %v", err)
		}
		nc.Close()
	}
	began := time.Now()
	for i := range messages {
		payload := make([]byte, 256)
		copy(payload, fmt.Sprint(i))
		if err := b.Publish(context.Background(), &dunlin.Message{Topic: fmt.Sprint("all/", i%100),
			Payload: payload, QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d sessions x %d messages: enqueued in %v", sessions, messages, time.Since(began))
	t.Logf("heap %d bytes for each", (heap()-empty)/(sessions*messages))
	b.Close()
	var size int64
	filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			size += info.Size()
		}
		return nil
	})
	b = nil
	empty = heap()
	began = time.Now()
	b, l = local(t, dir)
	t.Logf("%d bytes on disk, restart in %v, heap %d bytes for each", size, time.Since(began),
		(heap()-empty)/(sessions*messages))
	defer b.Close()
	if got := b.Stats().Queued; got != sessions*messages {
		t.Fatalf("%d are queued after the restart, want %d", got, sessions*messages)
	}
	began = time.Now()
	nc, r := attach(t, l, "s7")
	defer nc.Close()
	for i := range messages {
		q, err := r.ReadPacket()
		if err != nil {
			t.Fatal(err)
		}
		p := q.(*packets.Publish)
		var n int
		if fmt.Sscan(string(p.Payload), &n); n != i {
			t.Fatalf("message %d where %d is due", n, i)
		}
		write(t, nc, &packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
	}
	t.Logf("one session drained in %v", time.Since(began))
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// local is a broker in this process.
func local(t *testing.T, dir string) (*dunlin.Broker, *listeners.Memory) {
	t.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	st, err := segment.Open(dir, segment.Options{Durability: store.DurabilityBuffered,
		Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Logger: quiet, Store: st})
	if err != nil {
		t.Fatal(err)
	}
	l := listeners.NewMemory()
	go b.Serve(l) // until Close
	return b, l
}

func attach(t *testing.T, l *listeners.Memory, id string) (io.ReadWriteCloser, *packets.Reader) {
	t.Helper()
	nc, err := l.Dial()
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(time.Minute))
	r := packets.NewReader(nc, packets.Limits{})
	write(t, nc, &packets.Connect{Version: packets.V311, ClientID: id})
	if _, err := r.ReadPacket(); err != nil {
		t.Fatal(err)
	}
	return nc, r
}

func write(t *testing.T, w io.Writer, p packets.Packet) {
	t.Helper()
	b, err := p.Append(nil, packets.V311)
	if err == nil {
		_, err = w.Write(b)
	}
	if err != nil {
		t.Fatal(err)
	}
}
