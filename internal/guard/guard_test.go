package guard

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestAddressesOfAPeer(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:5": "192.0.2.1",
		"[fe80::1%eth0]:5": "fe80::1",
	} {
		require.Equal(t, want,
			RemoteIP(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))).String())
	}
	require.False(t, RemoteIP(nil).IsValid())
	require.False(t, RemoteIP(&net.UnixAddr{Name: "/x"}).IsValid())
	require.Equal(t, "2001:db8:0:1::", Network(netip.MustParseAddr("2001:db8:0:1:2::3")).String())
	require.Equal(t, "::1", Network(netip.MustParseAddr("::1")).String())
}

func TestAnAddressHasItsConnectionsAndItsRate(t *testing.T) {
	now := time.Unix(1e9, 0)
	as := NewAddresses(Limits{PerIP: 2, RatePerIP: 3})
	ip := netip.MustParseAddr("192.0.2.1")
	code := func(err error) packets.ReasonCode { return packets.CodeOf(err) }
	a, err := as.Admit(ip, now)
	require.NoError(t, err)
	b, err := as.Admit(ip, now)
	require.NoError(t, err)
	_, err = as.Admit(ip, now)
	require.Equal(t, packets.QuotaExceeded, code(err))
	require.Equal(t, packets.QuotaExceeded, code(as.Refusal(ip, now)))
	as.Dismiss(b, now)
	_, err = as.Admit(ip, now)
	require.NoError(t, err, "the one that was refused took nothing from the rate")
	as.Dismiss(a, now)
	_, err = as.Admit(ip, now)
	require.Equal(t, packets.ConnectionRateExceeded, code(err))
	require.NoError(t, as.Refusal(ip, now.Add(time.Second)))
	x, err := as.Admit(netip.Addr{}, now)
	require.NoError(t, err)
	require.Nil(t, x, "a peer without IP address counts nowhere")
	as.Dismiss(x, now)
}

func TestAPaceIsOwedOverConnections(t *testing.T) {
	now := time.Unix(1e9, 0)
	ps := NewPaces()
	p := ps.Join("o", 0, 100)
	require.True(t, p.Take(now.UnixNano(), 1000), "one may be larger than a second's worth")
	require.False(t, p.Take(now.UnixNano(), 1))
	ps.Leave(p, now)
	p = ps.Join("o", 0, 100)
	require.InDelta(t, 9, p.Delay(now.UnixNano()).Seconds(), 0.1)
	later := now.Add(time.Minute)
	require.True(t, p.Take(later.UnixNano(), 1))
	ps.Leave(p, later.Add(time.Minute))
	all, _ := ps.Len()
	require.Zero(t, all, "an owner that owes nothing is forgotten")
}

func TestBansOfTheBrokerMakeRoomForEachOther(t *testing.T) {
	now := time.Unix(1e9, 0)
	var l Bans
	l.Add(Ban{Kind: 2, Value: "program"}, now)
	for i := range MaxAutomatic + 10 {
		until := now.Add(time.Hour + time.Duration(i))
		l.Add(Ban{Kind: 2, Value: fmt.Sprint(i), Until: until, Automatic: true}, now)
	}
	require.Len(t, l.All(now), MaxAutomatic+1)
	require.False(t, l.Has(2, "9", now))
	require.True(t, l.Has(2, "10", now))
	require.False(t, l.Add(Ban{Kind: 2, Value: "program", Until: now.Add(1), Automatic: true}, now))
	require.Len(t, l.All(now.Add(24*time.Hour)), 1)
}

func TestABanOfANetwork(t *testing.T) {
	now := time.Unix(1e9, 0)
	var l Bans
	for _, s := range []string{"192.0.2.0/24", "2001:db8::/32", "::ffff:198.51.100.7"} {
		p, err := ParseNetwork(s)
		require.NoError(t, err)
		l.Add(Ban{Kind: AddressKind, Value: FormatNetwork(p), Until: now.Add(time.Hour)}, now)
	}
	for ip, want := range map[string]bool{
		"192.0.2.77": true, "192.0.3.1": false, "2001:db8:1::1": true, "2001:db9::1": false,
		"198.51.100.7": true, "198.51.100.8": false,
	} {
		require.Equal(t, want, l.HasAddress(netip.MustParseAddr(ip), now), ip)
		require.False(t, l.HasAddress(netip.MustParseAddr(ip), now.Add(2*time.Hour)), ip)
	}
	require.True(t, l.Remove(AddressKind, "198.51.100.7", now))
	require.False(t, l.HasAddress(netip.MustParseAddr("198.51.100.7"), now))
	require.False(t, l.HasAddress(netip.Addr{}, now))
}
