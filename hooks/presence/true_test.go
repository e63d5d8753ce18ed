package presence_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks/presence"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is about what is retained after a crash, and after events were lost.

// A Store keeps what was retained before a crash. Those who do not come back have gone.
func TestWhatIsRetainedIsTrueAfterACrash(t *testing.T) {
	o := presence.Options{Retain: true, Prefix: "seen", MaxKept: 3}
	withPresence(t, o, func(r *rig) {
		one, two := client("one", 1), client("two", 2)
		r.connect(one)
		at := r.connect(two)
		synctest.Wait()
		r.disconnect(two, at, packets.Success)
		r.leave("three")
		r.story()
		for topic, payload := range map[string]string{ // of somebody else
			"seen/other": `{"state":"connected","client":"one"}`, "seen/odd": "{",
		} {
			r.retained[topic] = &packets.Message{Topic: topic, Payload: []byte(payload)}
		}
		time.Sleep(time.Hour)
		end := r.start(o) // the first Presence never learns of an end
		defer end()
		four := client("four", 4)
		r.connect(four)
		require.ElementsMatch(r.t, []string{"seen/four connected 4",
			"seen/one disconnected 1 0x80 Unspecified error"}, r.story())
		r.leave("five")
		require.Contains(r.t, string(r.retained["seen/five"].Payload), "disconnected")
		require.Empty(r.t, r.retained["seen/two"].Payload, "the oldest of four that have gone")
	})
}

// While nothing can be published, clients come and go. What is retained is true afterwards.
func TestWhatIsRetainedIsTrueAfterAFailure(t *testing.T) {
	withPresence(t, presence.Options{Retain: true}, func(r *rig) {
		gone, stays, back := client("gone", 1), client("stays", 2), client("back", 3)
		at, again := r.connect(gone), r.connect(back)
		r.story()
		r.failing(true)
		r.disconnect(gone, at, packets.Success)
		r.connect(stays)
		r.disconnect(back, again, packets.Success)
		synctest.Wait()
		r.connect(back)
		time.Sleep(10 * time.Minute)
		require.Empty(r.t, r.story())
		require.LessOrEqual(r.t, r.Lost(), uint64(60), "the pauses grow")
		r.failing(false)
		time.Sleep(2 * time.Minute)
		require.ElementsMatch(r.t, []string{
			"$SYS/broker/clients/gone disconnected 1 0x80 Unspecified error",
			"$SYS/broker/clients/stays connected 2", "$SYS/broker/clients/back connected 3",
		}, r.story())
		time.Sleep(time.Hour)
		require.Empty(r.t, r.story(), "and nothing more")
	})
}

// Events for which there is no room are made good for.
func TestWhatIsRetainedIsTrueAfterTooManyEvents(t *testing.T) {
	withPresence(t, presence.Options{Retain: true, MaxWaiting: 10}, func(r *rig) {
		var times []time.Time
		for i := range 8 {
			times = append(times, r.connect(client(fmt.Sprint(i), i)))
		}
		require.Len(r.t, r.story(), 8)
		gate := make(chan struct{}) // nothing is published meanwhile
		r.mu.Lock()
		r.gate = gate
		r.mu.Unlock()
		for i := range 40 {
			r.connect(client(fmt.Sprint("n", i), i))
		}
		for i, at := range times {
			r.disconnect(client(fmt.Sprint(i), i), at, packets.Success)
		}
		require.NotZero(r.t, r.Lost())
		close(gate)
		time.Sleep(time.Hour)
		r.story()
		for i := range 8 {
			m := r.retained[fmt.Sprint("$SYS/broker/clients/", i)]
			require.Contains(r.t, string(m.Payload), `"disconnected"`)
		}
		for i := range 40 {
			m := r.retained[fmt.Sprint("$SYS/broker/clients/n", i)]
			require.NotNil(r.t, m, i)
			require.Contains(r.t, string(m.Payload), `"connected"`)
		}
	})
}

func (r *rig) failing(fails bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fails = fails
}
