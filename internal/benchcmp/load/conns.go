package main

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// runStorm connects and disconnects as fast as the workers can, always with a new Session.
func runStorm(cfg *config, rep report) error {
	return storm(cfg, rep, func(w, i int) (dialOpts, bool) {
		return dialOpts{id: fmt.Sprintf("c%d-%d-%d", os.Getpid(), w, i), clean: true}, false
	})
}

// runReconnect is runStorm with a Session for each worker that outlives its connections.
func runReconnect(cfg *config, rep report) error {
	return storm(cfg, rep, func(w, i int) (dialOpts, bool) {
		return dialOpts{id: fmt.Sprintf("r%d-%d", os.Getpid(), w)}, false
	})
}

// runTakeover is runReconnect without DISCONNECT: each connection takes the Session of its worker
// from the one before, which is open until then.
func runTakeover(cfg *config, rep report) error {
	return storm(cfg, rep, func(w, i int) (dialOpts, bool) {
		return dialOpts{id: fmt.Sprintf("t%d-%d", os.Getpid(), w)}, true
	})
}

// storm has each worker open one connection after the other: what next says. If stays, a connection
// is closed only when the next one of its worker is there.
func storm(cfg *config, rep report, next func(w, i int) (o dialOpts, stays bool)) error {
	var n, failed atomic.Int64
	var stop, measured atomic.Bool
	var first sync.Once
	var workers sync.WaitGroup
	latency := make([]hist, cfg.workers)
	for w := range cfg.workers {
		workers.Go(func() {
			var before *conn
			defer func() { closeAll([]*conn{before}) }()
			for i := 0; !stop.Load(); i++ {
				began := time.Now()
				o, stays := next(w, i)
				o.source, o.bufSize, o.keepAlive = 1+w*7+i, 256, 60
				c, err := open(cfg, o)
				if err != nil {
					failed.Add(1)
					first.Do(func() { rep["first_err"] = err.Error() })
					time.Sleep(time.Millisecond)
					continue
				}
				if measured.Load() {
					latency[w].add(int64(time.Since(began)))
				}
				n.Add(1)
				if stays {
					closeAll([]*conn{before})
					before = c
					continue
				}
				c.c.Write(disconnectPacket())
				c.c.Close()
			}
		})
	}
	time.Sleep(cfg.warm)
	measured.Store(true)
	a, before := look(cfg.pid, lookBriefly), n.Load()
	time.Sleep(cfg.dur)
	b, after := look(cfg.pid, lookBriefly), n.Load()
	stop.Store(true)
	workers.Wait()
	seconds, count := b.at.Sub(a.at).Seconds(), float64(after-before)
	rep["conn_per_s"] = round(count / seconds)
	rep["broker_us_per_conn"] = round((b.cpu() - a.cpu()) / count * 1e6)
	rep["load_us_per_conn"] = round((b.self - a.self) / count * 1e6)
	rep["broker_cores"], rep["other_cores"] = b.cores(a)
	rep["conn_errs"], rep["rss_peak_mb"] = failed.Load(), mb(b.peak)
	var all hist
	for i := range latency {
		all.merge(&latency[i])
	}
	all.report(rep)
	return nil
}

// runIdle opens connections, holds them, and looks at memory.
func runIdle(cfg *config, rep report) error {
	conns := make([]*conn, cfg.count)
	defer func() { closeAll(conns) }()
	var failed atomic.Int64
	var first sync.Once
	a, began := look(cfg.pid, lookClosely), time.Now()
	err := parallel(cfg, cfg.count, func(i int) error {
		c, err := open(cfg, dialOpts{
			id: fmt.Sprintf("idle-%d", i), clean: true, source: 1 + i, bufSize: 128,
		})
		if err == nil && cfg.subscribe {
			err = c.subscribe(1, []string{fmt.Sprintf("idle/%d/cmd", i)}, 0)
		}
		if err != nil { // the others go on
			failed.Add(1)
			first.Do(func() { rep["first_err"] = err.Error() })
			return nil
		}
		conns[i] = c
		return nil
	})
	if err != nil {
		return err
	}
	seconds, opened := time.Since(began).Seconds(), look(cfg.pid, lookBriefly)
	time.Sleep(cfg.settle)
	b := look(cfg.pid, lookClosely)
	time.Sleep(cfg.hold)
	c := look(cfg.pid, lookClosely)
	n := float64(cfg.count) - float64(failed.Load())
	rep["conns"], rep["conn_errs"] = n, failed.Load()
	rep["open_per_s"] = round(n / seconds)
	rep["broker_us_per_conn"] = round((opened.cpu() - a.cpu()) / n * 1e6)
	rep["bytes_per_conn"] = round(float64(c.rss-a.rss) / n)
	rep["pss_bytes_per_conn"] = round(float64(c.pss-a.pss) / n)
	rep["kernel_sock_bytes_per_conn"] = round(float64(c.sockets-a.sockets) / n)
	rep["rss_start_mb"], rep["rss_mb"], rep["rss_peak_mb"] = mb(a.rss), mb(c.rss), mb(c.peak)
	rep["idle_cpu_ms_per_s"] = round((c.cpu() - b.cpu()) / c.at.Sub(b.at).Seconds() * 1e3)
	rep["threads"] = c.threads
	rep["ping_ok_of_50"] = pingSome(conns, 50)
	return nil
}

// runPing sends PINGREQ on one connection after the other, each when the one before is answered.
func runPing(cfg *config, rep report) error {
	conns := make([]*conn, cfg.count)
	defer func() { closeAll(conns) }()
	err := parallel(cfg, cfg.count, func(i int) (err error) {
		conns[i], err = open(cfg, dialOpts{
			id: fmt.Sprintf("ping-%d", i), clean: true, source: 1 + i, bufSize: 128, keepAlive: 60,
		})
		return err
	})
	if err != nil {
		return err
	}
	n, missing := 0, 0
	all := func() {
		n += len(conns)
		missing += len(conns) - pingSome(conns, len(conns))
	}
	for end := time.Now().Add(cfg.warm); time.Now().Before(end); {
		all()
	}
	n = 0
	a := look(cfg.pid, lookBriefly)
	for end := a.at.Add(cfg.dur); time.Now().Before(end); {
		all()
	}
	b := look(cfg.pid, lookBriefly)
	rep["pings"], rep["pings_unanswered"] = n, missing
	rep["broker_us_per_ping"] = round((b.cpu() - a.cpu()) / float64(n) * 1e6)
	rep["load_us_per_ping"] = round((b.self - a.self) / float64(n) * 1e6)
	return nil
}

// pingSome sends PINGREQ on n of the connections and returns how many answer.
func pingSome(conns []*conn, n int) (alive int) {
	for i := 0; i < len(conns); i += max(len(conns)/n, 1) {
		c := conns[i]
		if c == nil {
			continue
		}
		c.c.Write([]byte{pktPingreq << 4, 0})
		c.c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if first, _, err := c.packet(); err == nil && first>>4 == pktPingresp {
			alive++
		}
	}
	return alive
}

// parallel calls f for 0 to n-1, by as many workers as the flags say, and returns the first error.
func parallel(cfg *config, n int, f func(i int) error) error {
	var workers sync.WaitGroup
	errs := make(chan error, cfg.workers)
	for w := range cfg.workers {
		workers.Go(func() {
			for i := w; i < n; i += cfg.workers {
				if err := f(i); err != nil {
					errs <- fmt.Errorf("%d: %w", i, err)
					return
				}
			}
		})
	}
	workers.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}
