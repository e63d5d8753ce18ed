package dunlin

import (
	"math"
	"runtime"
	"strconv"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the $SYS topics.

// A load is an average over the last minutes that weighs the recent more, per minute.
type load struct {
	name string
	get  func(*Stats) uint64
	last uint64
	avg  [3]float64 // 1, 5 and 15 minutes
}

// loads are those of the Broker.
type loads struct {
	of    []*load
	since time.Time // when they were published; zero: never
}

// publishSys publishes the $SYS topics every SysInterval until the Broker ends.
func (b *Broker) publishSys() {
	ls := &loads{of: []*load{
		{name: "messages/received", get: func(s *Stats) uint64 { return s.PacketsReceived }},
		{name: "messages/sent", get: func(s *Stats) uint64 { return s.PacketsSent }},
		{name: "publish/received", get: func(s *Stats) uint64 { return s.MessagesReceived }},
		{name: "publish/sent", get: func(s *Stats) uint64 { return s.MessagesSent }},
		{name: "publish/dropped", get: func(s *Stats) uint64 { return s.MessagesDropped }},
		{name: "bytes/received", get: func(s *Stats) uint64 { return s.BytesReceived }},
		{name: "bytes/sent", get: func(s *Stats) uint64 { return s.BytesSent }},
		{name: "connections", get: func(s *Stats) uint64 { return s.Accepted }},
		{name: "sockets", get: func(s *Stats) uint64 { return s.Connected }},
	}}
	for b.ctx.Err() == nil {
		b.publishSysEvery(b.cfg().SysInterval, ls)
	}
}

// publishSysEvery publishes them now and every d, 0 for never, until SysInterval is another one or
// the Broker ends.
func (b *Broker) publishSysEvery(d time.Duration, ls *loads) {
	var due <-chan time.Time
	if d > 0 {
		tick := time.NewTicker(d)
		defer tick.Stop()
		due = tick.C
	}
	for {
		if d > 0 {
			b.publishLoads(d, ls)
		}
		lock.NoneHeld("a wait")
		select {
		case <-due:
		case <-b.sysChanged:
			return
		case <-b.ctx.Done():
			return
		}
	}
}

// publishLoads publishes them once. They are published every d.
func (b *Broker) publishLoads(d time.Duration, ls *loads) {
	st := b.Stats()
	b.publishStats(&st)
	now := time.Now()
	if !ls.since.IsZero() {
		d = max(now.Sub(ls.since), 1)
	}
	ls.since = now
	for _, l := range ls.of {
		n := l.get(&st)
		perMinute := float64(n-l.last) / d.Minutes()
		l.last = n
		for i, window := range [3]float64{1, 5, 15} {
			k := math.Exp(-d.Minutes() / window)
			l.avg[i] = perMinute + k*(l.avg[i]-perMinute)
			b.sys("load/"+l.name+"/"+strconv.Itoa(int(window))+"min",
				strconv.FormatFloat(l.avg[i], 'f', 2, 64))
		}
	}
}

func (b *Broker) publishStats(st *Stats) {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	b.sys("version", "dunlin "+Version)
	b.sys("uptime", strconv.FormatInt(int64(st.Uptime/time.Second), 10)+" seconds")
	for _, x := range []struct {
		name string
		n    uint64
	}{
		{"clients/connected", uint64(st.Connections)},
		{"clients/active", uint64(st.Connections)},
		{"clients/disconnected", uint64(max(0, st.Sessions-st.Connections))},
		{"clients/inactive", uint64(max(0, st.Sessions-st.Connections))},
		{"clients/expired", st.SessionsExpired},
		{"clients/total", uint64(st.Sessions)},
		{"clients/maximum", st.MaxConnections},
		{"messages/received", st.PacketsReceived},
		{"messages/sent", st.PacketsSent},
		{"messages/inflight", uint64(st.Inflight)},
		{"messages/stored", uint64(st.Queued + st.Retained)},
		{"store/messages/count", uint64(st.Queued + st.Retained)},
		{"store/messages/bytes", uint64(st.QueuedBytes + st.RetainedBytes)},
		{"publish/messages/received", st.MessagesReceived},
		{"publish/messages/sent", st.MessagesSent},
		{"publish/messages/dropped", st.MessagesDropped},
		{"publish/bytes/received", st.PayloadReceived},
		{"publish/bytes/sent", st.PayloadSent},
		{"bytes/received", st.BytesReceived},
		{"bytes/sent", st.BytesSent},
		{"retained messages/count", uint64(st.Retained)},
		{"subscriptions/count", uint64(st.Subscriptions - st.SharedSubscriptions)},
		{"shared_subscriptions/count", uint64(st.SharedSubscriptions)},
		{"heap/current", mem.HeapAlloc},
		{"heap/maximum", mem.HeapSys},
	} {
		b.sys(x.name, strconv.FormatUint(x.n, 10))
	}
}

// sys publishes one of the $SYS topics, retained.
func (b *Broker) sys(name, value string) {
	b.work(func(t *turn) {
		m := &message{Message: packets.Message{Topic: "$SYS/broker/" + name, Payload: []byte(value),
			Retain: true}}
		t.untold = true
		matched, err := t.publishMessage(m, origin{})
		if err != nil {
			b.log.Debug("$SYS not published", "topic", m.Topic, "err", err)
			return
		}
		b.published(program, &m.Message, matched)
	})
}
