package recent

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }

func TestTheSameDropAgainIsCountedAndTheNewest(t *testing.T) {
	d := NewDrops(Limits{Most: 10, Bytes: 10_000})
	d.Add("a", "t", hooks.DropQueueFull, at(1))
	d.Add("b", "t", hooks.DropQueueFull, at(2))
	d.Add("a", "t", hooks.DropExpired, at(3))
	d.Add("a", "t", hooks.DropQueueFull, at(4))
	require.Equal(t, []hooks.Drop{
		{Time: at(4), First: at(1), Count: 2, ClientID: "a", Topic: "t",
			Reason: hooks.DropQueueFull},
		{Time: at(3), First: at(3), Count: 1, ClientID: "a", Topic: "t", Reason: hooks.DropExpired},
		{Time: at(2), First: at(2), Count: 1, ClientID: "b", Topic: "t",
			Reason: hooks.DropQueueFull},
	}, d.All())
	last, ok := d.Last("a", "t")
	require.True(t, ok)
	require.Equal(t, hooks.DropQueueFull, last.Reason, "the last one of the client and topic")
	_, ok = d.Last("a", "other")
	require.False(t, ok)
}

func TestThereAreNoMoreDropsThanTheLimit(t *testing.T) {
	d := NewDrops(Limits{Most: 3, Bytes: 10_000})
	for i := range 10 {
		d.Add(fmt.Sprint(i), "t", hooks.DropQueueFull, at(i))
	}
	var ids []string
	for _, x := range d.All() {
		ids = append(ids, x.ClientID)
	}
	require.Equal(t, []string{"9", "8", "7"}, ids)
	require.Len(t, d.list.slots, 3)
}

func TestLongStringsAreCutAndTheBytesAreBounded(t *testing.T) {
	const most = 4000
	d := NewDrops(Limits{Most: 1000, Bytes: most})
	for i := range 100 {
		long := strings.Repeat("ä", 100*i) + fmt.Sprint(i)
		d.Add(long, long, hooks.DropQueueFull, at(i))
		require.LessOrEqual(t, d.list.bytes, most)
		sum := 0
		for _, x := range d.All() {
			require.True(t, utf8.ValidString(x.Topic))
			require.LessOrEqual(t, len(x.Topic), Longest)
			sum += len(x.ClientID) + len(x.Topic) + dropSize
		}
		require.Equal(t, sum, d.list.bytes, "what it thinks that it takes")
		x, ok := d.Last(long, long)
		require.True(t, ok, "a long topic is found by its beginning")
		require.Equal(t, at(i), x.Time)
	}
	require.Greater(t, len(d.All()), 3)
	require.Less(t, len(d.All()), 10)
}

func TestSizesThatDifferLeaveNoSlotBehind(t *testing.T) {
	d := NewDrops(Limits{Most: 50, Bytes: 20_000})
	for i := range 2000 {
		d.Add(strings.Repeat("x", i*37%300)+fmt.Sprint(i), "t", hooks.DropQueueFull, at(i))
		require.LessOrEqual(t, len(d.list.slots), 50)
		require.Len(t, d.All(), len(d.list.index), "all that are there are in the chain")
	}
}

func TestNothingIsKeptWithoutALimit(t *testing.T) {
	d := NewDrops(Limits{})
	d.Add("a", "t", hooks.DropQueueFull, at(1))
	require.Empty(t, d.All())
}

func TestADropThatIsKnownAllocatesNothing(t *testing.T) {
	if lock.Checked {
		t.Skip("its locks allocate")
	}
	d := NewDrops(Limits{Most: 10, Bytes: 10_000})
	d.Add("a", "t", hooks.DropQueueFull, at(1))
	d.Add("b", "t", hooks.DropQueueFull, at(1))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		d.Add("a", "t", hooks.DropQueueFull, at(2))
		d.Add("b", "t", hooks.DropQueueFull, at(2))
	}))
}

func TestEndingsOfOneClientFromOneHostAreCounted(t *testing.T) {
	e := NewEndings(Limits{Most: 10, Bytes: 100_000})
	x := hooks.Ending{Cause: hooks.EndKeepAlive, ClientID: "a", Address: "10.0.0.1:1000"}
	for i := range 3 {
		x.Address = fmt.Sprintf("10.0.0.1:%d", 1000+i)
		x.EndedAt = at(i)
		e.Add(x)
	}
	x.Address, x.EndedAt = "10.0.0.2:1000", at(5)
	e.Add(x)
	all := e.All("")
	require.Len(t, all, 2)
	require.EqualValues(t, 1, all[0].Count, "another host")
	require.EqualValues(t, 3, all[1].Count)
	require.Equal(t, at(0), all[1].First)
	require.Equal(t, at(2), all[1].EndedAt)
	require.Equal(t, "10.0.0.1:1002", all[1].Address, "the last one")
}

func TestAFloodOfRefusalsPushesOutNoEnding(t *testing.T) {
	e := NewEndings(Limits{Most: 10, Bytes: 100_000})
	e.Add(hooks.Ending{Cause: hooks.EndKeepAlive, ClientID: "a", EndedAt: at(0)})
	for i := range 100 { // all at the same time
		e.Add(hooks.Ending{Refused: true, ClientID: fmt.Sprint(i), EndedAt: at(0)})
	}
	all := e.All("")
	require.Len(t, all, 11)
	require.Equal(t, "99", all[0].ClientID, "newest first")
	require.Equal(t, "a", all[10].ClientID)
	require.Len(t, e.All("a"), 1)
}
