package endtoend

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

var junkFlag = flag.Int("junk", 600,
	"connections of junk in TestGoodClientsAmongJunk; 20000 is the full test, of about a minute")

// junk is what arrives at a port on the open internet.
var junk = []func(rng *rand.Rand, nc net.Conn){
	func(rng *rand.Rand, nc net.Conn) { // random bytes
		b := make([]byte, 1+rng.IntN(4000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		nc.Write(b)
		io.Copy(io.Discard, nc)
	},
	func(rng *rand.Rand, nc net.Conn) { // one byte at a time
		for _, x := range rawConnect("slow", 1)[:20] {
			if _, err := nc.Write([]byte{x}); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	},
	func(rng *rand.Rand, nc net.Conn) { // a length of 256 MiB, and some of it
		nc.Write(append([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}, make([]byte, rng.IntN(20_000))...))
		io.Copy(io.Discard, nc)
	},
	// a length just within the bound for CONNECT, and nothing more
	func(rng *rand.Rand, nc net.Conn) {
		nc.Write([]byte{0x10, 0xfa, 0x3f, 0, 4, 'M', 'Q', 'T', 'T', 5})
		io.Copy(io.Discard, nc)
	},
	func(rng *rand.Rand, nc net.Conn) { // half a CONNECT, held until the broker has enough
		b := rawConnect("half", 1)
		nc.Write(b[:rng.IntN(len(b))])
		io.Copy(io.Discard, nc)
	},
	func(rng *rand.Rand, nc net.Conn) { // the beginning of TLS, and of HTTP
		nc.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
		nc.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		io.Copy(io.Discard, nc)
	},
	func(rng *rand.Rand, nc net.Conn) { // a good CONNECT, then random bytes
		b := rawConnect(fmt.Sprint("junk", rng.Uint64()), 1)
		for range 200 {
			b = append(b, byte(rng.Uint32()))
		}
		nc.Write(b)
		io.Copy(io.Discard, nc)
	},
}

func rawConnect(id string, keepAlive uint16) []byte {
	p := packets.Connect{Version: packets.V5, CleanStart: true, ClientID: id, KeepAlive: keepAlive}
	b, err := p.Append(nil, packets.V5)
	if err != nil {
		panic(err)
	}
	return b
}

// A goodClient publishes to its neighbour, and says how long what came to it was under way.
type goodClient struct {
	sent, got int
	delays    []time.Duration
	err       error
}

// signals are what the good clients and the test tell each other.
type signals struct {
	start     chan struct{} // closed when all have subscribed
	stop      chan struct{} // closed when the junk is over
	published atomic.Int64
	running   sync.WaitGroup
}

// run subscribes, exchanges QoS 1 messages from start to stop, then waits for what is still to
// come.
func (g *goodClient) run(addr string, me, neighbour int, sign *signals) {
	defer sign.running.Done()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		g.err = err
		return
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(3 * time.Minute))
	b := rawConnect(fmt.Sprint("good", me),
		0) // a machine that stands still for a moment is no reason to end it
	s := packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: fmt.Sprint("good/", me), QoS: 1}}}
	b, _ = s.Append(b, packets.V5)
	if _, g.err = nc.Write(b); g.err != nil {
		return
	}
	ended := make(chan struct{})
	go func() { // ends when everything has come, or with the connection; run waits for it
		defer close(ended)
		g.err = g.receive(nc)
	}()
	<-sign.start // before all have subscribed a message may be for nobody
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for id := uint16(1); ; id++ {
		select {
		case <-tick.C:
			p := packets.Publish{QoS: 1, PacketID: id%1000 + 1,
				Topic: fmt.Append(nil, "good/", neighbour)}
			p.Payload = binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
			b, _ := p.Append(nil, packets.V5)
			if _, err := nc.Write(b); err == nil {
				g.sent++
				sign.published.Add(1)
			}
			continue
		case <-ended:
		case <-sign.stop:
			p := packets.Publish{QoS: 1, PacketID: 2000, Topic: fmt.Append(nil, "good/", neighbour),
				Payload: []byte("last")}
			b, _ := p.Append(nil, packets.V5)
			nc.Write(b)
			<-ended
		}
		return
	}
}

