package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file is -durable: what QoS 1 messages cost that are kept on disk. The load generator
// publishes, with its usual window and batches. The sessions of its own subscribers end with their
// connections, and nothing is kept for them, so it has none: benchcmp subscribes in their place,
// with a session for each publisher that outlives its connection, acknowledges, and looks for what
// is missing, repeated or out of order. The generator does not time PUBACKs: one more publisher
// does, which has one message on its way at a time. A publisher of the generator that has waited
// 0.7 s for a PUBACK takes its window for free and sends on; "stalled" in the notes below the table
// is how often that was.

// storing are the contenders. Each keeps its store in the folder data.
func (t *tools) storing(data string) []contender {
	list := []contender{
		{"dunlin", dunlinVersion() + " with store/segment, synced",
			t.dunlin("-data", data, "-store", "segment", "-durability", "synced"), nil},
		{"dunlin-bbolt", "the same with store/bbolt, synced",
			t.dunlin("-data", data, "-store", "bbolt", "-durability", "synced"), nil},
	}
	if t.mosquitto != "" {
		settings := "persistence true\npersistence_location " + data +
			"/\nautosave_on_changes true\nautosave_interval 1\n"
		if os.Getuid() == 0 {
			settings += "user root\n" // it would become another one, who may not write there
		}
		list = append(list, contender{"mosquitto",
			firstLine(t.mosquitto, "-h") + " with autosave_on_changes true, autosave_interval 1",
			t.mosquittoWith(settings), nil})
	}
	mochi := func(kind string) func(addr string) ([]string, error) {
		return func(addr string) ([]string, error) {
			return []string{t.mochi, "-store", kind, "-data", data, addr}, nil
		}
	}
	return append(list, contender{"mochi-bolt",
		mochiVersion + " with its bolt hook as it is by default", mochi("bolt"), nil},
		contender{"mochi-badger", mochiVersion + " with its badger hook and SyncWrites",
			mochi("badger"), nil})
}

// publishers is how many there are.
var publishers = []int{1, 16, 256}

const (
	warm    = 500 * time.Millisecond // before anything is measured
	stretch = 3 * time.Second        // that is measured
	after   = 500 * time.Millisecond // how much longer the load lasts
)

// The figures of a run.
const (
	perSecond = "msg_per_s"
	ackMedian = "puback_p50_ms"
	ackHigh   = "puback_p99_ms"
	written   = "disk_bytes_per_msg"
)

func durableScenario(pubs int) string { return fmt.Sprintf("durable-%d", pubs) }

// durableRows are the lines of the table.
func durableRows() (list []row) {
	for _, n := range publishers {
		s, who := durableScenario(n), fmt.Sprintf("%d publishers: ", n)
		if n == 1 {
			who = "1 publisher: "
		}
		list = append(list, row{title: who + "messages", scenario: s, key: perSecond, unit: "1/s"},
			row{title: who + "CPU of a message", scenario: s, key: perMessage, unit: "µs"},
			row{title: who + "PUBACK, median", scenario: s, key: ackMedian, unit: "ms"},
			row{title: who + "PUBACK, p99", scenario: s, key: ackHigh, unit: "ms"},
			row{title: who + "written to disk for a message", scenario: s, key: written, unit: "B"})
	}
	return list
}

