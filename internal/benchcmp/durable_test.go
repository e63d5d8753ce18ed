package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// table is what -from prints for recorded runs.
func table(t *testing.T, recorded string) string {
	name := filepath.Join(t.TempDir(), "runs.jsonl")
	require.NoError(t, os.WriteFile(name, []byte(recorded), 0o600))
	var out bytes.Buffer
	require.NoError(t, run([]string{"-from", name}, &out, io.Discard))
	return out.String()
}

func TestTableOfDurableRuns(t *testing.T) {
	require.Equal(t, `| | dunlin | dunlin-bbolt | mochi-badger |
|---|---|---|---|
| 1 publisher: messages, 1/s | 41000 (40000–42000) | – | 700 |
| 1 publisher: CPU of a message, µs | 6.00 (5.00–7.00) | – | 900 |
| 1 publisher: PUBACK, median, ms | 0.600 (0.500–0.700) | – | – |
| 1 publisher: PUBACK, p99, ms | 1.50 (1.00–2.00) | – | – |
| 1 publisher: written to disk for a message, B | 175 (170–180) | – | 9000 |
| 256 publishers: messages, 1/s | – | 36000 | – |
| 256 publishers: CPU of a message, µs | – | 20.0 | – |
| 256 publishers: PUBACK, median, ms | – | 580 | – |
| 256 publishers: PUBACK, p99, ms | – | 1119 | – |
| 256 publishers: written to disk for a message, B | – | 80.0 | – |

* durable-1, mochi-badger, round 1: lost 3, misordered 2, unanswered 1
* durable-256, dunlin-bbolt, round 1: stalled 429
`, table(t, `{"Scenario":"durable-1","Broker":"dunlin","Round":0,"Report":{"msg_per_s":40000,"broker_us_per_msg":7,"puback_p50_ms":0.7,"puback_p99_ms":2,"disk_bytes_per_msg":180,"stalled":0}}
{"Scenario":"durable-1","Broker":"dunlin","Round":1,"Report":{"msg_per_s":42000,"broker_us_per_msg":5,"puback_p50_ms":0.5,"puback_p99_ms":1,"disk_bytes_per_msg":170}}
{"Scenario":"durable-1","Broker":"mochi-badger","Round":0,"Report":{"msg_per_s":700,"broker_us_per_msg":900,"disk_bytes_per_msg":9000,"lost":3,"misordered":2,"unanswered":1}}
{"Scenario":"durable-256","Broker":"dunlin-bbolt","Round":0,"Report":{"msg_per_s":36000,"broker_us_per_msg":20,"puback_p50_ms":580,"puback_p99_ms":1119,"disk_bytes_per_msg":80,"stalled":429}}
`))
}

func TestTableOfPairs(t *testing.T) {
	var recorded bytes.Buffer
	for round, ratio := range []float64{1.01, 0.99, 1.02, 1.0, 1.04, 0.98, 1.03} {
		fmt.Fprintf(&recorded,
			`{"Scenario":"cost-batched","Broker":"with","Round":%d,"Report":{"broker_us_per_msg":%g}}`+"\n", round, 2*ratio)
		fmt.Fprintf(&recorded,
			`{"Scenario":"cost-batched","Broker":"without","Round":%d,"Report":{"broker_us_per_msg":2}}`+"\n", round)
	}
	recorded.WriteString(`{"Scenario":"cost-batched","Broker":"with","Round":7,"Report":{"broker_us_per_msg":90}}
{"Scenario":"cost-unbatched","Broker":"without","Round":0,"Report":{"broker_us_per_msg":4}}
{"Scenario":"cost-unbatched","Broker":"with","Round":0,"Report":{"broker_us_per_msg":5}}
{"Scenario":"cost-unbatched","Broker":"without","Round":1,"Report":{"err":"broker not ready"}}
`)
	require.Equal(t, `| | without a Store, µs | with one, µs | ratio, median of pairs | its 95 % interval | lowest and highest | pairs |
|---|---|---|---|---|---|---|
| p2p QoS 0, 128 B, batched | 2.00 (2.00–2.00) | 2.03 (1.96–90.0) | 1.010 | 0.980–1.040 | 0.980–1.040 | 7 |
| p2p QoS 0, one message a write | 4.00 | 5.00 | 1.250 | – | 1.250–1.250 | 1 |

* cost-unbatched, without, round 2: broker not ready
`, table(t, recorded.String()), "a run without its other half is in no ratio")
}

// The ranks are those of tables of the sign test, two-sided, 5 %.
func TestRankOfAnIntervalForTheMedian(t *testing.T) {
	for n, want := range map[int]int{0: 0, 1: 0, 5: 0, 6: 1, 8: 1, 9: 2, 12: 3, 20: 6, 25: 8,
		40: 14} {
		require.Equal(t, want, rank(n), "%d pairs", n)
	}
}

func TestEveryStoreHasAColumn(t *testing.T) {
	tl := &tools{dir: t.TempDir(), mosquitto: "mosquitto"}
	var names []string
	for _, c := range tl.storing("folder") {
		require.Contains(t, columns, c.name)
		require.NotContains(t, names, c.name)
		names = append(names, c.name)
		cmd, err := c.command("127.0.0.1:1883")
		require.NoError(t, err)
		if c.name != "mosquitto" {
			require.Contains(t, cmd, "folder", "%s is told where", c.name)
			continue
		}
		conf, err := os.ReadFile(cmd[2])
		require.NoError(t, err)
		for _, line := range []string{"listener 1883 127.0.0.1", "persistence true",
			"persistence_location folder/", "autosave_on_changes true", "autosave_interval 1"} {
			require.Contains(t, string(conf), line+"\n")
		}
	}
	require.Len(t, names, 5)
	tl.mosquitto = ""
	require.Len(t, tl.storing("folder"), 4, "what is not installed is left out")
}

