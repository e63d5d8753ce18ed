package dunlin

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// BenchmarkPublishBesideSubscribe is how long a QoS 1 publish of one client takes until its PUBACK,
// over TCP, while another one has sent a SUBSCRIBE of many filters to # and to what has to be
// looked for at length. p50-ms, p99-ms and max-ms are of all publishes. The SUBSCRIBE is sent anew
// when all is found.
func BenchmarkPublishBesideSubscribe(b *testing.B) {
	for _, n := range []int{10_000, 100_000, 1_000_000} {
		br := newTestBroker(b, nil)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(b, err)
		served := make(chan error, 1)
		go func() { served <- br.Serve(l) }()
		retainHard(b, br, n)
		for _, filters := range []int{0, 600, 5000} {
			b.Run(fmt.Sprintf("%d retained, %d filters", n, filters), func(b *testing.B) {
				publishBeside(b, br, l.Addr().String(), filters)
			})
		}
		br.Close()
		<-served
	}
}

func publishBeside(b *testing.B, br *Broker, addr string, filters int) {
	dial := func(id string) *testClient {
		nc, err := net.Dial("tcp", addr)
		require.NoError(b, err)
		c, _ := newTestClient(b, nc, connect(id))
		return c
	}
	heavy, p := dial("heavy"), dial("publisher")
	defer heavy.nc.Close()
	defer p.nc.Close()
	subscribed := make(chan struct{}, 1)
	subscribe := func() {
		heavy.send(subscribeHard(filters, 0))
		<-subscribed
	}
	if filters > 0 {
		require.Equal(b, packets.Success, heavy.subscribe("#", 0))
		go func() { // ends with the connection
			for {
				p, err := heavy.r.ReadPacket()
				if err != nil {
					return
				}
				if _, ok := p.(*packets.Suback); ok {
					subscribed <- struct{}{}
				}
			}
		}()
		subscribe()
	}
	took := make([]time.Duration, 0, b.N)
	for b.Loop() {
		start := time.Now()
		p.publish("live", "x", false)
		took = append(took, time.Since(start))
		if filters > 0 && br.toSend("heavy") == 0 {
			subscribe()
		}
	}
	slices.Sort(took)
	ms := func(i int) float64 { return took[i].Seconds() * 1000 }
	b.ReportMetric(ms(len(took)/2), "p50-ms")
	b.ReportMetric(ms(len(took)*99/100), "p99-ms")
	b.ReportMetric(ms(len(took)-1), "max-ms")
}
