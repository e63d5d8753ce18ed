// Command benchcmp compares Dunlin, as examples/server, with Debian's mosquitto and with
// mochi-mqtt, and with what bare sockets cost, in CPU time per message and in memory. It runs on
// Linux, from the root of the repository:
//
//	go run ./internal/benchcmp >table.md
//
// The load comes from the program in folder load, which benchcmp builds. -load names the binary of
// another generator with the same flags and reports, -loadsrc the folder of its source. A broker
// that is not installed is left out, and the table says so.
//
// The runs are interleaved: each round runs every scenario once with every broker. The table has
// the medians of all rounds, with the lowest and highest, and writes what the generator reported to
// -out, one JSON object a line; -from makes the table of such a file again. With -curves it
// measures how the cost of a message depends on connections, subscriptions and retained messages
// instead, and writes docs/performance-scale.csv and docs/performance-scale.svg. With -durable it
// compares what messages cost that are kept on disk, and with -storecost what a Store costs those
// that are not kept.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "benchcmp:", err)
		os.Exit(1)
	}
}

// A contender is something that the load is put on.
type contender struct {
	name    string
	version string
	command func(addr string) ([]string, error)
	load    []string // further flags for the load generator
}

// A result is one run.
type result struct {
	Scenario, Broker string
	Round            int
	Report           map[string]any
}

type options struct {
	load, loadSrc, out, from, only, docs, dir string
	runs                                      int
	million, curves, durable, storecost       bool
}

func run(args []string, stdout, stderr io.Writer) error {
	var o options
	fs := flag.NewFlagSet("benchcmp", flag.ContinueOnError)
	fs.SetOutput(stderr)
	o.flags(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.from != "" {
		results, err := readResults(o.from)
		if err != nil {
			return err
		}
		writeResults(stdout, results)
		return nil
	}
	if o.curves && o.durable || o.curves && o.storecost || o.durable && o.storecost {
		return errors.New(
			"-curves, -durable and -storecost are three measurements: give one of them")
	}
	dir, err := os.MkdirTemp(o.dir, "benchcmp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := o.findLoad(dir); err != nil {
		return err
	}
	t, err := prepare(dir, o.load, stderr)
	if err != nil {
		return err
	}
	contenders, runs, measure := t.all(), o.rounds(5), measureAll
	switch {
	case o.curves:
		return measureCurves(&o, contenders, stderr)
	case o.durable:
		contenders, measure = t.storing(""), measureDurable
	case o.storecost:
		contenders, runs, measure = t.withAndWithout(""), o.rounds(20), measureCosts
	}
	where := ""
	if o.durable || o.storecost {
		where = fileSystem(dir)
	}
	if where == tmpfs {
		fmt.Fprintln(stderr,
			"benchcmp: the stores are in memory, on tmpfs; -dir names a folder on a disk")
	}
	f, err := os.Create(o.out)
	if err != nil {
		return err
	}
	defer f.Close()
	m := &measurement{o: &o, t: t, runs: runs, where: where, enc: json.NewEncoder(f),
		stderr: stderr}
	if err := measure(m); err != nil {
		return err
	}
	writeHead(stdout, contenders, runs)
	if where != "" {
		fmt.Fprintf(stdout, "All stores are on %s.\n\n", where)
	}
	writeResults(stdout, m.results)
	return f.Close()
}

func (o *options) flags(fs *flag.FlagSet) {
	fs.StringVar(&o.load, "load", "",
		"`binary` of another load generator (default: the one of this project)")
	fs.StringVar(&o.loadSrc, "loadsrc", "",
		"`folder` with the source of another load generator, to build it")
	fs.StringVar(&o.out, "out", "benchcmp.jsonl", "`file` for what the generator reports")
	fs.StringVar(&o.from, "from", "", "make the table of this `file`, and run nothing")
	fs.StringVar(&o.only, "only", "", "comma-separated scenarios to run (default all)")
	fs.StringVar(&o.docs, "docs", "docs",
		"`folder` for performance-scale.csv and performance-scale.svg")
	fs.StringVar(&o.dir, "dir", "",
		"`folder` for temporary files, those of stores among them (default the system's)")
	fs.IntVar(&o.runs, "runs", 0, "rounds (default 5; with -storecost 20 pairs)")
	fs.BoolVar(&o.million, "million", false, "also 1,000,000 subscriptions")
	fs.BoolVar(&o.curves, "curves", false, "measure the scale curves instead")
	fs.BoolVar(&o.durable, "durable", false, "compare QoS 1 messages that are kept on disk instead")
	fs.BoolVar(&o.storecost, "storecost", false,
		"compare QoS 0 of Dunlin with and without a Store instead")
}

// rounds is how many there are to be, or n.
func (o *options) rounds(n int) int {
	if o.runs > 0 {
		return o.runs
	}
	return n
}

// findLoad makes o.load name a binary.
func (o *options) findLoad(dir string) error {
	if o.load == "" {
		o.load = filepath.Join(dir, "load")
		if o.loadSrc != "" {
			return build(o.loadSrc, o.load, ".")
		}
		return build("internal/benchcmp", o.load, "./load")
	}
	if _, err := exec.LookPath(o.load); err != nil {
		return fmt.Errorf("-load: %w", err)
	}
	return nil
}

// build builds the package in folder src of a module. The module stands for itself, unless it
// belongs to this workspace.
func build(src, out, pkg string) error {
	cmd := exec.Command("go", "build", "-o", out, pkg)
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s in %s: %w\n%s", pkg, src, err, b)
	}
	return nil
}

