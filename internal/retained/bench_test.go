package retained

import (
	"fmt"
	"runtime"
	"testing"
)

// heapInUse is how many bytes are reachable.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkStore measures one million retained messages. B/topic is what the Store takes for each,
// besides the message itself.
func BenchmarkStore(b *testing.B) {
	const n = 1_000_000
	msgs := make([]*Message, n)
	for i := range msgs {
		msgs[i] = message(fmt.Sprintf("d/%d/x/%d", i%100_000, i/100_000), "")
	}
	before := heapInUse()
	s := unlimited()
	for _, m := range msgs {
		s.must(b, m)
	}
	perTopic := float64(heapInUse()-before) / n
	b.Run("replace", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			s.Set(msgs[i*7919%n], 0)
		}
		b.ReportMetric(perTopic, "B/topic")
	})
	b.Run("remove and set", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			m := msgs[i*7919%n]
			s.Remove(m.Topic)
			s.Set(m, 0)
		}
	})
	for _, filter := range []string{"d/777/#", "d/777/x/3", "#", "d/+/x/3", "d/+/y", "+/+/y/+",
		"+/+/+/+/x"} {
		b.Run("scan "+filter, func(b *testing.B) {
			b.ReportAllocs()
			var dst []*Message
			calls, found, looked := 0, 0, 0
			for range b.N {
				for from, more := "", true; more; {
					f := s.Scan(filter, from, 100, 512, dst[:0])
					dst, from, more = f.Messages, f.Next, f.Next != ""
					calls++
					found += len(f.Messages)
					looked += f.Looked
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(calls), "ns/call")
			b.ReportMetric(float64(found)/float64(b.N), "found")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(max(looked, 1)), "ns/look")
		})
	}
}
