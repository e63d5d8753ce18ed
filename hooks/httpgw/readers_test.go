package httpgw

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/listeners"
)

// This file is many readers, one of which takes nothing.

// followAs asks for a stream of ann/a on a connection, and returns a reader of its lines behind the
// header of the answer.
func followAs(nc net.Conn) (*bufio.Reader, error) {
	fmt.Fprintf(nc, "GET /events?filter=ann/a HTTP/1.1\r\n%s\r\n", asAnn)
	r := bufio.NewReaderSize(nc, 4096)
	a, err := http.ReadResponse(r, nil)
	if err != nil || a.StatusCode != 200 {
		return nil, fmt.Errorf("%v %v", a, err)
	}
	return bufio.NewReaderSize(a.Body, 4096), nil
}

// nextNumber returns the number in the ID of the next event.
func nextNumber(r *bufio.Reader) (number string, err error) {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return "", err
		}
		if id, ok := bytes.CutPrefix(line, []byte("id: ")); ok {
			_, number, _ := strings.Cut(strings.TrimSpace(string(id)), "-")
			return number, nil
		}
		if bytes.HasPrefix(line, []byte("event: lost")) {
			return "lost", nil
		}
	}
}

// 999 readers get all messages in their order, and none of them waits for the one that takes
// nothing. That one is thrown out, and holds nothing afterwards.
func TestAFrozenReaderCostsTheOthersNothing(t *testing.T) {
	const readers, messages = 999, 15
	synctest.Test(t, func(t *testing.T) {
		d := new(opened)
		d.build(t, func(o *Options) { o.MaxPerUser = readers + 1 })
		l := listeners.NewMemory()
		s := &http.Server{Handler: d.h}
		go s.Serve(l) // until Close
		frozen, err := l.Dial()
		require.NoError(t, err)
		fmt.Fprintf(frozen, "GET /events?filter=ann/a HTTP/1.1\r\n%s\r\n", asAnn)
		var all sync.WaitGroup
		for range readers {
			nc, err := l.Dial()
			require.NoError(t, err)
			r, err := followAs(nc)
			require.NoError(t, err)
			all.Go(func() {
				defer nc.Close()
				for i := range messages {
					if got, err := nextNumber(r); got != fmt.Sprint(i+1) {
						t.Errorf("message %d is %s %v", i, got, err)
						return
					}
				}
			})
		}
		synctest.Wait()
		require.Equal(t, readers+1, d.readers("user ann"))
		began := time.Now()
		payload := make([]byte, 20_000)
		for range messages {
			m := &dunlin.Message{Topic: "ann/a", Payload: payload}
			require.NoError(t, d.b.Publish(t.Context(), m))
			synctest.Wait()
		}
		all.Wait()
		require.Zero(t, time.Since(began), "nobody waited")
		synctest.Wait()
		require.Equal(t, 1, d.readers("user ann"), "the frozen one, which is being written to")
		time.Sleep(answerTime + time.Second)
		synctest.Wait()
		require.Zero(t, d.readers("user ann"))
		s.Close()
		frozen.Close()
		synctest.Wait()
		d.close()
	})
}