func TestOneMeasurementAtATime(t *testing.T) {
	for _, args := range [][]string{{"-curves", "-durable"}, {"-durable", "-storecost"},
		{"-storecost", "-curves"}} {
		require.ErrorContains(t, run(args, io.Discard, io.Discard), "give one of them", "%v", args)
	}
}

func TestKeeperNotesWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		name                          string
		numbers                       []uint32
		missing, repeated, misordered int
	}{
		{"all in order", []uint32{0, 1, 2, 3}, 0, 0, 0},
		{"two are missing", []uint32{0, 3, 4}, 2, 0, 0},
		{"the first is missing", []uint32{1}, 1, 0, 0},
		{"one comes twice", []uint32{0, 1, 1, 2}, 0, 1, 0},
		{"two change places", []uint32{0, 2, 1, 3}, 0, 0, 1},
		{"one comes late, and again", []uint32{0, 2, 1, 1, 3}, 0, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := &keeper{missing: make(map[uint32]struct{})}
			var stream, acks []byte
			for i, n := range tt.numbers {
				payload := binary.BigEndian.AppendUint32(make([]byte, 12), n)
				var err error
				p := packets.Publish{QoS: packets.QoS1, PacketID: uint16(i + 1),
					Topic: []byte(topicOf("0")), Payload: payload}
				stream, err = p.Append(stream, packets.V311)
				require.NoError(t, err)
			}
			taken := 0
			for end := range len(stream) + 1 { // byte by byte
				n, more, err := k.take(stream[taken:end], acks)
				require.NoError(t, err)
				taken, acks = taken+n, more
			}
			require.Equal(t, len(stream), taken)
			require.Len(t, acks, 4*len(tt.numbers), "each is acknowledged")
			require.EqualValues(t, len(tt.numbers), k.count.Load())
			rep := map[string]any{}
			keepers{list: []*keeper{k}}.tell(rep)
			require.Equal(t, map[string]any{"lost": float64(tt.missing),
				"dup": float64(tt.repeated), "misordered": float64(tt.misordered)}, rep)
		})
	}
	k := &keeper{missing: make(map[uint32]struct{})}
	short, err := (&packets.Publish{QoS: packets.QoS1, PacketID: 1, Topic: []byte("t"),
		Payload: []byte("x")}).Append(nil, packets.V311)
	require.NoError(t, err)
	_, _, err = k.take(short, nil)
	require.ErrorContains(t, err, "1 bytes")
}

// A publisher as the load generator's, a probe, and the sessions for both, on a broker.
func TestKeepersAndProbe(t *testing.T) {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll,
		Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer b.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	defer func() { b.Close(); <-served }()
	addr := l.Addr().String()

	ks, err := keepAll(addr, 2)
	require.NoError(t, err)
	require.Equal(t, 3, b.Stats().Sessions)
	p, err := startProbe(addr)
	require.NoError(t, err)
	defer p.Close()
	began := time.Now()
	c, err := dial(addr, "publisher", true)
	require.NoError(t, err)
	defer c.Close()
	for n := range uint32(3) {
		payload := binary.BigEndian.AppendUint32(make([]byte, 12), 2*n) // 1 and 3 are missing
		require.NoError(t, c.exchange(packets.TypePuback,
			&packets.Publish{QoS: packets.QoS1, PacketID: 1, Topic: []byte(topicOf("1")),
				Payload: payload}))
	}
	ks.begin()
	require.Eventually(t, func() bool {
		return ks.list[0].count.Load() > 2 && ks.list[2].count.Load() == 3
	}, 10*time.Second, time.Millisecond)
	waits, unanswered := p.end(began, time.Now())
	require.NotEmpty(t, waits)
	require.Zero(t, unanswered)
	require.Positive(t, quantile(waits, 0.5))
	require.GreaterOrEqual(t, quantile(waits, 0.99), quantile(waits, 0.5))
	require.GreaterOrEqual(t, ks.got(), int64(6))
	require.NoError(t, ks.Close())
	rep := map[string]any{}
	ks.tell(rep)
	require.Equal(t, map[string]any{"lost": 2.0, "dup": 0.0, "misordered": 0.0}, rep)
	require.NoError(t, p.Close())
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool {
		return b.Stats().Connections == 0
	}, 10*time.Second, time.Millisecond)
	require.Equal(t, 3, b.Stats().Sessions, "the sessions outlive their connections")
}

func TestConnectionThatEndsIsToldOf(t *testing.T) {
	here, there := net.Pipe()
	ks := keepers{list: []*keeper{{client: &client{Conn: here}}}}
	there.Close()
	ks.list[0].run(func() {})
	require.ErrorIs(t, ks.list[0].err, io.EOF)
}

func TestProcFiles(t *testing.T) {
	require.InDelta(t, 3.21,
		parseStat("7 (a b) c) S 1 7 7 0 -1 4194304 100 0 0 0 300 21 0 0 20 0 5 0 100 1000 10"),
		1e-9)
	require.Zero(t, parseStat(""))
	require.Equal(t, 4096.0,
		parseIO("rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n"))
	require.Zero(t, parseIO(""))
	const mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/disk xfs rw 0 " +
		"0\n/dev/c /tmpo btrfs rw 0 0\n"
	for dir, want := range map[string]string{"/": "ext4", "/home": "ext4", "/tmp": "tmpfs",
		"/tmp/x/y": "tmpfs", "/tmp/disk/x": "xfs",
		"/tmp/disks": "tmpfs", "/tmpo": "btrfs", "/tmpox": "ext4"} {
		require.Equal(t, want, mountOf(dir, mounts), dir)
	}
	require.Equal(t, "an unknown file system", mountOf("/", ""))
}
