package waiting

import (
	"math/rand/v2"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

func at(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 1} }

// gone is an evict function that counts.
func gone(n *int) func() { return func() { *n++ } }

func TestAnAddressHasAtMostHalfAndItsOldestGoesFirst(t *testing.T) {
	r := NewRoom(8)
	var places []*Place
	evicted := make([]int, 6)
	for i := range evicted {
		places = append(places, r.Enter(at("192.0.2.1"), gone(&evicted[i])))
		require.NotNil(t, places[i])
	}
	require.Equal(t, []int{1, 1, 0, 0, 0, 0}, evicted)
	require.Equal(t, 4, r.Len())
	require.False(t, places[0].Leave(), "its place was taken away")
	require.True(t, places[5].Leave())
	require.False(t, places[5].Leave(), "it was given back")
	require.Equal(t, 3, r.Len())
}

func TestTheRoomIsNeverShutToAnAddressThatHoldsNothing(t *testing.T) {
	r := NewRoom(4)
	evicted := 0
	for i := range 100 {
		require.NotNil(t, r.Enter(at(net.IPv4(192, 0, 2, byte(i)).String()), gone(&evicted)),
			"address %d", i)
		require.LessOrEqual(t, r.Len(), 4)
	}
	require.Equal(t, 96, evicted)
}

func TestWhatCannotBeTakenAwayStays(t *testing.T) {
	r := NewRoom(4)
	for range 2 {
		require.NotNil(t, r.Enter(at("192.0.2.1"), nil))
	}
	require.Nil(t, r.Enter(at("192.0.2.1"), nil), "half is held")
	require.NotNil(t, r.Enter(at("192.0.2.2"), nil))
	require.Nil(t, r.Enter(at("192.0.2.2"), nil))
	evicted := 0
	p := r.Enter(at("192.0.2.3"), gone(&evicted))
	require.NotNil(t, p)
	require.True(t, p.OnEvict(nil))
	require.Nil(t, r.Enter(at("192.0.2.4"), nil), "all are held, and none can be taken away")
	require.True(t, p.OnEvict(gone(&evicted)))
	require.NotNil(t, r.Enter(at("192.0.2.4"), nil))
	require.Equal(t, 1, evicted)
	require.False(t, p.OnEvict(nil))
}

func TestWhatCountsAsOneAddress(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b net.Addr
		same bool
	}{
		{"two addresses", at("192.0.2.1"), at("192.0.2.2"), false},
		{"two ports of an address", at("192.0.2.1"),
			&net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7}, true},
		{"one /64 of IPv6", at("2001:db8::1"), at("2001:db8::ffff:1"), true},
		{"two /64 of IPv6", at("2001:db8::1"), at("2001:db8:0:1::1"), false},
		{"IPv6 on the same machine", at("::1"), at("::2"), false},
		{"IPv4 in IPv6", at("::ffff:192.0.2.1"), at("192.0.2.1"), true},
		{"unix sockets", &net.UnixAddr{Name: "@"}, nil, true},
	} {
		require.Equal(t, tt.same, networkOf(tt.a) == networkOf(tt.b), tt.name)
	}
}

func TestCloseTakesAllPlacesAway(t *testing.T) {
	r := NewRoom(-1)
	evicted := 0
	for range 5 {
		require.NotNil(t, r.Enter(nil, gone(&evicted)))
	}
	require.NotNil(t, r.Enter(nil, nil))
	r.Close()
	require.Equal(t, 5, evicted)
	require.Zero(t, r.Len())
	require.Nil(t, r.Enter(nil, nil))
}

// Whatever the order, the bound holds, and each Place is evicted, left or held.
func TestRandomOrders(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		size := rnd.IntN(20)
		r := NewRoom(size)
		evicted, entered, left := 0, 0, 0
		var places []*Place
		for range 200 {
			if len(places) > 0 && rnd.IntN(3) == 0 {
				i := rnd.IntN(len(places))
				if places[i].Leave() {
					left++
				}
				places = append(places[:i], places[i+1:]...)
				continue
			}
			from := at(net.IPv4(192, 0, 2, byte(rnd.IntN(1+size*2))).String())
			if p := r.Enter(from, gone(&evicted)); p != nil {
				entered++
				places = append(places, p)
			} else {
				require.Zero(t, size, "every Place can be taken away")
			}
			require.LessOrEqual(t, r.Len(), size)
			require.Equal(t, entered-left-evicted, r.Len())
		}
	}
}