// BenchmarkReaders measures how long after its publication the slowest percent of 999 or 1,000
// readers, over sockets, has a message: p99-ms. With frozen, one more reader takes nothing.
func BenchmarkReaders(b *testing.B) {
	for _, name := range []string{"all read", "one is frozen"} {
		b.Run(name, func(b *testing.B) {
			const readers = 999
			d := new(opened)
			d.build(new(testing.T), func(o *Options) { o.MaxPerUser = readers + 1 })
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(b, err)
			s := &http.Server{Handler: d.h}
			go s.Serve(l) // until Close
			dial := func() net.Conn {
				nc, err := net.Dial("tcp", l.Addr().String())
				require.NoError(b, err)
				return nc
			}
			if name == "one is frozen" {
				nc := dial()
				defer nc.Close()
				fmt.Fprintf(nc, "GET /events?filter=ann/a HTTP/1.1\r\n%s\r\n", asAnn)
			}
			got := make(chan time.Duration, readers)
			var began time.Time // of the message under way; all are read before the next
			for range readers {
				nc := dial()
				defer nc.Close()
				r, err := followAs(nc)
				require.NoError(b, err)
				go func() { // until its connection is closed
					for {
						if n, err := nextNumber(r); err != nil || n == "lost" {
							return
						}
						got <- time.Since(began)
					}
				}()
			}
			payload := make([]byte, 20_000)
			var took []time.Duration
			for b.Loop() {
				began = time.Now()
				m := &dunlin.Message{Topic: "ann/a", Payload: payload}
				require.NoError(b, d.b.Publish(b.Context(), m))
				for range readers {
					took = append(took, <-got)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			d.h.Close()
			s.Close()
			d.b.Close()
		})
	}
}

// A stuck is an answer of which the client takes nothing, besides what the server buffers, until it
// is let go.
type stuck struct {
	http.ResponseWriter
	writes, let chan struct{}
	n           int
	once        sync.Once
}

func (w *stuck) Write(b []byte) (int, error) {
	if w.n += len(b); w.n > 4096 {
		w.once.Do(func() {
			w.writes <- struct{}{}
			<-w.let
		})
	}
	return w.ResponseWriter.Write(b)
}

func (w *stuck) SetWriteDeadline(time.Time) error { return nil }
func (w *stuck) SetReadDeadline(time.Time) error  { return nil }

// What is on its way to many readers that take nothing is there once, and counts as long as that
// takes: no more is kept for a user than its share.
func TestWhatStuckReadersHoldCounts(t *testing.T) {
	const readers, size = 50, 1_000_000
	for name, path := range map[string]string{
		"long polls":         "/poll?filter=public/a&wait=60",
		"retained messages":  "/retained?filter=public/a",
		"a retained message": "/topics/public/a",
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, func(o *Options) { o.KeepBytes = 16 << 20 })
			let, writes := make(chan struct{}), make(chan struct{})
			var all sync.WaitGroup
			publish := func(payload string) {
				code, _ := d.do("bob", "POST", "/topics/public/a?retain=1",
					strings.Repeat(payload, size))
				require.Equal(t, http.StatusOK, code)
			}
			get := func() (over chan struct{}) {
				over = make(chan struct{})
				all.Go(func() {
					r := httptest.NewRequest("GET", path, nil)
					r.SetBasicAuth("ann", "ann")
					d.h.ServeHTTP(&stuck{ResponseWriter: discarded{}, writes: writes, let: let}, r)
					close(over)
				})
				return over
			}
			before, began := heapInUse(), 0
			if strings.HasPrefix(path, "/poll") {
				for range readers {
					get()
				}
				for waiting := 0; waiting < readers; {
					d.h.feeds.mu.Lock()
					for _, x := range d.h.feeds.of {
						waiting = x.readers
					}
					d.h.feeds.mu.Unlock()
					runtime.Gosched()
				}
				publish("x")
				for ; began < readers; began++ {
					<-writes
				}
			} else {
				for i := range readers {
					publish(fmt.Sprint(i % 10)) // another one each time
					select {
					case <-writes:
						began++
					case <-get():
					}
				}
			}
			require.Positive(t, began)
			require.Less(t, heapInUse()-before, int64(12<<20), "with %d answers on their way", began)
			close(let)
			all.Wait()
			code, _ := d.do("ann", "GET", "/topics/public/a", "")
			require.Equal(t, http.StatusOK, code, "all is given back")
			d.h.users.mu.Lock()
			require.Zero(t, d.h.users.all.bodies)
			d.h.users.mu.Unlock()
		})
	}
}

// discarded is an answer that nobody reads.
type discarded struct{}

func (discarded) Header() http.Header         { return http.Header{} }
func (discarded) Write(b []byte) (int, error) { return len(b), nil }
func (discarded) WriteHeader(int)             {}
func (discarded) Flush()                      {}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
