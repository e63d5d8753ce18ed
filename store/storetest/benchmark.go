package storetest

import (
	"context"
	"fmt"
	"testing"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// Benchmark measures a store. It measures commits of 1 to 4,096 messages of 256 bytes, each queued
// for one Session and removed 10,000 messages later; commits of one message for 10,000 Sessions;
// and Load of 1,000 of these. open is as for [Run]. The metric records/s counts messages, refs/s
// counts queue entries.
func Benchmark(b *testing.B, open func(b *testing.B) (reopen func() (store.Store, error))) {
	for _, batch := range []int{1, 16, 256, 1024, 4096} {
		b.Run(fmt.Sprintf("Commit/batch=%d", batch), func(b *testing.B) {
			s := mustOpen(b, open(b))
			benchCommit(b, s, batch)
			mustClose(b, s)
		})
	}
	reopen := open(b)
	b.Run("FanOut/sessions=10000", func(b *testing.B) {
		s := mustOpen(b, open(b))
		fill(b, s, 10_000, 0)
		p := fanOutOf(10_000)
		b.ReportAllocs()
		for b.Loop() {
			for i := range p.To {
				p.To[i].Seq++
			}
			mustCommit(b, s, p)
		}
		b.ReportMetric(10_000*float64(b.N)/b.Elapsed().Seconds(), "refs/s")
		mustClose(b, s)
	})
	filled := false
	b.Run("Load/refs=10000000", func(b *testing.B) {
		if !filled { // the function runs more than once
			filled = true
			s := mustOpen(b, reopen)
			fill(b, s, 10_000, 1_000)
			mustClose(b, s)
		}
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			s := mustOpen(b, reopen)
			for op, err := range s.Load(context.Background()) {
				if err != nil {
					b.Fatal(err)
				}
				if p, ok := op.(*store.Publish); ok {
					n += len(p.To)
				}
			}
			mustClose(b, s)
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "refs/s")
	})
}

func benchCommit(b *testing.B, s store.Store, batch int) {
	const backlog = 10_000
	mustCommit(b, s, put(1))
	payload := make([]byte, 256)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	ops := make([]store.Op, 0, 2*batch)
	seq := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		ops = ops[:0]
		for range batch {
			seq++
			ops = append(ops, &store.Publish{
				Message: &store.Message{Message: packets.Message{
					Topic: "plant/7/line/3/temperature", QoS: packets.QoS1, Payload: payload,
				}, From: "sensor-00017"},
				To: []store.Delivery{{Session: 1, Seq: seq, QoS: packets.QoS1}},
			})
			if seq > backlog {
				ops = append(ops, &store.Done{Session: 1, Seq: seq - backlog})
			}
		}
		mustCommit(b, s, ops...)
	}
	b.ReportMetric(float64(b.N)*float64(batch)/b.Elapsed().Seconds(), "records/s")
}

// fill makes Sessions and gives each the same messages.
func fill(b *testing.B, s store.Store, sessions, messages int) {
	b.Helper()
	ops := make([]store.Op, sessions)
	for i := range ops {
		ops[i] = put(uint64(i + 1))
	}
	mustCommit(b, s, ops...)
	p := fanOutOf(sessions)
	for range messages {
		for i := range p.To {
			p.To[i].Seq++
		}
		mustCommit(b, s, p)
	}
}

func fanOutOf(sessions int) *store.Publish {
	p := &store.Publish{Message: message("news/all", string(make([]byte, 256))),
		To: make([]store.Delivery, sessions)}
	for i := range p.To {
		p.To[i] = store.Delivery{Session: uint64(i + 1), QoS: packets.QoS1}
	}
	return p
}

func mustOpen(b *testing.B, open func() (store.Store, error)) store.Store {
	b.Helper()
	s, err := open()
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func mustClose(b *testing.B, s store.Store) {
	b.Helper()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

func mustCommit(b *testing.B, s store.Store, ops ...store.Op) {
	if err := s.Commit(context.Background(), ops); err != nil {
		b.Fatal(err)
	}
}
