package main

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A flow is traffic from publishers to subscribers.
type flow struct {
	cfg    *config
	pubs   []*publisher
	subs   []*subscriber
	fan    int  // deliveries that each message makes
	shared bool // one member of the group gets a message

	stop        atomic.Bool
	measured    atomic.Bool
	closing     atomic.Bool // errors are expected
	publishing  sync.WaitGroup
	subscribing sync.WaitGroup
	rejects     atomic.Int64

	errors     atomic.Int64
	firstError sync.Once
	err        error // the first one; read when all are done

	seenMu    sync.Mutex
	seen      [][]uint64 // by publisher; only with shared. Guarded by seenMu, as is the next
	seenTwice int64
}

func (f *flow) fail(err error) {
	if !f.closing.Load() {
		f.errors.Add(1)
		f.firstError.Do(func() { f.err = err })
	}
}

// perPublisher is how many messages a second each of them sends, with a rate.
func (f *flow) perPublisher() float64 { return f.cfg.rate / float64(len(f.pubs)) }

// began is what stamps are counted from.
var began = time.Now()

func now() int64 { return int64(time.Since(began)) }

func (f *flow) addPublisher(topic func(uint32) string) error {
	id := len(f.pubs)
	c, err := open(f.cfg, dialOpts{
		id: fmt.Sprintf("p%d-%d", os.Getpid(), id), clean: true, bufSize: 16 << 10,
	})
	if err != nil {
		return fmt.Errorf("publisher %d: %w", id, err)
	}
	p := &publisher{id: uint32(id), c: c, topic: topic, wake: make(chan struct{}, 1)}
	f.pubs = append(f.pubs, p)
	return nil
}

func (f *flow) addSubscriber(filters ...string) error {
	size := 64 << 10
	if f.cfg.subs > 100 {
		size = 16 << 10
	}
	if f.cfg.size > 8<<10 {
		size = max(size, 4*f.cfg.size)
	}
	id := len(f.subs)
	c, err := open(f.cfg, dialOpts{
		id: fmt.Sprintf("s%d-%d", os.Getpid(), id), clean: true, bufSize: size,
	})
	if err == nil && len(filters) > 0 {
		err = c.subscribe(1, filters, f.cfg.qos)
	}
	if err != nil {
		return fmt.Errorf("subscriber %d: %w", id, err)
	}
	f.subs = append(f.subs, &subscriber{c: c})
	return nil
}

// connect makes as many subscribers and publishers as the flags say. With an empty filter a
// subscriber subscribes to nothing yet.
func (f *flow) connect(filter func(i int) string, topic func(i int) func(uint32) string) error {
	for i := range f.cfg.subs {
		var filters []string
		if x := filter(i); x != "" {
			filters = append(filters, x)
		}
		if err := f.addSubscriber(filters...); err != nil {
			return err
		}
	}
	for i := range f.cfg.pubs {
		if err := f.addPublisher(topic(i)); err != nil {
			return err
		}
	}
	return nil
}

func runFlow(cfg *config, rep report) error {
	f := &flow{cfg: cfg, fan: 1}
	named := func(format string) func(int) func(uint32) string {
		return func(i int) func(uint32) string { return fixed(fmt.Sprintf(format, i)) }
	}
	all := func(filter string) func(int) string { return func(int) string { return filter } }
	var err error
	switch cfg.scenario {
	case "p2p":
		cfg.subs = cfg.pubs
		own := func(i int) string { return fmt.Sprintf("b/p/%d", i) }
		err = f.connect(own, named("b/p/%d"))
	case "fanin":
		f.fan = cfg.subs
		err = f.connect(all("b/f/+/t"), named("b/f/%d/t"))
	case "shared":
		f.shared = true
		err = f.connect(all("$share/g/b/s/+"), named("b/s/%d"))
	case "wild":
		err = f.subscribeWild(rep)
	default: // fanout, slow
		f.fan = cfg.subs
		err = f.connect(all("b/o"), func(int) func(uint32) string { return fixed("b/o") })
	}
	switch {
	case err != nil:
		return err
	case cfg.scenario == "slow":
		return f.slow(rep)
	}
	f.drive(rep)
	return nil
}

// drive lets traffic flow: at first unmeasured, then measured, until all has come, or nothing comes
// for a second.
func (f *flow) drive(rep report) {
	if f.shared {
		f.seen = make([][]uint64, len(f.pubs))
	}
	for _, s := range f.subs {
		f.subscribing.Add(1)
		go s.run(f) // waited for below
	}
	time.Sleep(100 * time.Millisecond)
	before := look(f.cfg.pid, lookClosely)
	for _, p := range f.pubs {
		f.publishing.Add(1)
		go p.acks(f) // ends when its connection is closed, below
		go p.run(f)  // waited for below
	}
	time.Sleep(f.cfg.warm)
	f.measured.Store(true)
	sent, recv := f.sent(), f.received()
	a := look(f.cfg.pid, lookBriefly)
	time.Sleep(f.cfg.dur)
	b := look(f.cfg.pid, lookClosely)
	sent, recv = f.sent()-sent, f.received()-recv
	f.measured.Store(false)
	f.stop.Store(true)
	for _, p := range f.pubs {
		p.signal()
	}
	f.drain()
	end := look(f.cfg.pid, lookClosely)
	b.cost(rep, a, float64(recv))
	rep["sent"], rep["recv"] = sent, recv
	seconds := b.at.Sub(a.at).Seconds()
	rep["pub_per_s"] = round(float64(sent) / seconds)
	rep["msg_per_s"] = round(float64(recv) / seconds)
	rep["rss_start_mb"], rep["rss_mb"], rep["rss_peak_mb"] = mb(before.rss), mb(b.rss), mb(end.peak)
	rep["pss_mb"] = mb(b.pss)
	f.account(rep)
}

// drain waits for what is on its way, closes all connections, and waits for their goroutines.
func (f *flow) drain() {
	last, at := f.received(), time.Now()
	for f.received() < f.sent()*int64(f.fan) && time.Since(at) < time.Second {
		time.Sleep(20 * time.Millisecond)
		if x := f.received(); x != last {
			last, at = x, time.Now()
		}
	}
	time.Sleep(50 * time.Millisecond) // for what comes twice
	f.closing.Store(true)
	for _, p := range f.pubs {
		p.c.c.Close()
	}
	f.publishing.Wait()
	for _, s := range f.subs {
		s.c.c.Close()
	}
	f.subscribing.Wait()
}

// account reports what came late, twice, in the wrong order, or not at all.
func (f *flow) account(rep report) {
	var latency hist
	var mis, malformed int64
	dup := f.seenTwice
	for _, s := range f.subs {
		latency.merge(&s.latency)
		dup, mis, malformed = dup+s.dup, mis+s.mis, malformed+s.malformed
	}
	stalls := 0
	for _, p := range f.pubs {
		stalls += p.stalls
	}
	latency.report(rep)
	rep["lost"] = f.sent()*int64(f.fan) - f.received() + dup
	rep["dup"], rep["misordered"], rep["malformed"] = dup, mis, malformed
	rep["stalls"], rep["conn_errs"] = stalls, f.errors.Load()
	if f.err != nil {
		rep["err"] = f.err.Error()
	}
	if x := f.rejects.Load(); x > 0 {
		rep["rejected"] = x
	}
}

func (f *flow) received() (n int64) {
	for _, s := range f.subs {
		n += s.n.Load()
	}
	return n
}

func (f *flow) sent() (n int64) {
	for _, p := range f.pubs {
		n += p.sent.Load()
	}
	return n
}
