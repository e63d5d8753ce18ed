package dunlin

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// Whoever looks at a Session with many subscriptions holds its lock for a few of them at a time, so
// that nobody who publishes to it waits until all are listed.
func TestManySubscriptionsAreListedAFewAtATime(t *testing.T) {
	const filters = 50_000
	b := newTestBroker(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go b.Serve(l)
	nc, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer nc.Close()
	p, _ := newTestClient(t, nc, &packets.Connect{Version: packets.V5, ClientID: "s"})
	for at := 0; at < filters; at += 5_000 {
		sub := &packets.Subscribe{PacketID: 1}
		for i := range 5_000 {
			sub.Subscriptions = append(sub.Subscriptions,
				packets.Subscription{Filter: fmt.Sprint("a/", at+i)})
		}
		p.send(sub)
		require.Len(t, p.recv().(*packets.Suback).Codes, 5_000)
	}
	s := b.ofClient("s")[0]
	for name, look := range map[string]func(){
		"Session": func() {
			x, _ := b.Session("s")
			require.Len(t, x.Subscriptions, filters)
		},
		"Explain": func() { b.Explain(t.Context(), "s", "a/none") },
		"review":  func() { require.Len(t, s.subscriptionList(), filters) },
	} {
		share := 1.0 // of the time that the look takes, for one wait: of the best of many tries
		for try := 0; try < 100 && share >= 0.4; try++ {
			done := make(chan time.Duration)
			go func() {
				began := time.Now()
				look()
				done <- time.Since(began)
			}()
			var longest, took time.Duration
			for took == 0 {
				began := time.Now()
				s.mu.Lock()
				longest = max(longest, time.Since(began))
				s.mu.Unlock()
				select {
				case took = <-done:
				default:
				}
			}
			share = min(share, float64(longest)/float64(took))
		}
		require.Less(t, share, 0.4, name) // 1: the lock is held all the time
	}
	require.NoError(t, b.Close())
}