// tools are the programs that take part.
type tools struct {
	dir                            string // for their files
	load, server, mochi, mosquitto string // paths; no mosquitto if it is not installed
}

// prepare builds or finds them.
func prepare(dir, load string, stderr io.Writer) (*tools, error) {
	t := &tools{dir: dir, load: load, server: filepath.Join(dir, "server"),
		mochi: filepath.Join(dir, "mochi")}
	if err := build("examples/server", t.server, "."); err != nil {
		return nil, fmt.Errorf("%w\n(benchcmp is run from the root of the repository)", err)
	}
	if err := build("internal/benchcmp", t.mochi, "./mochi"); err != nil {
		return nil, err
	}
	var err error
	if t.mosquitto, err = exec.LookPath("mosquitto"); err != nil {
		fmt.Fprintln(stderr, "benchcmp: no mosquitto here; it is left out")
	}
	return t, nil
}

// dunlin is Dunlin with further flags.
func (t *tools) dunlin(flags ...string) func(addr string) ([]string, error) {
	return func(addr string) ([]string, error) {
		return append([]string{t.server, "-listen", addr, "-log-level", "error", "-sys-interval",
			"0",
			"-max-queued-messages", "200000", "-max-queued-bytes", "200000000"}, flags...), nil
	}
}

// mosquittoWith is mosquitto with further settings.
func (t *tools) mosquittoWith(settings string) func(addr string) ([]string, error) {
	return func(addr string) ([]string, error) {
		conf := filepath.Join(t.dir, "mosquitto.conf")
		_, port, _ := net.SplitHostPort(addr)
		text := "listener " + port + " 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n" +
			"max_inflight_messages 1000\nmax_queued_messages 1000000\nmax_packet_size 1048576\n" +
			settings
		return []string{t.mosquitto, "-c", conf}, os.WriteFile(conf, []byte(text), 0o644)
	}
}

