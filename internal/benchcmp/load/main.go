// Command load puts load on an MQTT broker over plain sockets. It reports what came through, how
// late, and what that cost the broker in CPU time and memory. It runs on Linux and needs nothing
// but the standard library; it has an encoder and a parser of its own, so that it shares no code
// with the broker that it measures.
//
//	go run ./load -scenario p2p -qos 1 -exec "mosquitto -p 1884" -addr 127.0.0.1:1884
//	go run ./load -scenario fanout -subs 1000 -e2e 20 -batch 4 -addr 127.0.0.1:1883 -pid 4711
//
// -exec starts the broker, waits until it accepts clients, and stops it at the end. -pid names one
// that runs already. The report is one JSON object on standard output, and a table on standard
// error unless -json is given. Figures per message are CPU time of the broker, all its threads,
// user and system, divided by the messages that were delivered while it was measured.
//
// "load floor" is not a broker: it is the least that a Go program can do for exact topics, one
// goroutine for each connection, one read, and one write for each destination of a read.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"

	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A report has the figures of one run by their names.
type report map[string]any

// config is what the flags say.
type config struct {
	addr, scenario, filter string
	version, qos           byte
	size                   int // of a payload, in bytes
	pubs, subs, topics     int
	warm, dur              time.Duration
	settle, hold           time.Duration
	window                 int     // unacknowledged publishes of a publisher, QoS 1 and 2
	e2e                    int     // undelivered messages of a publisher; 0: no bound
	rate                   float64 // publishes a second of all publishers; 0: as the windows allow
	back                   float64 // connections a second that come back
	pingEvery              time.Duration
	batch                  int // most publishes in one write
	count                  int
	filters                int // in a SUBSCRIBE of scenario wild
	stalled                int
	workers                int // that connect at the same time
	subscribe              bool
	pid                    int

	command, dir, name string
	quiet              bool
	progress           io.Writer // of scenario million
}

func main() {
	debug.SetGCPercent(400)
	var err error
	if len(os.Args) > 1 && os.Args[1] == "floor" {
		err = runFloor(os.Args[2:])
	} else {
		err = run(os.Args[1:], os.Stdout, os.Stderr)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		os.Exit(1)
	}
}

func (cfg *config) parse(args []string, stderr io.Writer) error {
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&cfg.scenario, "scenario", "p2p",
		"`name`: p2p, fanin, fanout, shared, wild, slow, storm, reconnect, takeover, idle, ping, "+
			"million, retained or offline")
	fs.StringVar(&cfg.addr, "addr", "127.0.0.1:1883", "`address` of the broker")
	fs.StringVar(&cfg.name, "name", "", "`name` of the broker for the report")
	version := fs.Int("v", 4, "protocol version, 4 (3.1.1) or 5")
	qos := fs.Int("qos", 0, "QoS of publishes and subscriptions")
	fs.IntVar(&cfg.size, "size", 128, "`bytes` of a payload, at least 16")
	fs.IntVar(&cfg.pubs, "pubs", 10, "publishers; pairs in p2p")
	fs.IntVar(&cfg.subs, "subs", 10, "subscribers")
	fs.IntVar(&cfg.topics, "topics", 100_000, "filters in scenario wild")
	fs.DurationVar(&cfg.warm, "warm", time.Second, "time before anything is measured")
	fs.DurationVar(&cfg.dur, "dur", 4*time.Second, "time that is measured")
	fs.IntVar(&cfg.window, "window", 100, "unacknowledged publishes of a publisher, QoS 1 and 2")
	fs.IntVar(&cfg.e2e, "e2e", 500, "undelivered messages of a publisher, 0 for no bound")
	fs.Float64Var(&cfg.rate, "rate", 0, "publishes a second of all publishers, 0 for as many as "+
		"the windows allow; 10,000 in scenario million")
	fs.Float64Var(&cfg.back, "back", 10_000,
		"connections a second when they come back, in scenario million")
	fs.DurationVar(&cfg.pingEvery, "pingevery", 50*time.Second,
		"time between two PINGREQ of a connection in scenario million; Keep Alive is 60 s")
	fs.IntVar(&cfg.batch, "batch", 32, "most publishes in one write")
	fs.IntVar(&cfg.pid, "pid", 0, "process `id` of the broker, for CPU time and memory")
	fs.IntVar(&cfg.count, "count", 10_000, "connections (idle, ping, million), retained "+
		"messages, or messages of each Session (offline)")
	fs.IntVar(&cfg.filters, "subbatch", 20, "filters in a SUBSCRIBE of scenario wild")
	fs.IntVar(&cfg.stalled, "stalled", 1, "subscribers that never read, in scenario slow")
	fs.DurationVar(&cfg.settle, "settle", 2*time.Second, "rest before memory is read")
	fs.DurationVar(&cfg.hold, "hold", 3*time.Second, "time that idle connections are held")
	fs.IntVar(&cfg.workers, "conc", 32, "workers that connect at the same time")
	fs.StringVar(&cfg.filter, "filter", "r/#", "`filter` of the subscriber in scenario retained")
	fs.BoolVar(&cfg.subscribe, "idlesub", false, "one subscription for each idle connection")
	fs.StringVar(&cfg.command, "exec", "", "`command` that starts the broker")
	fs.StringVar(&cfg.dir, "dir", "", "working `directory` for -exec")
	fs.BoolVar(&cfg.quiet, "json", false, "no table")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *version != 4 && *version != 5 || *qos < 0 || *qos > 2 || fs.NArg() > 0 {
		err := errors.New("load: -v is 4 or 5, -qos is 0, 1 or 2, and there are no arguments")
		fmt.Fprintln(stderr, err)
		return err
	}
	cfg.version, cfg.qos, cfg.size = byte(*version), byte(*qos), max(cfg.size, stampLen)
	return nil
}

