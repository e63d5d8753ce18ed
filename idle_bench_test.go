package dunlin

import (
	"fmt"
	"net"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// BenchmarkIdleConnections is the memory, heap and stacks, that an idle TCP connection with its
// Session takes. The clients and their CONNECT packets are there before the Broker looks, so their
// memory does not count. Give it -benchtime 1x.
func BenchmarkIdleConnections(b *testing.B) {
	// The queue of a listener has room for them, and so have 4,096 descriptors, for both sides.
	const n = 1500
	for b.Loop() {
		br := newTestBroker(b, nil)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(b, err)
		clients := make([]net.Conn, n)
		for i := range clients {
			nc, err := net.Dial("tcp", l.Addr().String())
			require.NoError(b, err)
			clients[i] = nc
			p, err := (&packets.Connect{Version: packets.V311, CleanStart: true,
				ClientID: fmt.Sprintf("client-%05d", i)}).Append(nil, packets.V311)
			require.NoError(b, err)
			_, err = nc.Write(p)
			require.NoError(b, err)
		}
		heap, stacks := memoryInUse()
		go br.Serve(l) // ends with br
		for br.Stats().Accepted < n {
			runtime.Gosched()
		}
		heapNow, stacksNow := memoryInUse()
		b.ReportMetric((float64(heapNow)-float64(heap))/n, "heap-B/connection")
		b.ReportMetric((float64(stacksNow)-float64(stacks))/n, "stack-B/connection")
		require.NoError(b, br.Close())
		for _, nc := range clients {
			nc.Close()
		}
	}
	b.ReportMetric(0, "ns/op") // says nothing here
}

// memoryInUse is the memory of the heap and of stacks after collections.
func memoryInUse() (heap, stacks uint64) {
	var m runtime.MemStats
	for range 5 { // pools are empty after two; goroutines come to rest meanwhile
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.StackInuse
}