func measureDurable(m *measurement) error {
	for round := range m.runs {
		for _, pubs := range publishers {
			if !m.wanted(durableScenario(pubs)) {
				continue
			}
			for i := range m.t.storing("") {
				data, err := os.MkdirTemp(m.t.dir, "data")
				if err != nil {
					return err
				}
				c := m.t.storing(data)[i]
				rep := durableRun(m.t.load, c, pubs)
				if x, ok := rep[written].(float64); ok && x == 0 && m.where != tmpfs &&
					rep["err"] == nil {
					rep["err"] = "the broker wrote nothing to disk"
				}
				if err := m.add(durableScenario(pubs), c.name, round, rep); err != nil {
					return err
				}
				if err := os.RemoveAll(data); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// durableRun puts the load on a broker.
func durableRun(load string, c contender, pubs int) map[string]any {
	addr, pid, end, err := startBroker(c)
	if err != nil {
		return failed(err)
	}
	defer end()
	ks, err := keepAll(addr, pubs)
	if err != nil {
		return failed(err)
	}
	defer ks.Close()
	p, err := startProbe(addr)
	if err != nil {
		return failed(err)
	}
	defer p.Close()
	flags := fmt.Sprintf(
		"-json -addr %s -pid %d -scenario fanin -subs 0 -e2e 0 -qos 1 -pubs %d -warm %v -dur %v",
		addr, pid, pubs, warm, stretch+after)
	loaded := make(chan map[string]any, 1)
	// waited for below
	go func() { loaded <- report(exec.Command(load, strings.Fields(flags)...)) }()
	ks.begin()
	time.Sleep(warm)
	a := look(pid, ks)
	time.Sleep(stretch)
	b := look(pid, ks)
	waits, unanswered := p.end(a.at, b.at)
	rep := <-loaded
	if err := ks.Close(); err != nil && rep["err"] == nil {
		rep["err"] = err.Error()
	}
	for _, k := range []string{"p50_us", "p99_us", "p999_us", "max_us", "recv"} {
		delete(rep, k) // about deliveries to subscribers of its own
	}
	took, got := b.at.Sub(a.at).Seconds(), float64(b.got-a.got)
	rep[perSecond] = got / took
	delete(rep, perMessage)
	if got > 0 {
		rep[perMessage] = (b.broker - a.broker) / got * 1e6
		rep[written] = (b.written - a.written) / got
	}
	if other, ok := rep["other_cores"].(float64); ok {
		rep["other_cores"] = other - (b.own-a.own)/took // the generator counts benchcmp in
	}
	if len(waits) > 0 {
		rep[ackMedian], rep[ackHigh] = quantile(waits, 0.5), quantile(waits, 0.99)
	}
	rep["puback_samples"], rep["unanswered"], rep["stalled"] = float64(len(waits)),
		float64(unanswered), rep["stalls"]
	ks.tell(rep)
	return rep
}

// A snapshot is what was used and delivered until some moment.
type snapshot struct {
	at          time.Time
	broker, own float64 // seconds of CPU
	written     float64 // bytes that the broker has had written to disk
	got         int64
}

func look(pid int, ks keepers) snapshot {
	broker := strconv.Itoa(pid)
	io, _ := os.ReadFile("/proc/" + broker + "/io")
	return snapshot{time.Now(), processorTime(broker), processorTime("self"), parseIO(string(io)),
		ks.got()}
}

// parseIO reads write_bytes of /proc/PID/io.
func parseIO(text string) float64 {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return float64(n)
		}
	}
	return 0
}

// processorTime is how many seconds of CPU a process has used.
func processorTime(pid string) float64 {
	b, _ := os.ReadFile("/proc/" + pid + "/stat")
	return parseStat(string(b))
}

// parseStat reads user and system time, the 14th and 15th field, of a line of /proc/PID/stat. The
// second, in parentheses, may have spaces.
func parseStat(line string) float64 {
	f := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return float64(user+system) / 100 // Linux counts in hundredths for all programs
}

// quantile is a quantile of durations, in milliseconds.
func quantile(v []time.Duration, q float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return float64(v[min(int(q*float64(len(v))), len(v)-1)]) / 1e6
}

// tmpfs is the file system that is no disk.
const tmpfs = "tmpfs"

// fileSystem says what kind of file system a folder is on.
func fileSystem(dir string) string {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "an unknown file system"
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return mountOf(dir, string(mounts))
}

// mountOf is the type of the mount that dir is on, out of /proc/self/mounts.
func mountOf(dir, mounts string) string {
	kind, longest := "an unknown file system", -1
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[1]) < longest {
			continue // of two at the same place the later one is on top
		}
		if rest, ok := strings.CutPrefix(dir, strings.TrimSuffix(f[1], "/")); ok &&
			(rest == "" || rest[0] == '/') {
			kind, longest = f[2], len(f[1])
		}
	}
	return kind
}