// run measures once and writes the report. An error is part of the report, too.
func run(args []string, stdout, stderr io.Writer) error {
	var cfg config
	if err := cfg.parse(args, stderr); err != nil {
		return err
	}
	if cfg.progress = stderr; cfg.quiet {
		cfg.progress = io.Discard
	}
	rep := report{
		"scenario": cfg.scenario, "broker": cfg.name, "v": cfg.version, "qos": cfg.qos,
		"size": cfg.size, "pubs": cfg.pubs, "subs": cfg.subs, "batch": cfg.batch,
	}
	if cfg.rate > 0 {
		rep["rate"] = cfg.rate
	}
	err := cfg.measure(rep)
	if err != nil {
		rep["err"] = err.Error()
	}
	line, jerr := json.Marshal(rep)
	if jerr != nil {
		return jerr
	}
	fmt.Fprintf(stdout, "%s\n", line)
	if !cfg.quiet {
		for _, k := range slices.Sorted(maps.Keys(rep)) {
			fmt.Fprintf(stderr, "  %-28s %v\n", k, rep[k])
		}
	}
	return err
}

// measure starts the broker, if it is to be started, and puts the load on it.
func (cfg *config) measure(rep report) error {
	scenarios := map[string]func(*config, report) error{
		"p2p": runFlow, "fanin": runFlow, "fanout": runFlow, "shared": runFlow, "wild": runFlow,
		"slow": runFlow, "storm": runStorm, "reconnect": runReconnect, "takeover": runTakeover,
		"idle": runIdle, "ping": runPing, "million": runMillion, "retained": runRetained,
		"offline": runOffline,
	}
	scenario := scenarios[cfg.scenario]
	if scenario == nil {
		return fmt.Errorf("unknown scenario %q, expected one of %v", cfg.scenario,
			slices.Sorted(maps.Keys(scenarios)))
	}
	if cfg.command != "" {
		cmd, err := start(cfg)
		if err != nil {
			return err
		}
		defer stop(cmd)
	}
	return scenario(cfg, rep)
}

// start runs the broker and returns when it accepts clients.
func start(cfg *config) (*exec.Cmd, error) {
	words := strings.Fields(cfg.command)
	if len(words) == 0 {
		return nil, errors.New("-exec is an empty command")
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir = cfg.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	cfg.pid = cmd.Process.Pid
	if err := waitReady(cfg); err != nil {
		stop(cmd)
		return nil, err
	}
	time.Sleep(300 * time.Millisecond) // what it does after its start is not measured
	return cmd, nil
}

func waitReady(cfg *config) error {
	var last error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		c, err := open(cfg, dialOpts{id: "ready", clean: true, bufSize: 256})
		if err == nil {
			c.c.Write(disconnectPacket())
			return c.c.Close()
		}
		last = err
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("broker not ready within 30 s: %w", last)
}

// stop asks the broker to end, and kills it after two seconds.
func stop(cmd *exec.Cmd) {
	cmd.Process.Signal(syscall.SIGTERM)
	t := time.AfterFunc(2*time.Second, func() { cmd.Process.Kill() })
	defer t.Stop()
	cmd.Wait()
}

// round keeps three digits behind the point.
func round(x float64) float64 {
	switch {
	case math.IsNaN(x) || math.IsInf(x, 0):
		return 0
	case math.Abs(x) >= 1000:
		return math.Round(x)
	}
	return math.Round(x*1000) / 1000
}

func mb(b int64) float64 { return math.Round(float64(b)/(1<<20)*10) / 10 }

func millis(d time.Duration) float64 { return round(d.Seconds() * 1e3) }

func closeAll(conns []*conn) {
	for _, c := range conns {
		if c != nil {
			c.c.Close()
		}
	}
}
