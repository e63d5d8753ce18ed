// Command benchcmp compares Dunlin, as examples/server, with Debian's mosquitto and with mochi-mqtt, and with what bare sockets
// cost, in CPU time per message and in memory. It runs on Linux, from the root of the repository:
//
//	go run ./internal/benchcmp -loadsrc path/to/mqttload >table.md
//
// The load comes from a program of its own, mqttload, which is no part of this repository: -load names its binary, -loadsrc (or
// MQTTLOAD_SRC) the folder of its source, which is built. A broker that is not installed is left out, and the table says so.
//
// The runs are interleaved: each round runs every scenario once with every broker. The table has the medians of all rounds, with the lowest
// and highest, and writes what the generator reported to -out, one JSON object a line; -from makes the table of such a file
// again. With -curves it measures how the cost of a message depends on connections, subscriptions and retained messages instead, and
// writes docs/performance-scale.csv and docs/performance-scale.svg.
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
	load, loadSrc, out, from, only, docs string
	runs                                 int
	million, curves                      bool
}

func run(args []string, stdout, stderr io.Writer) error {
	var o options
	fs := flag.NewFlagSet("benchcmp", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.load, "load", os.Getenv("MQTTLOAD"), "the load generator's `binary` (or MQTTLOAD)")
	fs.StringVar(&o.loadSrc, "loadsrc", os.Getenv("MQTTLOAD_SRC"), "the `folder` with its source, to build it (or MQTTLOAD_SRC)")
	fs.StringVar(&o.out, "out", "benchcmp.jsonl", "`file` for what the generator reports")
	fs.StringVar(&o.from, "from", "", "make the table of this `file`, and run nothing")
	fs.StringVar(&o.only, "only", "", "comma-separated scenarios to run (default all)")
	fs.StringVar(&o.docs, "docs", "docs", "`folder` for performance-scale.csv and performance-scale.svg")
	fs.IntVar(&o.runs, "runs", 5, "rounds")
	fs.BoolVar(&o.million, "million", false, "also 1,000,000 subscriptions")
	fs.BoolVar(&o.curves, "curves", false, "measure the scale curves instead")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.from != "" {
		results, err := readResults(o.from)
		if err != nil {
			return err
		}
		writeTable(stdout, results)
		return nil
	}
	dir, err := os.MkdirTemp("", "benchcmp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := o.findLoad(dir); err != nil {
		return err
	}
	contenders, err := gather(dir, o.load, stderr)
	if err != nil {
		return err
	}
	if o.curves {
		return measureCurves(&o, contenders, stderr)
	}
	results, err := measure(&o, contenders, stderr)
	if err != nil {
		return err
	}
	writeHead(stdout, contenders, o.runs)
	writeTable(stdout, results)
	return nil
}

// findLoad makes o.load name a binary.
func (o *options) findLoad(dir string) error {
	if o.load == "" && o.loadSrc == "" {
		return errors.New("no load generator: give its binary with -load or the folder of its source with -loadsrc")
	}
	if o.load == "" {
		o.load = filepath.Join(dir, "mqttload")
		return build(o.loadSrc, o.load, ".")
	}
	if _, err := exec.LookPath(o.load); err != nil {
		return fmt.Errorf("-load: %w", err)
	}
	return nil
}

// build builds the package in folder src of a module. The module stands for itself, unless it belongs to this workspace.
func build(src, out, pkg string) error {
	cmd := exec.Command("go", "build", "-o", out, pkg)
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s in %s: %w\n%s", pkg, src, err, b)
	}
	return nil
}

// gather builds or finds the contenders.
func gather(dir, load string, stderr io.Writer) ([]contender, error) {
	server, mochi := filepath.Join(dir, "server"), filepath.Join(dir, "mochi")
	if err := build("examples/server", server, "."); err != nil {
		return nil, fmt.Errorf("%w\n(benchcmp is run from the root of the repository)", err)
	}
	if err := build("internal/benchcmp", mochi, "./mochi"); err != nil {
		return nil, err
	}
	dunlin := func(addr string) ([]string, error) {
		return []string{server, "-listen", addr, "-log-level", "error", "-sys-interval", "0",
			"-max-queued-messages", "200000", "-max-queued-bytes", "200000000"}, nil
	}
	list := []contender{
		{"floor", "mqttload floor", func(addr string) ([]string, error) { return []string{load, "floor", "-addr", addr}, nil }, nil},
		{"dunlin", "Dunlin " + firstLine("git", "describe", "--always", "--dirty"), dunlin, nil},
		{"dunlin-v5", "the same, MQTT 5.0", dunlin, []string{"-v", "5"}},
		{"mochi", "mochi-mqtt v2.7.9", func(addr string) ([]string, error) { return []string{mochi, addr}, nil }, nil},
	}
	if path, err := exec.LookPath("mosquitto"); err != nil {
		fmt.Fprintln(stderr, "benchcmp: no mosquitto here; it is left out")
	} else {
		list = append(list, contender{"mosquitto", firstLine(path, "-h"), func(addr string) ([]string, error) {
			conf := filepath.Join(dir, "mosquitto.conf")
			_, port, _ := net.SplitHostPort(addr)
			text := "listener " + port + " 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n" +
				"max_inflight_messages 1000\nmax_queued_messages 1000000\nmax_packet_size 1048576\n"
			return []string{path, "-c", conf}, os.WriteFile(conf, []byte(text), 0o644)
		}, nil})
	}
	return list, nil
}

func firstLine(name string, args ...string) string {
	b, _ := exec.Command(name, args...).Output() // -h exits with an error status
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// measure runs all scenarios, round by round.
func measure(o *options, contenders []contender, stderr io.Writer) ([]result, error) {
	list := scenarios
	if o.million {
		list = append(slices.Clone(list), million)
	}
	f, err := os.Create(o.out)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	enc := json.NewEncoder(f)
	var results []result
	for round := range o.runs {
		for _, s := range list {
			if o.only != "" && !slices.Contains(strings.Split(o.only, ","), s.name) {
				continue
			}
			for _, c := range contenders {
				if c.name == "floor" && s.brokers != "floor" {
					continue
				}
				rep := load(o.load, c, strings.Fields(s.flags))
				fmt.Fprintf(stderr, "round %d of %d: %s, %s: %s\n", round+1, o.runs, s.name, c.name, brief(rep))
				r := result{s.name, c.name, round, rep}
				results = append(results, r)
				if err := enc.Encode(r); err != nil {
					return nil, err
				}
			}
		}
	}
	return results, f.Close()
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
	args := slices.Concat([]string{"-json", "-addr", addr, "-exec", strings.Join(cmd, " ")}, flags, c.load)
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
	for _, k := range []string{perMessage, "broker_us_per_conn", "bytes_per_conn", "deliver_us_per_msg", "drain_us_per_msg", "other_cores", "err"} {
		if v, ok := rep[k]; ok {
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