// all are the contenders of the table.
func (t *tools) all() []contender {
	list := []contender{
		{"floor", "the floor of the load generator", func(addr string) ([]string,
			error) {
			return []string{t.load, "floor", "-addr", addr}, nil
		}, nil},
		{"dunlin", dunlinVersion(), t.dunlin(), nil},
		{"dunlin-v5", "the same, MQTT 5.0", t.dunlin(), []string{"-v", "5"}},
		{"mochi", mochiVersion, func(addr string) ([]string,
			error) {
			return []string{t.mochi, addr}, nil
		}, nil},
	}
	if t.mosquitto != "" {
		list = append(list, contender{"mosquitto", firstLine(t.mosquitto, "-h"),
			t.mosquittoWith("persistence false\n"), nil})
	}
	return list
}

func dunlinVersion() string {
	return "Dunlin " + firstLine("git", "describe", "--always", "--dirty")
}

const mochiVersion = "mochi-mqtt v2.7.9"

func firstLine(name string, args ...string) string {
	b, _ := exec.Command(name, args...).Output() // -h exits with an error status
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// A measurement is what some rounds bring.
type measurement struct {
	o       *options
	t       *tools
	runs    int
	where   string // the file system of the stores, if there are any
	results []result
	enc     *json.Encoder
	stderr  io.Writer
}

// wanted says whether -only leaves a scenario.
func (m *measurement) wanted(scenario string) bool {
	return m.o.only == "" || slices.Contains(strings.Split(m.o.only, ","), scenario)
}

// add keeps what a run reported, and says it.
func (m *measurement) add(scenario, broker string, round int, rep map[string]any) error {
	fmt.Fprintf(m.stderr, "round %d of %d: %s, %s: %s\n", round+1, m.runs, scenario, broker,
		brief(rep))
	r := result{scenario, broker, round, rep}
	m.results = append(m.results, r)
	return m.enc.Encode(r)
}

// measureAll runs all scenarios, round by round.
func measureAll(m *measurement) error {
	list := scenarios
	if m.o.million {
		list = append(slices.Clone(list), million)
	}
	contenders := m.t.all()
	for round := range m.runs {
		for _, s := range list {
			if !m.wanted(s.name) {
				continue
			}
			for _, c := range contenders {
				if c.name == "floor" && s.brokers != "floor" {
					continue
				}
				if err := m.add(s.name, c.name, round,
					load(m.t.load, c, strings.Fields(s.flags))); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// load runs the load generator once. An error is part of the report.
func load(bin string, c contender, flags []string) map[string]any {
	addr, err := freeAddr()
	if err != nil {
		return map[string]any{"err": err.Error()}
	}
	cmd, err := c.command(addr)
	if err != nil {
		return map[string]any{"err": err.Error()}
	}
	args := slices.Concat([]string{"-json", "-addr", addr, "-exec", strings.Join(cmd, " ")}, flags,
		c.load)
	return report(exec.Command(bin, args...))
}

// maxRun is how long one run may take.
const maxRun = 5 * time.Minute

// report runs the load generator and returns what it says.
func report(cmd *exec.Cmd) map[string]any {
	t := time.AfterFunc(maxRun, func() { cmd.Process.Kill() })
	defer t.Stop()
	b, err := cmd.Output()
	var rep map[string]any
	if json.Unmarshal(b, &rep) != nil {
		return map[string]any{"err": fmt.Sprintf("the load generator said nothing: %v", err)}
	}
	return rep
}

// freeAddr returns an address that nobody listens on at the moment.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// brief is a report in a few words.
func brief(rep map[string]any) string {
	var s []string
	for _, k := range []string{perMessage, "broker_us_per_conn", "bytes_per_conn",
		"deliver_us_per_msg", "drain_us_per_msg",
		perSecond, ackMedian, ackHigh, written, "other_cores", "err"} {
		v, ok := rep[k]
		if x, is := v.(float64); is {
			v = number(x)
		}
		if ok {
			s = append(s, fmt.Sprintf("%s %v", k, v))
		}
	}
	return strings.Join(s, ", ")
}

func readResults(name string) (results []result, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var r result
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		results = append(results, r)
	}
	return results, sc.Err()
}
