package admin

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A look shows the topics that pass while it lasts. The next one within the interval takes its
// result, and a later one adds to it.
func TestTopicsSeenLately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.subscribe("sub", "home/#")
		pub := b.broker.Client(t, "pub")
		publish := func(topic string) {
			pub.Send(&packets.Publish{Topic: []byte(topic), Payload: []byte("12345")})
			synctest.Wait()
		}
		look := func() (items []seenView, took time.Duration) {
			began, answer := time.Now(), make(chan page[seenView], 1)
			go func() {
				var page page[seenView]
				b.get(&page, "seen")
				answer <- page
			}()
			synctest.Wait()
			publish("home/kitchen")
			publish(strings.Repeat("x", maxSeen+1))
			return (<-answer).Items, time.Since(began)
		}
		publish("before/somebody/looks")
		began := time.Now()
		items, took := look()
		require.Equal(t, lookFor, took)
		require.Len(t, items, 1)
		require.WithinRange(t, items[0].At, began, began.Add(2*lookFor))
		items[0].At, items[0].First = time.Time{}, time.Time{}
		require.Equal(t, seenView{Topic: "home/kitchen", Packets: 2, Bytes: 5, From: "pub"},
			items[0], "to the broker, and to the subscriber")
		items, took = look()
		require.Zero(t, took, "nobody looks again so soon")
		require.EqualValues(t, 2, items[0].Packets)
		time.Sleep(b.h.opts.Interval)
		items, took = look()
		require.Equal(t, lookFor, took)
		require.EqualValues(t, 4, items[0].Packets)
	})
}

func TestLooksAtTopicsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		pub := b.broker.Client(t, "pub")
		go func() {
			time.Sleep(time.Millisecond)
			for i := range 2 * lookPackets {
				pub.Send(&packets.Publish{Topic: fmt.Appendf(nil, "t/%d", i)})
			}
		}()
		began := time.Now()
		var some page[seenView]
		b.get(&some, "seen", "limit", "500")
		require.Len(t, some.Items, keptTopics)
		require.Less(t, time.Since(began), lookFor, "it ends when it has seen enough")
		var taps []dunlin.Tap
		for {
			tap, err := b.broker.Broker().Tap(t.Context(), dunlin.TapOptions{})
			if err != nil {
				break
			}
			taps = append(taps, tap)
		}
		require.Len(t, taps, 16, "the look has given its own back")
		time.Sleep(b.h.opts.Interval)
		require.Equal(t, "busy", b.refused(503, "seen").Code)
		for _, tap := range taps {
			tap.Stop()
		}
		b.get(&some, "seen", "limit", "1")
		require.Len(t, some.Items, 1)
	})
}
