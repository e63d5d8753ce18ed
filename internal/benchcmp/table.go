package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A stat is the median of some runs, with the lowest and the highest.
type stat struct {
	median, min, max float64
	n                int
}

func statOf(v []float64) stat {
	if len(v) == 0 {
		return stat{}
	}
	v = slices.Sorted(slices.Values(v))
	m := v[len(v)/2]
	if len(v)%2 == 0 {
		m = (m + v[len(v)/2-1]) / 2
	}
	return stat{m, v[0], v[len(v)-1], len(v)}
}

// values returns a figure of all runs of a scenario with a broker.
func values(results []result, scenario, broker, key string) (v []float64) {
	for _, r := range results {
		if r.Scenario == scenario && r.Broker == broker {
			if x, ok := r.Report[key].(float64); ok && r.Report["err"] == nil {
				v = append(v, x)
			}
		}
	}
	return v
}

// columns of the table, in this order, as far as there are results.
var columns = []string{"floor", "dunlin", "dunlin-v5", "dunlin-bbolt", "mosquitto", "mochi",
	"mochi-bolt", "mochi-badger"}

// writeHead says what was measured on what.
func writeHead(w io.Writer, contenders []contender, runs int) {
	fmt.Fprintf(w, "Measured on %s: %s, %d processors, Linux %s, %s; medians of %d interleaved "+
		"rounds, lowest and highest in brackets.\n",
		time.Now().Format("2 January 2006"), cpuModel(), runtime.NumCPU(), kernel(),
		runtime.Version(), runs)
	for _, c := range contenders {
		fmt.Fprintf(w, "%s is %s. ", c.name, c.version)
	}
	fmt.Fprint(w, "\n\n")
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(b))
}

// writeResults writes the tables of all that was measured, in Markdown, and below them what went
// wrong.
func writeResults(w io.Writer, results []result) {
	bars := tail{" Dunlin ÷ floor | bar |", "---|---|", func(r row) string {
		if r.bar > 0 {
			return fmt.Sprintf(" %s | %g |", ratio(results, r), r.bar)
		}
		return fmt.Sprintf(" %s | |", ratio(results, r))
	}}
	writeTable(w, results, rows, bars)
	writeTable(w, results, durableRows(), tail{of: func(row) string { return "" }})
	writeCosts(w, results)
	for _, line := range faults(results) {
		fmt.Fprintln(w, "*", line)
	}
}

// A tail is the last columns of a table: their heads, the rule below these, and what they have of a
// row.
type tail struct {
	head, rule string
	of         func(row) string
}

// writeTable writes a line for each row that was measured, if there is any, with tail at its end.
func writeTable(w io.Writer, results []result, rows []row, tail tail) {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r row) bool {
		return !slices.ContainsFunc(results,
			func(x result) bool { return x.Scenario == r.scenario })
	})
	if len(rows) == 0 {
		return
	}
	cols := slices.DeleteFunc(slices.Clone(columns), func(c string) bool {
		return !slices.ContainsFunc(results, func(r result) bool { return r.Broker == c })
	})
	fmt.Fprintf(w, "| | %s |%s\n|---|%s%s\n", strings.Join(cols, " | "), tail.head,
		strings.Repeat("---|", len(cols)), tail.rule)
	for _, r := range rows {
		fmt.Fprintf(w, "| %s, %s |", r.title, r.unit)
		for _, c := range cols {
			fmt.Fprintf(w, " %s |", cell(statOf(values(results, r.scenario, c, r.key))))
		}
		fmt.Fprintf(w, "%s\n", tail.of(r))
	}
	fmt.Fprintln(w)
}

func cell(s stat) string {
	switch {
	case s.n == 0:
		return "–"
	case s.n == 1:
		return number(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.median), number(s.min), number(s.max))
}

// number writes x with three digits that matter.
func number(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	case x >= 1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.3f", x)
}

// ratio is the last column but one: what the bar is about.
func ratio(results []result, r row) string {
	a := statOf(values(results, r.scenario, "dunlin", r.key))
	if a.n == 0 {
		return "–"
	}
	if r.over == "" {
		return "" // the figure itself is what the bar is about
	}
	under := "floor"
	if r.self {
		under = "dunlin"
	}
	b := statOf(values(results, r.over, under, r.key))
	if b.n == 0 || b.median == 0 {
		return "–"
	}
	return number(a.median / b.median)
}

// faults lists the runs that lost, repeated or misordered messages, failed, or had company on the
// machine.
func faults(results []result) (lines []string) {
	noisy := 0
	for _, r := range results {
		if x, _ := r.Report["other_cores"].(float64); x > 0.25 {
			noisy++
		}
		if r.Broker == "floor" {
			continue
		}
		var what []string
		for _, k := range []string{"lost", "dup", "misordered", "conn_errs", "unanswered",
			"stalled"} {
			if x, _ := r.Report[k].(float64); x > 0 {
				what = append(what, fmt.Sprintf("%s %.0f", k, x))
			}
		}
		if e, ok := r.Report["err"]; ok {
			what = append(what, fmt.Sprint(e))
		}
		if len(what) > 0 {
			lines = append(lines, fmt.Sprintf("%s, %s, round %d: %s", r.Scenario, r.Broker,
				r.Round+1, strings.Join(what, ", ")))
		}
	}
	if noisy > 0 {
		lines = append(lines,
			fmt.Sprintf("in %d of %d runs something else used more than a quarter of a processor",
				noisy, len(results)))
	}
	return lines
}
