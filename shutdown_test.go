package dunlin

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

func TestCloseAndShutdownFromManyGoroutines(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			b := newTestBroker(t, nil)
			l := listeners.NewMemory()
			var all sync.WaitGroup
			all.Go(func() { b.Serve(l) })
			for i := range 4 {
				all.Go(func() {
					if nc, err := l.Dial(); err == nil {
						nc.Write([]byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"))
						io.Copy(io.Discard, nc)
					}
				})
				all.Go(func() {
					if i%2 == 0 {
						b.Close()
					} else {
						b.Shutdown(context.Background())
					}
				})
			}
			all.Wait() // and synctest fails if a goroutine is left
		})
	}
}

func TestShutdownTellsClientsAndFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		l, done := serveMemory(t, b)
		c, _ := newTestClient(t, dial(t, l), connect("c"))
		go func() {
			require.NoError(t, b.Shutdown(context.Background()))
		}()
		d, ok := c.recv().(*packets.Disconnect)
		require.True(t, ok)
		require.Equal(t, packets.ServerShuttingDown, d.Code)
		_, err := c.r.ReadPacket()
		require.ErrorIs(t, err, io.EOF)
		c.nc.Close()
		done()
	})
}

func TestShutdownGivesUpWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		l, done := serveMemory(t, b)
		c, _ := newTestClient(t, dial(t, l), connect("c")) // never closes
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, b.Shutdown(ctx), context.DeadlineExceeded)
		c.nc.Close()
		done()
	})
}

// What was queued for the wire is written, however long a client takes for it within the bounds
// that the caller and Config set.
func TestShutdownWaitsForASlowClient(t *testing.T) {
	const messages = 10
	for _, tt := range []struct {
		name    string
		pause   time.Duration // until the client reads; 0: never
		patient time.Duration // the context of Shutdown; 0: has no end
		takes   time.Duration
		err     error
	}{
		{"that reads in time", 5 * time.Second, time.Minute, 5 * time.Second, nil},
		{"that does not, to the end of the context", 0, 10 * time.Second, 10 * time.Second,
			context.DeadlineExceeded},
		{"that does not, to the end of WriteTimeout", 0, 0, 20 * time.Second, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTestBroker(t, func(c *Config) { c.WriteTimeout = 20 * time.Second })
				l, done := serveMemory(t, b)
				c, _ := newTestClient(t, dial(t, l), connect("c"))
				c.subscribe("t", packets.QoS0)
				for range messages {
					require.NoError(t, b.Publish(t.Context(),
						&Message{Topic: "t", Payload: make([]byte, 100<<10)}))
				}
				ctx, cancel := context.WithCancel(t.Context())
				if tt.patient > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), tt.patient)
				}
				defer cancel()
				began := time.Now()
				ended := make(chan error, 1)
				go func() { ended <- b.Shutdown(ctx) }()
				if tt.pause > 0 {
					time.Sleep(tt.pause)
					for range messages {
						require.Len(t, c.recv().(*packets.Publish).Payload, 100<<10)
					}
					require.Equal(t, packets.ServerShuttingDown,
						c.recv().(*packets.Disconnect).Code)
					c.nc.Close()
				}
				require.Equal(t, tt.err, <-ended)
				require.Equal(t, tt.takes, time.Since(began))
				c.nc.Close()
				done()
			})
		})
	}
}

func TestShutdownReturnsTheErrorOfTheStore(t *testing.T) {
	boom := errors.New("boom")
	st := storetest.Intercept(new(memory.Store), func(_ context.Context, call string, _ int) error {
		if call == "close" {
			return boom
		}
		return nil
	})
	b := newTestBroker(t, func(c *Config) { c.Store = st })
	require.ErrorIs(t, b.Shutdown(t.Context()), boom)
	require.ErrorIs(t, b.Shutdown(t.Context()), boom, "each time")
}
