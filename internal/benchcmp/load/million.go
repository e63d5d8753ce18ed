package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// This file is scenario million: very many connections with one subscription each. They come, are
// idle but for their pings, get messages, leave, and come back.

// A million is a run of the scenario.
type million struct {
	cfg    *config
	rep    report
	crowds []*crowd
	start  glance
}

const (
	// How often a phase is looked at, and how often it says how far it is
	lookEvery = 10 * time.Millisecond
	sayEvery  = 2 * time.Second
	// A phase that waits for clients or the broker ends when nothing has changed for so long
	patience = 20 * time.Second
)

func runMillion(cfg *config, rep report) error {
	if cfg.qos > 1 || cfg.count < 1 || cfg.size > 16<<10 {
		return errors.New("scenario million takes a -qos of 0 or 1, a -count of 1 or more, and a " +
			"-size of 16384 or less")
	}
	if err := enoughDescriptors(cfg.count); err != nil {
		return err
	}
	to, err := ipv4(cfg.addr)
	if err != nil {
		return err
	}
	m := &million{cfg: cfg, rep: rep, start: look(cfg.pid, lookClosely)}
	own, kernel := ownMemory(), slab()
	step := min(runtime.GOMAXPROCS(0), cfg.workers, cfg.count)
	for i := range step {
		w, err := newCrowd(cfg, to, i, step, (cfg.count-i+step-1)/step)
		if err != nil {
			return err
		}
		m.crowds = append(m.crowds, w)
	}
	var over sync.WaitGroup
	for _, w := range m.crowds {
		over.Go(w.run)
	}
	defer func() {
		for _, w := range m.crowds {
			close(w.ask)
		}
		over.Wait()
	}()
	n := m.connectAll("connect_", 0)
	if n == 0 {
		return m.sum().err
	}
	m.memory("rss_mb", n)
	rep["load_bytes_per_conn"] = round(float64(ownMemory()-own) / n)
	rep["slab_bytes_per_conn"] = round(float64(slab()-kernel) / n)
	m.idle()
	m.messages()
	m.leave()
	m.connectAll("back_", cfg.back)
	m.memory("rss_back_mb", 0)
	m.endPings()
	sum := m.sum()
	rep["ended"], rep["pings"], rep["pings_unanswered"] = sum.ended, sum.pings,
		sum.pings-sum.answered
	if sum.err != nil {
		rep["first_err"] = sum.err.Error()
	}
	return nil
}

// enoughDescriptors says what is missing for n connections.
func enoughDescriptors(n int) error {
	const others = 32
	var most syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &most); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	if most.Cur < uint64(n+others) {
		return fmt.Errorf("%d connections need %d descriptors, and this process may have %d: "+
			"raise ulimit -n, or give a smaller -count", n, n+others, most.Cur)
	}
	return nil
}

// ownMemory is how much of the memory of the machine this process has, in bytes.
func ownMemory() int64 { return field(read("/proc/self/status"), "VmRSS:") << 10 }

// slab is how much the system keeps for sockets and other things of its own, in bytes.
func slab() int64 { return field(read("/proc/meminfo"), "\nSlab:") << 10 }

// each has every crowd call f between two looks at its connections, one after the other.
func (m *million) each(f func(w *crowd)) {
	for _, w := range m.crowds {
		done := make(chan struct{})
		w.ask <- func() { f(w); close(done) }
		<-done
	}
}

// sum adds up what has happened to all crowds.
func (m *million) sum() (all tally) {
	m.each(func(w *crowd) {
		all.open += w.open
		all.refused += w.refused
		all.ended += w.ended
		all.pings += w.pings
		all.answered += w.answered
		all.sent += w.sent
		all.got += w.got
		all.connect.merge(&w.connect)
		all.ping.merge(&w.ping)
		all.delay.merge(&w.delay)
		if all.err == nil {
			all.err = w.err
		}
	})
	return all
}

// await waits until over says so, or nothing has changed for that long; then it returns false.
// state is what changes.
func (m *million) await(what string, unchanged time.Duration,
	over func(t *tally) (state int, over bool)) bool {
	began, last, changed, said := time.Now(), -1, time.Now(), time.Now()
	for {
		sum := m.sum()
		state, done := over(&sum)
		if time.Since(said) >= sayEvery || done {
			said = time.Now()
			fmt.Fprintf(m.cfg.progress, "%6.0f s  %s: %d; broker %.0f MB\n",
				time.Since(began).Seconds(), what, state, mb(look(m.cfg.pid, lookBriefly).rss))
		}
		if done {
			return true
		}
		if state != last {
			last, changed = state, time.Now()
		} else if time.Since(changed) > unchanged {
			return false
		}
		time.Sleep(lookEvery)
	}
}

