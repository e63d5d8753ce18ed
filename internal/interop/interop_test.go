package interop

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
)

// TestMain lets more scenarios play at once than there are processors, unless told otherwise: they
// mostly wait.
func TestMain(m *testing.M) {
	flag.Parse()
	told := false
	flag.Visit(func(f *flag.Flag) { told = told || f.Name == "test.parallel" })
	if !told {
		if err := flag.Set("test.parallel", "8"); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	os.Exit(m.Run())
}

// TestInterop plays every scenario with every program in every version of the protocol, against one
// broker. [3.1.1 MQTT-7.0.0-2]
func TestInterop(t *testing.T) {
	broker, own := startBroker(t)
	run := fmt.Sprintf("i%04x",
		rand.N(1<<16)) // so that a broker which keeps something can be tested twice
	table := &table{cells: make(map[[2]string]string)}
	t.Cleanup(func() { table.keep(t) })
	all := append(append([]scenario(nil), scenarios...), scenarios5...)
	for _, s := range all {
		table.scenarios = append(table.scenarios, s.name)
	}

	var ready []program
	for _, p := range []program{pahoGo{}, autoPaho{}, mqttJS(), pahoPython(), mosquittoTools{}} {
		err := p.prepare()
		t.Cleanup(p.close)
		if err == nil {
			ready = append(ready, p)
		}
		t.Run(p.name(), func(t *testing.T) {
			if err != nil {
				missing(t, err)
			}
			for _, v := range p.versions() {
				client := p.name() + " " + v.String()
				table.clients = append(table.clients, client)
				t.Run(v.String(), func(t *testing.T) {
					for i, s := range all {
						if v < s.since || s.needs != "" && !p.can(s.needs, v) || s.own && !own {
							continue
						}
						t.Run(s.name, func(t *testing.T) {
							t.Parallel()
							t.Cleanup(func() { table.note(t, client, s.name) })
							s.play(&stage{T: t, program: p, version: v, broker: broker, run: run,
								topic: fmt.Sprintf("%s/%s %s/%d", run, p.name(), v, i)})
						})
					}
				})
			}
		})
	}
	t.Run("every client hears every other",
		func(t *testing.T) { playCrossing(t, ready, broker, run) })
}

// missing ends the test of a program that this machine lacks.
func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("not ready: %v; setup.sh installs what the tests need", err)
	}
	t.Skipf("not ready: %v; setup.sh installs what the tests need", err)
}

// A table gathers the results.
type table struct {
	clients, scenarios []string

	mu    sync.Mutex
	cells map[[2]string]string // guarded by mu: by client and scenario
}

func (r *table) note(t *testing.T, client, scenario string) {
	result := "ok"
	switch {
	case t.Failed():
		result = "FAILED"
	case t.Skipped():
		result = "skipped"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cells[[2]string{client, scenario}] = result
}

// keep writes the table to results.txt and to the log. A file of the module that is as new as that
// also keeps the go command from taking this run for the result of the next, since it does not see
// when the broker's source changes.
func (r *table) keep(t *testing.T) {
	t.Logf("results\n%s", r)
	if err := os.WriteFile("results.txt", []byte(r.String()), 0o644); err != nil {
		t.Logf("the table is not kept: %v", err)
	}
}

// String gives one line for each scenario and one column for each client; "-" is what a client or
// its version does not offer.
func (r *table) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for i, client := range r.clients {
		fmt.Fprintf(&b, "  %c = %s\n", 'A'+i, client)
	}
	line := func(first string, cell func(i int) string) {
		fmt.Fprintf(&b, "  %-46s", first)
		for i := range r.clients {
			fmt.Fprintf(&b, " %-7s", cell(i))
		}
		b.WriteByte('\n')
	}
	line("", func(i int) string { return string(rune('A' + i)) })
	for _, scenario := range r.scenarios {
		line(scenario, func(i int) string {
			if cell := r.cells[[2]string{r.clients[i], scenario}]; cell != "" {
				return cell
			}
			return "-"
		})
	}
	return b.String()
}
