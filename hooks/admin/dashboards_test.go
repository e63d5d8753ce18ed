//go:build unix

package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// cpu is how much CPU time the process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkTenDashboards is the CPU of ten dashboards, in percent of one core: what one sample
// costs with ten readers of the stream of events, each of which then reads the page of a client,
// divided by the interval. The readers are in this process, so their CPU is in it. Besides, 200
// clients get 200,000 messages a second, or none. A run with samples and one without take turns.
func BenchmarkTenDashboards(b *testing.B) {
	const rounds, every = 100, 10 * time.Millisecond
	for _, load := range []int{0, 200_000} {
		b.Run(fmt.Sprintf("beside %d messages a second", load), func(b *testing.B) {
			br, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll,
				Logger: slog.New(slog.DiscardHandler)})
			require.NoError(b, err)
			b.Cleanup(func() { br.Close() })
			startLoad(b, br, load)
			h := New(map[string]*dunlin.Broker{"main": br}, Options{Authorize: byRole,
				Interval: time.Hour, Logger: slog.New(slog.DiscardHandler)})
			b.Cleanup(func() { h.Close() })
			round := startDashboards(b, h, 10)
			var all []float64
			for b.Loop() {
				var used [2]time.Duration
				sent := br.Stats().MessagesSent
				began := time.Now()
				for i := range used {
					before := cpu(b)
					for range rounds {
						next, cancel := context.WithTimeout(context.Background(), every)
						if i == 1 {
							round()
						}
						<-next.Done()
						cancel()
					}
					used[i] = cpu(b) - before
				}
				perSample := float64(used[1]-used[0]) / rounds
				all = append(all, 100*perSample/float64(defaultInterval))
				rate := float64(br.Stats().MessagesSent-sent) / time.Since(began).Seconds()
				b.ReportMetric(rate, "messages/s")
			}
			slices.Sort(all)
			b.ReportMetric(all[len(all)/2], "%CPU")
			b.ReportMetric(all[len(all)-1], "%CPU-most")
			b.ReportMetric(0, "ns/op") // says nothing here
		})
	}
}

// startDashboards opens n streams. round takes a sample, and returns when all of them have it and
// have read the page of a client.
func startDashboards(b *testing.B, h *Handler, n int) (round func()) {
	srv := httptest.NewServer(h)
	b.Cleanup(srv.Close)
	b.Cleanup(func() { h.Close() }) // before: streams
	ask := func(path string, query ...string) *http.Response {
		r, err := http.NewRequestWithContext(context.Background(), "GET", srv.URL+at(path, query...),
			nil)
		require.NoError(b, err)
		r.SetBasicAuth("reader", "x")
		answer, err := srv.Client().Do(r)
		require.NoError(b, err)
		require.Equal(b, 200, answer.StatusCode)
		return answer
	}
	var got sync.WaitGroup
	got.Add(n) // the sample with which a stream begins
	for range n {
		lines := bufio.NewReader(ask("events").Body)
		go func() { // ends with the server
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					return
				}
				if strings.HasPrefix(line, "data: ") {
					answer := ask("client", "id", "client-0")
					io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
					got.Done()
				}
			}
		}()
	}
	got.Wait()
	return func() {
		got.Add(n)
		h.brokers["main"].sample()
		got.Wait()
	}
}

// startLoad connects 200 clients by TCP, each of which gets what it publishes: all of them together
// so many messages a second.
func startLoad(b *testing.B, br *dunlin.Broker, rate int) {
	const clients, every = 200, 20 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	go br.Serve(l) // ends with br
	for i := range clients {
		nc, err := net.Dial("tcp", l.Addr().String())
		require.NoError(b, err)
		b.Cleanup(func() { nc.Close() })
		topic := fmt.Sprintf("plant/%d/speed", i)
		hello, err := (&packets.Connect{Version: packets.V5, CleanStart: true,
			ClientID: fmt.Sprint("client-", i)}).Append(nil, packets.V5)
		require.NoError(b, err)
		hello, err = (&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: topic}}}).Append(hello, packets.V5)
		require.NoError(b, err)
		_, err = nc.Write(hello)
		require.NoError(b, err)
		r := packets.NewReader(nc, packets.Limits{})
		r.SetVersion(packets.V5)
		for range 2 { // CONNACK and SUBACK
			_, err = r.ReadPacket()
			require.NoError(b, err)
		}
		go io.Copy(io.Discard, nc) // ends with nc
		var batch []byte
		for range rate * int(every) / int(time.Second) / clients {
			batch, err = (&packets.Publish{Topic: []byte(topic), Payload: make([]byte, 64)}).
				Append(batch, packets.V5)
			require.NoError(b, err)
		}
		if len(batch) == 0 {
			continue
		}
		var again func()
		again = func() {
			if _, err := nc.Write(batch); err == nil { // until nc is closed
				time.AfterFunc(every, again)
			}
		}
		again()
	}
}