// receive reads until the last message of the neighbour and all acknowledgements.
func (g *goodClient) receive(nc net.Conn) error {
	r := packets.NewReader(nc, packets.Limits{})
	r.SetVersion(packets.V5)
	for last, acked := false, false; !last || !acked; {
		p, err := r.ReadPacket()
		if err != nil {
			return err
		}
		switch p := p.(type) {
		case *packets.Ack:
			if acked = p.PacketID == 2000; p.Code.Failed() {
				return fmt.Errorf("PUBACK %v", p.Code)
			}
		case *packets.Publish:
			a := packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID}
			b, _ := a.Append(nil, packets.V5)
			if _, err := nc.Write(b); err != nil {
				return err
			}
			if last = len(p.Payload) != 8; !last {
				g.got++
				g.delays = append(g.delays,
					time.Duration(time.Now().UnixNano()-int64(binary.BigEndian.Uint64(p.Payload))))
			}
		}
	}
	return nil
}

// While junk comes from eight addresses, good clients lose nothing and wait for nothing, and when
// it is over the memory is back. The full test is: go test -run GoodClientsAmongJunk
// ./internal/endtoend -junk 20000 -v
func TestGoodClientsAmongJunk(t *testing.T) {
	clients, atATime := 20, 200
	full := *junkFlag >= 20_000
	if full {
		clients, atATime = 100, 2000
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll,
		Logger: slog.New(slog.DiscardHandler), ConnectTimeout: 2 * time.Second})
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	addr := l.Addr().String()

	good := make([]goodClient, clients)
	sign := signals{start: make(chan struct{}), stop: make(chan struct{})}
	var junkOnes sync.WaitGroup
	for i := range good {
		sign.running.Add(1)
		go good[i].run(addr, i, (i+1)%clients, &sign)
	}
	for b.Stats().Subscriptions < clients {
		time.Sleep(10 * time.Millisecond)
	}
	close(sign.start)
	for sign.published.Load() < int64(clients) {
		time.Sleep(10 * time.Millisecond)
	}
	heapBefore, goroutines := heap(), runtime.NumGoroutine()
	slots := make(chan struct{}, atATime)
	// who floods one machine with all that it can send measures that machine
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	began := time.Now()
	for i := range *junkFlag {
		slots <- struct{}{}
		<-pace.C
		junkOnes.Go(func() {
			defer func() { <-slots }()
			d := net.Dialer{Timeout: 10 * time.Second}
			if runtime.GOOS == "linux" { // elsewhere a machine has but one loopback address
				d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%8))}
			}
			nc, err := d.Dial("tcp", addr)
			if err != nil {
				t.Errorf("a junk connection was not even accepted: %v", err)
				return
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(20 * time.Second))
			junk[i%len(junk)](rand.New(rand.NewPCG(seed, uint64(i))), nc)
		})
	}
	junkOnes.Wait()
	took := time.Since(began)
	const others = 4 // that of Eventually, and two of event loops that wait for work
	require.Eventually(t, func() bool {
		return b.Stats().Connections == clients && runtime.NumGoroutine() <= goroutines+others
	}, 30*time.Second, 50*time.Millisecond,
		"no connection and no goroutine is left of the junk")
	heapAfter := heap()
	close(sign.stop)
	sign.running.Wait()

	var delays []time.Duration
	sent, got := 0, 0
	for i := range good {
		require.NoError(t, good[i].err, "good client %d", i)
		sent, got = sent+good[i].sent, got+good[i].got
		delays = append(delays, good[i].delays...)
	}
	slices.Sort(delays)
	median, p99 := delays[len(delays)/2], delays[len(delays)*99/100]
	t.Logf("%d connections of junk in %v; good messages sent %d, received %d; delay median %v, "+
		"99 %% %v, most %v; heap before %d KiB, after %d KiB",
		*junkFlag, took.Round(time.Millisecond), sent, got, median, p99, delays[len(delays)-1],
		heapBefore>>10, heapAfter>>10)
	require.Equal(t, sent, got, "no good message is lost")
	most := time.Second // a short run shares its machine with other tests
	if full {
		most = 100 * time.Millisecond
	}
	require.Less(t, median, most)
	require.Less(t, heapAfter, heapBefore+4<<20, "memory is back")
	require.NoError(t, b.Shutdown(context.Background()))
	require.ErrorIs(t, <-served, dunlin.ErrBrokerClosed)
	require.Zero(t, b.Stats().Panics)
	require.Zero(t, b.Stats().Memory, "nothing is held for anybody")
}

// heap is what lives after a collection; the second one empties the pools.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
