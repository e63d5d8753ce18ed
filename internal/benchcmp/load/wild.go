package main

import (
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"time"
)

// wildFilter and wildTopic: topic k matches filter k and no other one. Out of 20 filters 12 have no
// wildcard, 3 have '+' low in the tree, 3 have '+' near the root, 2 end in '#'.
func wildFilter(k int) string {
	a, d := k%1000, k/1000
	switch m := (k / 7) % 20; {
	case m < 12:
		return fmt.Sprintf("w/s%d/d%d/t", a, d)
	case m < 15:
		return fmt.Sprintf("w/s%d/d%d/+/v", a, d)
	case m < 18:
		return fmt.Sprintf("w/+/e%d/q%d", d, a)
	default:
		return fmt.Sprintf("w/s%d/d%d/x/#", a, d)
	}
}

func wildTopic(k int, r *rand.Rand) string {
	a, d := k%1000, k/1000
	switch m := (k / 7) % 20; {
	case m < 12:
		return fmt.Sprintf("w/s%d/d%d/t", a, d)
	case m < 15:
		return fmt.Sprintf("w/s%d/d%d/%d/v", a, d, r.Intn(10))
	case m < 18:
		return fmt.Sprintf("w/s%d/e%d/q%d", r.Intn(1000), d, a)
	default:
		return fmt.Sprintf("w/s%d/d%d/x/%d/y", a, d, r.Intn(10))
	}
}

// subscribeWild makes many subscriptions, measures what they cost, and adds the publishers.
func (f *flow) subscribeWild(rep report) error {
	cfg := f.cfg
	for range cfg.subs {
		if err := f.addSubscriber(); err != nil {
			return err
		}
	}
	time.Sleep(300 * time.Millisecond)
	a, start := look(cfg.pid, lookClosely), time.Now()
	if err := parallel(cfg, len(f.subs),
		func(i int) error { return f.subscribePart(i) }); err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	n := float64(cfg.topics)
	rep["subs_per_s"] = round(n / time.Since(start).Seconds())
	rep["us_per_sub"] = round((look(cfg.pid, lookBriefly).cpu() - a.cpu()) / n * 1e6)
	time.Sleep(cfg.settle)
	b := look(cfg.pid, lookClosely)
	rep["bytes_per_sub"] = round(float64(b.rss-a.rss) / n)
	rep["rss_subscribed_mb"] = mb(b.rss)
	for i := range cfg.pubs {
		if err := f.addPublisher(random(int64(i)+77, cfg.topics)); err != nil {
			return err
		}
	}
	return nil
}

// subscribePart makes the subscriptions of one subscriber. A few SUBSCRIBEs are on their way at
// the same time.
func (f *flow) subscribePart(i int) error {
	const underWay = 8
	c, packetID, open := f.subs[i].c, uint16(0), 0
	var filters []string
	send := func() error {
		packetID++
		open++
		_, err := c.c.Write(subscribePacket(c.v, packetID, filters, f.cfg.qos))
		filters = filters[:0]
		if err == nil && open > underWay {
			open--
			err = c.suback()
		}
		return err
	}
	for k := i; k < f.cfg.topics; k += len(f.subs) {
		if filters = append(filters, wildFilter(k)); len(filters) == f.cfg.filters {
			if err := send(); err != nil {
				return err
			}
		}
	}
	if len(filters) > 0 {
		if err := send(); err != nil {
			return err
		}
	}
	for ; open > 0; open-- {
		if err := c.suback(); err != nil {
			return err
		}
	}
	return nil
}

// slow adds subscribers that do not read, and sees what that does to the others and to memory.
func (f *flow) slow(rep report) error {
	var stalled []*conn
	defer func() { closeAll(stalled) }()
	for i := range f.cfg.stalled {
		c, err := open(f.cfg, dialOpts{
			id: fmt.Sprintf("x%d-%d", os.Getpid(), i), clean: true, bufSize: 64 << 10,
			rcvbuf: 8 << 10,
		})
		if err == nil {
			err = c.subscribe(1, []string{"b/o"}, f.cfg.qos)
		}
		if err != nil {
			return err
		}
		stalled = append(stalled, c)
	}
	f.drive(rep)
	got, cut := 0, 0
	for _, c := range stalled { // now they read what is left for them
		n, err := c.readRest()
		got += n
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			cut++
		}
	}
	rep["stalled_subs"], rep["stalled_got"], rep["stalled_cut_off"] = f.cfg.stalled, got, cut
	rep["stalled_of"] = f.sent() * int64(f.cfg.stalled)
	return nil
}

// readRest acknowledges messages until none comes for a while, and returns how many came.
func (c *conn) readRest() (n int, err error) {
	for {
		c.c.SetReadDeadline(time.Now().Add(1500 * time.Millisecond))
		first, body, err := c.packet()
		if err != nil {
			return n, err
		}
		if first>>4 != pktPublish {
			continue
		}
		n++
		if id, _, err := publishParts(c.v, first, body); err == nil && id > 0 {
			c.c.Write([]byte{pktPuback << 4, 2, byte(id >> 8), byte(id)})
		}
	}
}
