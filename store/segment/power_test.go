package segment

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A powered broker runs on a simulated disk whose power fails.
type powered struct {
	b      *dunlin.Broker
	l      *listeners.Memory
	served chan error
}

func power(t *testing.T, sim *disk.Sim, segment int64) *powered {
	t.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := open(sim, Options{SegmentSize: segment})
	require.NoError(t, err)
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Logger: quiet, Store: s})
	require.NoError(t, err)
	p := &powered{b: b, l: listeners.NewMemory(), served: make(chan error, 1)}
	go func() { p.served <- b.Serve(p.l) }() // off waits for it
	return p
}

func (p *powered) off() {
	p.b.Close()
	<-p.served
}

// subscriber connects the client whose Session lasts.
func (p *powered) subscriber(t *testing.T) (net.Conn, *packets.Reader, bool) {
	t.Helper()
	nc, err := p.l.Dial()
	require.NoError(t, err)
	r := packets.NewReader(nc, packets.Limits{})
	send(t, nc, &packets.Connect{Version: packets.V311, ClientID: "s"})
	q, err := r.ReadPacket()
	require.NoError(t, err)
	return nc, r, q.(*packets.Connack).SessionPresent
}

func send(t *testing.T, nc net.Conn, p packets.Packet) {
	t.Helper()
	b, err := p.Append(nil, packets.V311)
	require.NoError(t, err)
	_, err = nc.Write(b)
	require.NoError(t, err)
}

// Power fails at a random call to the disk, again and again. What Publish has accepted is there
// afterwards, once and in order; what is retained is what was accepted last, or one that was under
// way.
func TestTheBrokerKeepsItsWordWhenThePowerFails(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	base := rand.Uint64()
	for i := range rounds {
		seed := base + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) { failPower(t, seed) })
	}
}

func failPower(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	sim := disk.NewSim(seed)
	p := power(t, sim, 20_000)
	nc, r, _ := p.subscriber(t)
	send(t, nc, &packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: "t/#", QoS: 2}}})
	_, err := r.ReadPacket()
	require.NoError(t, err)
	nc.Close()

	const publishers = 4
	var next [publishers]int
	accepted, tried := make(map[string]bool), make(map[string]bool)
	var mu sync.Mutex
	for range 3 {
		at := sim.Calls() + 1 + rnd.IntN(150)
		sim.SetFault(func(c disk.Call) error {
			if c.N >= at {
				return disk.ErrCut
			}
			return nil
		})
		var running sync.WaitGroup
		for k := range publishers {
			running.Go(func() {
				for range 200 {
					next[k]++
					m := &dunlin.Message{Topic: fmt.Sprint("t/", k), QoS: dunlin.QoS(1 + k%2),
						Retain: k == 3, Payload: fmt.Appendf(nil, "%d %d", k, next[k])}
					err := p.b.Publish(context.Background(), m)
					mu.Lock()
					tried[string(m.Payload)] = true
					accepted[string(m.Payload)] = err == nil
					mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
		running.Wait()
		p.off()
		sim = sim.Crash(rnd.Uint64(), disk.AnyLoss(rnd))
		p = power(t, sim, 20_000)
	}
	defer func() { p.off() }()
	check(t, p, accepted, tried)
}

// check fetches all that waits for the subscriber.
func check(t *testing.T, p *powered, accepted, tried map[string]bool) {
	info, ok := p.b.Session("s")
	require.True(t, ok, "the Session")
	nc, r, present := p.subscriber(t)
	require.True(t, present)
	defer nc.Close()
	nc.SetReadDeadline(time.Now().Add(30 * time.Second))
	got, last := make(map[string]bool), make(map[int]int)
	for left, open := info.Queued+info.Inflight, 0; left > 0 || open > 0; {
		q, err := r.ReadPacket()
		require.NoError(t, err)
		m, ok := q.(*packets.Publish)
		if !ok {
			send(t, nc, &packets.Ack{Kind: packets.TypePubcomp,
				PacketID: q.(*packets.Ack).PacketID})
			open--
			continue
		}
		if left--; m.QoS == packets.QoS2 {
			open++
		}
		kind := packets.TypePuback
		if m.QoS == packets.QoS2 {
			kind = packets.TypePubrec
		}
		send(t, nc, &packets.Ack{Kind: kind, PacketID: m.PacketID})
		payload := string(m.Payload)
		var k, n int
		_, err = fmt.Sscan(payload, &k, &n)
		require.NoError(t, err)
		require.True(t, tried[payload], "%q was never published", payload)
		require.False(t, got[payload], "%q twice", payload)
		require.Greater(t, n, last[k], "order of publisher %d", k)
		got[payload], last[k] = true, n
	}
	newest := 0
	for payload, yes := range accepted {
		if yes {
			require.True(t, got[payload], "%q was accepted and is lost", payload)
		}
		var k, n int
		fmt.Sscan(payload, &k, &n)
		if yes && k == 3 {
			newest = max(newest, n)
		}
	}
	for m := range p.b.Retained("t/3") {
		var k, n int
		fmt.Sscan(string(m.Payload), &k, &n)
		require.GreaterOrEqual(t, n, newest,
			"the retained message is older than the last one accepted")
		newest = 0
	}
	require.Zero(t, newest, "the retained message is lost")
}

// A disk that is full refuses what is new and loses nothing; when there is room again, here because
// a subscriber has fetched what waited, service is back without a restart.
func TestTheBrokerOutlivesAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := disk.NewSim(1)
		sim.Capacity = 4_000_000
		p := power(t, sim, 400_000)
		defer func() { p.off() }()
		nc, r, _ := p.subscriber(t)
		send(t, nc, &packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "t/#", QoS: 2}}})
		_, err := r.ReadPacket()
		require.NoError(t, err)
		nc.Close()
		accepted, tried := make(map[string]bool), make(map[string]bool)
		publish := func(n int) error {
			m := &dunlin.Message{Topic: "t/0", QoS: 2,
				Payload: fmt.Appendf(nil, "0 %d %05000d", n, 0)}
			err := p.b.Publish(context.Background(), m)
			tried[string(m.Payload)] = true
			accepted[string(m.Payload)] = err == nil
			return err
		}
		n := 1
		for ; n < 10_000; n++ {
			if err = publish(n); err != nil {
				break
			}
		}
		require.ErrorIs(t, err, store.ErrFull)
		require.Equal(t, packets.QuotaExceeded, packets.CodeOf(err))
		require.ErrorIs(t, p.b.Healthy(), store.ErrFull)
		require.Greater(t, n, 100, "messages that there was room for")
		require.NoError(t, p.b.Publish(context.Background(), &dunlin.Message{Topic: "t/0"}),
			"QoS 0 goes on")
		check(t, p, accepted, tried)
		for until := time.Now().Add(30 * time.Second); p.b.Healthy() != nil; {
			require.True(t, time.Now().Before(until),
				"service is not back 30 s after everything was fetched")
			time.Sleep(time.Millisecond)
		}
		clear(accepted)
		require.NoError(t, publish(n))
		require.NoError(t, publish(n+1))
		check(t, p, accepted, tried)
	})
}
