package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A glance is one look at the broker's process, at this one, and at the whole machine.
type glance struct {
	at             time.Time
	user, system   float64 // CPU seconds of the broker
	rss, peak, pss int64   // bytes of the broker
	threads        int
	switches       int64   // context switches of its threads
	self           float64 // CPU seconds of this process
	machine        float64 // and of all that runs
	sockets        int64   // bytes that the system keeps for TCP
}

// How a look is taken. The close one also adds up how much memory the broker shares, which takes
// the system some time.
const (
	lookBriefly = false
	lookClosely = true
)

// look reads /proc. Without a process id there are no figures of the broker.
func look(pid int, closely bool) glance {
	g := glance{at: time.Now()}
	if pid > 0 {
		g.broker(pid, closely)
	}
	var used syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	g.self = time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		line, _, _ := strings.Cut(string(b), "\n")
		for i, x := range strings.Fields(line) {
			if i == 0 || i == 4 || i == 5 || i >= 8 { // the name, idle, waiting for disks, guests
				continue
			}
			g.machine += ticks(x)
		}
	}
	if b, err := os.ReadFile("/proc/net/sockstat"); err == nil {
		_, tcp, _ := strings.Cut(string(b), "TCP:")
		line, _, _ := strings.Cut(tcp, "\n")
		g.sockets = field(line, "mem ") * int64(os.Getpagesize())
	}
	return g
}

func (g *glance) broker(pid int, closely bool) {
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) > 12 {
			g.user, g.system = ticks(f[11]), ticks(f[12])
		}
	}
	status := read(fmt.Sprintf("/proc/%d/status", pid))
	g.rss, g.peak = field(status, "VmRSS:")<<10, field(status, "VmHWM:")<<10
	g.threads = int(field(status, "Threads:"))
	if closely {
		g.pss = field(read(fmt.Sprintf("/proc/%d/smaps_rollup", pid)), "\nPss:") << 10
	}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		status := read(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
		g.switches += field(status, "\nvoluntary_ctxt_switches:")
		g.switches += field(status, "nonvoluntary_ctxt_switches:")
	}
}

// read returns the text of a file, empty if there is none.
func read(name string) string {
	b, _ := os.ReadFile(name)
	return string(b)
}

// field returns the number behind key, 0 if there is none.
func field(text, key string) int64 {
	_, rest, _ := strings.Cut(text, key)
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(f[0], 10, 64)
	return n
}

// ticks returns what a number of clock ticks, 10 ms each, is in seconds.
func ticks(s string) float64 {
	n, _ := strconv.ParseFloat(s, 64)
	return n / 100
}

// cpu is the CPU time of the broker in seconds.
func (g glance) cpu() float64 { return g.user + g.system }

// cores returns how many processors the broker used since a, and what neither it nor this process
// used. If the second is above a quarter, something else disturbed the run.
func (g glance) cores(a glance) (broker, other float64) {
	seconds := g.at.Sub(a.at).Seconds()
	used := g.cpu() - a.cpu()
	return round(used / seconds),
		round((g.machine - a.machine - used - (g.self - a.self)) / seconds)
}

// cost reports what n messages have cost since a.
func (g glance) cost(rep report, a glance, n float64) {
	rep["dur_s"] = round(g.at.Sub(a.at).Seconds())
	rep["broker_cores"], rep["other_cores"] = g.cores(a)
	if n == 0 {
		return
	}
	micros := func(seconds float64) float64 { return round(seconds / n * 1e6) }
	rep["broker_us_per_msg"] = micros(g.cpu() - a.cpu())
	rep["broker_user_us"], rep["broker_sys_us"] = micros(g.user-a.user), micros(g.system-a.system)
	rep["load_us_per_msg"] = micros(g.self - a.self)
	rep["ctx_per_msg"] = round(float64(g.switches-a.switches) / n)
}
