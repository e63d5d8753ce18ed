package mqtttest_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// use makes a broker, lets clients meet on it in memory and over TCP, and closes it. It returns
// what was wrong.
func use(t *testing.T) string {
	return runs(t, func(t testing.TB) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "subscriber", expiring(3600))
		c.Send(subscribe(1, "a/#", packets.QoS1))
		c.WantType("subscribed", packets.TypeSuback)
		nc, err := net.Dial("tcp", strings.TrimPrefix(b.URL(), "mqtt://"))
		if err != nil {
			t.Fatalf("%v", err)
		}
		defer nc.Close()
		raw, _ := (&packets.Connect{Version: packets.V311, CleanStart: true,
			ClientID: "publisher"}).Append(nil, packets.V311)
		raw, _ = publish1(1, "a/b", "x").Append(raw, packets.V311)
		raw, _ = (&packets.Disconnect{}).Append(raw, packets.V311)
		if _, err := nc.Write(raw); err != nil {
			t.Fatalf("%v", err)
		}
		c.Want("the message arrives", publish1(1, "a/b", "x"))
		b.WaitDisconnected(t, "publisher")
	})
}

// A census is what a process has.
type census struct {
	goroutines, descriptors int
	heap                    uint64
}

func count(t *testing.T) (c census) {
	t.Helper()
	runtime.GC()
	runtime.GC() // pools keep what they hold over one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	c.goroutines, c.heap = runtime.NumGoroutine(), m.HeapAlloc
	if runtime.GOOS == "linux" {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		c.descriptors = len(fds)
	}
	return c
}

// settled lets goroutines that have nothing left to do end, until there are no more goroutines and
// descriptors than before, and compares the heap.
func settled(t *testing.T, before census, room uint64) {
	t.Helper()
	now := count(t)
	for end := time.Now().Add(10 * time.Second); now.goroutines > before.goroutines ||
		now.descriptors > before.descriptors; now = count(t) {
		if time.Now().After(end) {
			t.Fatalf("something is left: before %+v, now %+v", before, now)
		}
		runtime.Gosched()
	}
	t.Logf("before %+v, after %+v", before, now)
	require.Less(t, now.heap, before.heap+room, "the heap has grown: before %+v, after %+v", before,
		now)
}

func TestAThousandBrokersOneAfterAnother(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 100
	}
	for range 50 { // pools and the like
		require.Empty(t, use(t))
	}
	before := count(t)
	for i := range n {
		require.Empty(t, use(t), "broker %d", i)
	}
	settled(t, before, 1<<20)
}

func TestAHundredBrokersSideBySide(t *testing.T) {
	side := func() {
		var all sync.WaitGroup
		said := make(chan string, 100)
		for range 100 {
			all.Go(func() { said <- use(t) })
		}
		all.Wait()
		close(said)
		for s := range said {
			require.Empty(t, s)
		}
	}
	side()
	before := count(t)
	side()
	settled(t, before, 4<<20)
}

// Several brokers in a process do not know of each other.
func TestBrokersAreSeparate(t *testing.T) {
	both(t, func(t *testing.T) {
		var brokers []*mqtttest.Broker
		for range 3 {
			brokers = append(brokers, mqtttest.NewBroker(t))
		}
		for i, b := range brokers {
			b.Publish("who", fmt.Sprint(i))
		}
		for i, b := range brokers {
			require.Len(t, b.Messages("#"), 1)
			require.Equal(t, fmt.Sprint(i), string(b.WaitFor(t, "who", nil).Payload))
		}
	})
}
