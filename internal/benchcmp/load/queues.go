package main

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"
)

// publishAll sends n QoS 1 messages over one connection, with a window, and waits until all are
// acknowledged.
func publishAll(cfg *config, c *conn, m stamped, n int, topic func(i int) string) error {
	window := make(chan struct{}, cfg.window)
	done := make(chan error, 1)
	go func() { done <- c.readAcks(n, window) }() // waited for below
	pad := make([]byte, cfg.size-stampLen)
	var buf []byte
	flush := func() error {
		_, err := c.c.Write(buf)
		buf = buf[:0]
		return err
	}
	for i := range n {
		select {
		case window <- struct{}{}:
		default: // the window is full: what is in the buffer has to go out
			if err := flush(); err != nil {
				return err
			}
			select {
			case window <- struct{}{}:
			case err := <-done:
				return err
			}
		}
		m.topic, m.at, m.seq = topic(i), now(), uint32(i)
		buf = append(m.appendHead(buf), pad...)
		if len(buf) > 16<<10 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return <-done
}

// readAcks reads n PUBACKs and frees a place in the window for each.
func (c *conn) readAcks(n int, window chan struct{}) error {
	for {
		err := c.each(func(first byte, _ []byte) error {
			if first>>4 == pktPuback {
				n--
				<-window
			}
			return nil
		})
		if n == 0 || err != nil {
			return err
		}
		c.c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if err := c.fill(); err != nil {
			return fmt.Errorf("waiting for %d acknowledgements: %w", n, err)
		}
	}
}

// runRetained stores retained messages; then one subscriber asks for all of them.
func runRetained(cfg *config, rep report) error {
	p, err := open(cfg, dialOpts{id: "ret-p", clean: true, bufSize: 16 << 10})
	if err != nil {
		return err
	}
	defer p.c.Close()
	a, began := look(cfg.pid, lookClosely), time.Now()
	m := stamped{v: cfg.version, qos: 1, retain: true, size: cfg.size}
	topic := func(i int) string { return fmt.Sprintf("r/a%d/b%d/state", i%1000, i/1000) }
	if err := publishAll(cfg, p, m, cfg.count, topic); err != nil {
		return err
	}
	n := float64(cfg.count)
	rep["store_per_s"] = round(n / time.Since(began).Seconds())
	rep["store_us_per_msg"] = round((look(cfg.pid, lookBriefly).cpu() - a.cpu()) / n * 1e6)
	time.Sleep(cfg.settle)
	rep["bytes_per_retained"] = round(float64(look(cfg.pid, lookClosely).rss-a.rss) / n)

	s, err := open(cfg, dialOpts{id: "ret-s", clean: true, bufSize: 256 << 10})
	if err != nil {
		return err
	}
	defer s.c.Close()
	b, began := look(cfg.pid, lookBriefly), time.Now()
	filters := []string{cfg.filter}
	if _, err := s.c.Write(subscribePacket(cfg.version, 1, filters, cfg.qos)); err != nil {
		return err
	}
	d := drained{cfg: cfg, c: s, began: began}
	if err := d.read(5 * time.Second); err != nil {
		rep["err"] = err.Error()
	}
	c := look(cfg.pid, lookClosely)
	rep["got"], rep["lost"] = d.n, cfg.count-d.n
	rep["first_ms"], rep["deliver_s"] = millis(d.first), round(d.last.Seconds())
	rep["deliver_per_s"] = round(float64(d.n) / d.last.Seconds())
	rep["deliver_us_per_msg"] = round((c.cpu() - b.cpu()) / float64(max(d.n, 1)) * 1e6)
	rep["rss_mb"], rep["rss_peak_mb"] = mb(c.rss), mb(c.peak)
	return nil
}

// drained is what one client reads of what is waiting for it.
type drained struct {
	cfg         *config
	c           *conn
	began       time.Time
	n, mis      int
	first, last time.Duration // since began, when the first and the last message came
	absent      bool          // the CONNACK said that there is no Session
	seq         int64
}

// read acknowledges messages until cfg.count have come. It gives up when nothing comes for wait.
func (d *drained) read(wait time.Duration) error {
	var out []byte
	d.seq = -1
	for d.n < d.cfg.count {
		d.c.c.SetReadDeadline(time.Now().Add(wait))
		if err := d.c.fill(); err != nil {
			return err
		}
		err := d.c.each(func(first byte, body []byte) error {
			switch first >> 4 {
			case pktConnack:
				d.absent = body[0]&1 == 0
			case pktPublish:
				id, payload, err := publishParts(d.c.v, first, body)
				if err != nil || len(payload) != d.cfg.size {
					return errMalformed
				}
				if id > 0 {
					out = append(out, pktPuback<<4, 2, byte(id>>8), byte(id))
				}
				d.take(int64(binary.BigEndian.Uint32(payload[12:])))
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(out) > 0 {
			d.c.c.Write(out)
			out = out[:0]
		}
	}
	return nil
}

func (d *drained) take(seq int64) {
	d.last = time.Since(d.began)
	if d.n++; d.n == 1 {
		d.first = d.last
	}
	if seq <= d.seq {
		d.mis++
	}
	d.seq = seq
}

// runOffline makes Sessions that outlive their connections, queues messages for each, and lets all
// come back and read them.
func runOffline(cfg *config, rep report) error {
	if err := makeSessions(cfg); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	a, began := look(cfg.pid, lookClosely), time.Now()
	if err := fillQueues(cfg); err != nil {
		return err
	}
	total := float64(cfg.subs * cfg.count)
	rep["queue_per_s"] = round(total / time.Since(began).Seconds())
	rep["queue_us_per_msg"] = round((look(cfg.pid, lookBriefly).cpu() - a.cpu()) / total * 1e6)
	time.Sleep(cfg.settle)
	b := look(cfg.pid, lookClosely)
	rep["bytes_per_queued"] = round(float64(b.rss-a.rss) / total)
	rep["rss_mb"] = mb(b.rss)

	var got, mis, absent, last atomic.Int64
	began = time.Now()
	err := parallel(cfg, cfg.subs, func(i int) error {
		nc, err := dialTCP(cfg.addr, dialOpts{})
		if err != nil {
			return err
		}
		defer nc.Close()
		c := &conn{c: nc, v: cfg.version, buf: make([]byte, 16<<10)}
		nc.Write(connectPacket(cfg.version, offline(i)))
		d := drained{cfg: cfg, c: c, began: began}
		d.read(2 * time.Second) // what is missing then is lost
		got.Add(int64(d.n))
		mis.Add(int64(d.mis))
		if d.absent {
			absent.Add(1)
		}
		for x := last.Load(); int64(d.last) > x && !last.CompareAndSwap(x, int64(d.last)); {
			x = last.Load()
		}
		nc.Write(disconnectPacket())
		return nil
	})
	if err != nil {
		return err
	}
	seconds, c := time.Duration(last.Load()).Seconds(), look(cfg.pid, lookClosely)
	n := float64(max(got.Load(), 1))
	rep["got"], rep["lost"] = got.Load(), int64(total)-got.Load()
	rep["misordered"], rep["session_absent"] = mis.Load(), absent.Load()
	rep["drain_s"], rep["drain_per_s"] = round(seconds), round(n/seconds)
	rep["drain_us_per_msg"] = round((c.cpu() - b.cpu()) / n * 1e6)
	rep["rss_peak_mb"] = mb(c.peak)
	return nil
}

// offline is the client with number i of scenario offline.
func offline(i int) dialOpts {
	return dialOpts{id: fmt.Sprintf("off-%d", i), expiry: 3600, keepAlive: 600}
}

func makeSessions(cfg *config) error {
	return parallel(cfg, cfg.subs, func(i int) error {
		c, err := open(cfg, offline(i))
		if err != nil {
			return err
		}
		defer c.c.Close()
		if err := c.subscribe(1, []string{fmt.Sprintf("q/%d", i)}, 1); err != nil {
			return err
		}
		_, err = c.c.Write(disconnectPacket())
		return err
	})
}

// fillQueues publishes cfg.count messages to each Session. Each publisher has some of the Sessions.
func fillQueues(cfg *config) error {
	return parallel(cfg, cfg.pubs, func(w int) error {
		var mine []int
		for i := w; i < cfg.subs; i += cfg.pubs {
			mine = append(mine, i)
		}
		if len(mine) == 0 {
			return nil
		}
		c, err := open(cfg, dialOpts{id: fmt.Sprintf("off-p%d", w), clean: true, bufSize: 16 << 10})
		if err != nil {
			return err
		}
		defer c.c.Close()
		m := stamped{v: cfg.version, qos: 1, size: cfg.size, pub: uint32(w)}
		topic := func(i int) string { return fmt.Sprintf("q/%d", mine[i%len(mine)]) }
		return publishAll(cfg, c, m, len(mine)*cfg.count, topic)
	})
}
