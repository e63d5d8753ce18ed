package cluster_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

var limits = cluster.Limits{Partitions: 2, Record: 10, Value: 4, Batch: 3}

func message(topic, payload string) *store.Message {
	return &store.Message{Message: packets.Message{Topic: topic, Payload: []byte(payload)}}
}

func TestNodeNames(t *testing.T) {
	for _, name := range []string{"a", "broker-1", "Z9", strings.Repeat("x", 64)} {
		require.NoError(t, cluster.Node{Name: name}.Check(), name)
	}
	for _, name := range []string{"", "a b", "a.b", "ä", "a/b", "a\n", "[", "@", strings.Repeat("x", 65)} {
		require.Error(t, cluster.Node{Name: name}.Check(), name)
	}
	require.NoError(t, cluster.Node{Name: "a", Info: make([]byte, 4096)}.Check())
	require.Error(t, cluster.Node{Name: "a", Info: make([]byte, 4097)}.Check())
}

func TestBatchesThatMakeNoSenseAreRefused(t *testing.T) {
	record := func(r cluster.Record) cluster.Batch {
		return cluster.Batch{Records: []*cluster.Record{&r}}
	}
	change := func(p ...cluster.Put) cluster.Batch {
		return cluster.Batch{Changes: []*cluster.Change{{Put: p}}}
	}
	key := cluster.Key{Name: "k"}
	m := message("t", "p")
	for name, b := range map[string]cluster.Batch{
		"a partition below 0":       record(cluster.Record{Part: -1, Message: m}),
		"a partition behind all":    record(cluster.Record{Part: 2, Message: m}),
		"no message":                record(cluster.Record{}),
		"no topic":                  record(cluster.Record{Message: message("", "p")}),
		"Once of another part":      record(cluster.Record{Part: 1, Message: m, Once: key}),
		"a long Once":               record(cluster.Record{Message: m, Once: cluster.Key{Name: strings.Repeat("x", 257)}}),
		"Forget of no name":         {Forget: []cluster.Key{{}}},
		"Forget of no partition":    {Forget: []cluster.Key{{Part: 2, Name: "k"}}},
		"no Put":                    change(),
		"three Puts":                change(cluster.Put{Key: "a"}, cluster.Put{Key: "b"}, cluster.Put{Key: "c"}),
		"a key twice":               change(cluster.Put{Key: "a"}, cluster.Put{Key: "a"}),
		"an empty key":              change(cluster.Put{}),
		"a negative TTL":            change(cluster.Put{Key: "a", Value: []byte{1}, TTL: -time.Second}),
		"a TTL of half a second":    change(cluster.Put{Key: "a", Value: []byte{1}, TTL: time.Second / 2}),
		"a TTL of nothing":          change(cluster.Put{Key: "a", TTL: time.Second}),
		"too many keys to forget":   {Forget: []cluster.Key{key, key, key, key}},
		"too many changes":          {Changes: make([]*cluster.Change, 4)},
		"more records than allowed": {Records: make([]*cluster.Record, 4)},
	} {
		require.Error(t, b.Check(limits), name)
	}
}

func TestCheckMarksWhatIsTooLargeAndClearsTheRest(t *testing.T) {
	stale := cluster.ErrConflict
	fits := &cluster.Record{Message: message("1234", "123456"), Pos: 7, Repeated: true, Err: stale}
	large := &cluster.Record{Message: message("1234", "1234567")}
	withProperties := &cluster.Record{Message: message("1234", "123456")}
	withProperties.Message.AddUser("a", "b")
	change := &cluster.Change{Err: stale, Put: []cluster.Put{
		{Key: "a", Value: []byte("1234"), New: 5}, {Key: "b", Value: []byte{}, TTL: time.Second},
	}}
	value := &cluster.Change{Put: []cluster.Put{{Key: "a", Value: []byte("12345")}}}
	key := &cluster.Change{Put: []cluster.Put{{Key: strings.Repeat("x", cluster.MaxKey+1)}}}
	b := cluster.Batch{
		Records: []*cluster.Record{fits, large, withProperties},
		Changes: []*cluster.Change{change, value, key},
		Forget:  []cluster.Key{{Part: 1, Name: strings.Repeat("x", cluster.MaxOnce)}},
	}
	require.NoError(t, b.Check(limits))
	require.NoError(t, fits.Err)
	require.Zero(t, fits.Pos)
	require.False(t, fits.Repeated)
	require.ErrorIs(t, large.Err, cluster.ErrTooLarge)
	require.ErrorIs(t, withProperties.Err, cluster.ErrTooLarge)
	require.NoError(t, change.Err)
	require.Zero(t, change.Put[0].New)
	require.ErrorIs(t, value.Err, cluster.ErrTooLarge)
	require.ErrorIs(t, key.Err, cluster.ErrTooLarge)
}
