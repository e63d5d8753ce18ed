package traffic

import (
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/stretchr/testify/require"
)

// fill sets each counter of c to another number.
func fill(c *Counts) {
	n := uint64(0)
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Array {
			for j := range f.Len() {
				n++
				f.Index(j).SetUint(n)
			}
			continue
		}
		n++
		f.SetUint(n)
	}
}

// Each counter is added up, whoever counts.
func TestTotal(t *testing.T) {
	var all Classes
	var over sync.WaitGroup
	for range 20 {
		over.Go(func() {
			tally := all.Tally()
			for range 100 {
				for version := range byte(6) { // more than a Tally has slots
					fill(tally.Of(all.Of(Key{Version: version})))
				}
				tally.AddUp()
				tally.AddUp()
			}
		})
	}
	over.Wait()
	var want, once Counts
	fill(&once)
	for range 2000 {
		want.Add(&once)
	}
	require.Len(t, all.All(), 6)
	for _, c := range all.All() {
		require.Equal(t, want, c.Total(), c.Key)
	}
}

func TestWhatIsSentWithoutATallyCounts(t *testing.T) {
	var all Classes
	c := all.Of(Key{Listener: "l", Version: 5})
	c.Sent[2].Add(1)
	c.SentPayload.Add(2)
	c.SentBytes.Add(3)
	c.Answers.Add(4)
	want := Counts{Sent: [3]uint64{0, 0, 1}, SentPayload: 2, SentBytes: 3, Answers: 4}
	require.Equal(t, want, c.Total())
}

func TestWhatATallyHasNotAddedUpIsNotThereYet(t *testing.T) {
	var all Classes
	a, b := all.Of(Key{Version: 4}), all.Of(Key{Version: 5})
	tally := all.Tally()
	tally.Of(a).ReceivedPackets++
	tally.Of(b).ReceivedPackets++
	tally.Of(a).ReceivedPackets++
	require.Zero(t, a.Total())
	tally.AddUp()
	require.EqualValues(t, 2, a.Total().ReceivedPackets)
	require.EqualValues(t, 1, b.Total().ReceivedPackets)
	if !lock.Checked { // whose locks allocate
		require.Zero(t, testing.AllocsPerRun(100, func() {
			tally.Of(a).Answers++
			tally.AddUp()
		}))
	}
}

func TestTheNamesOfListenersAreBounded(t *testing.T) {
	var all Classes
	for i := range 10 * maxNames {
		all.Of(Key{Listener: fmt.Sprint(i), Version: 4})
		all.Of(Key{Listener: fmt.Sprint(i), Version: 5})
	}
	require.Len(t, all.All(), 2*(maxNames+1))
	require.Empty(t, all.Of(Key{Listener: "another", Version: 5}).Listener)
	require.Equal(t, "7", all.Of(Key{Listener: "7", Version: 5}).Listener)
}