// connectAll has all connect and subscribe, and reports how. It returns how many there are.
func (m *million) connectAll(prefix string, perSecond float64) float64 {
	a := look(m.cfg.pid, lookBriefly)
	m.each(func(w *crowd) {
		w.every = int64(m.cfg.pingEvery)
		w.connectAll(perSecond / float64(len(m.crowds)))
	})
	came := 0
	if !m.await("connected", patience, func(t *tally) (int, bool) {
		came = t.open
		return t.open, t.open+t.refused >= m.cfg.count
	}) {
		m.each(func(w *crowd) { w.giveUp() })
	}
	b, sum := look(m.cfg.pid, lookBriefly), m.sum()
	m.rep[prefix+"per_s"] = round(float64(came) / b.at.Sub(a.at).Seconds())
	m.rep[prefix+"refused"] = sum.refused
	m.rep[prefix+"cores"], _ = b.cores(a)
	sum.connect.reportAs(m.rep, prefix)
	return float64(sum.open)
}

// memory waits a moment, and reports how much memory the broker has, and for each of n connections.
func (m *million) memory(key string, n float64) {
	time.Sleep(m.cfg.settle)
	g := look(m.cfg.pid, lookClosely)
	m.rep[key], m.rep["rss_peak_mb"] = mb(g.rss), mb(g.peak)
	if n > 0 {
		m.rep["conns"], m.rep["rss_start_mb"] = n, mb(m.start.rss)
		m.rep["bytes_per_conn"] = round(float64(g.rss-m.start.rss) / n)
	}
}

// idle holds the connections, which ping only.
func (m *million) idle() {
	m.each(func(w *crowd) { w.ping = hist{} })
	a, before := look(m.cfg.pid, lookBriefly), m.sum()
	m.pass("pings answered", m.cfg.hold, func(t *tally) int { return t.answered })
	b, after := look(m.cfg.pid, lookBriefly), m.sum()
	m.rep["idle_pings_per_s"] = round(float64(after.answered-before.answered) /
		b.at.Sub(a.at).Seconds())
	m.rep["idle_cores"], _ = b.cores(a)
	after.ping.reportAs(m.rep, "ping_")
}

// messages has messages go from anybody to anybody else.
func (m *million) messages() {
	rate := m.cfg.rate
	if rate == 0 {
		rate = 10_000
	}
	publish := func(on bool) {
		m.each(func(w *crowd) {
			w.publishing, w.from, w.begun = on, now(), 0
			w.perSecond = rate / float64(len(m.crowds))
		})
	}
	publish(true)
	delivered := func(t *tally) int { return t.got }
	m.pass("messages delivered", m.cfg.warm, delivered)
	a, before := look(m.cfg.pid, lookBriefly), m.sum().got
	m.each(func(w *crowd) { w.delay = hist{} })
	m.pass("messages delivered", m.cfg.dur, delivered)
	b, after := look(m.cfg.pid, lookBriefly), m.sum()
	publish(false)
	n := float64(after.got - before)
	b.cost(m.rep, a, n)
	m.rep["msgs_per_s"] = round(n / b.at.Sub(a.at).Seconds())
	after.delay.report(m.rep)
	m.await("messages delivered", patience, func(t *tally) (int, bool) {
		return t.got, t.got >= t.sent
	})
	all := m.sum()
	m.rep["sent"], m.rep["got"], m.rep["lost"] = all.sent, all.got, all.sent-all.got
}

// pass waits for some time.
func (m *million) pass(what string, d time.Duration, state func(t *tally) int) {
	end := time.Now().Add(d)
	m.await(what, d+time.Second, func(t *tally) (int, bool) {
		return state(t), time.Now().After(end)
	})
}

// endPings has no more PINGREQ sent, and waits for the answers to those that were.
func (m *million) endPings() {
	m.each(func(w *crowd) { w.every = 0 })
	m.await("pings answered", patience, func(t *tally) (int, bool) {
		return t.answered, t.answered >= t.pings
	})
}

// leave has all disconnect.
func (m *million) leave() {
	m.endPings()
	began := time.Now()
	m.each(func(w *crowd) { w.left = 0 })
	m.await("still connected", patience, func(t *tally) (int, bool) {
		return t.open, t.open == 0
	})
	m.rep["left_s"] = round(time.Since(began).Seconds())
	m.memory("rss_left_mb", 0)
}

// reportAs writes the quantiles with a prefix.
func (h *hist) reportAs(rep report, prefix string) {
	own := report{}
	h.report(own)
	for key, x := range own {
		rep[prefix+key] = x
	}
}
