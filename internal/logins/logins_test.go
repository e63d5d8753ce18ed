package logins

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	here  = netip.MustParseAddr("192.0.2.1")
	there = netip.MustParseAddr("192.0.2.2")
)

func jane(addr netip.Addr) Who { return Who{Addr: addr, Name: "jane", Named: true} }

// fails begins attempts that come true, and returns how many there was room for, at most most.
func fails(t *Table, w Who, most int, now time.Time) (n int) {
	for range most {
		if _, ok := t.Begin(w, now); !ok {
			return n
		}
		n++
	}
	return n
}

func TestTheLimitsAreOfANameAndOfAnAddress(t *testing.T) {
	now := time.Now()
	x := New(Limits{PerName: 6, PerAddress: 10})
	require.Equal(t, 6, fails(x, jane(here), 100, now))
	require.Equal(t, 4, fails(x, Who{Addr: here, Name: "joe", Named: true}, 100, now),
		"the address has no more")
	require.Equal(t, 6, fails(x, jane(there), 100, now), "another address")

	require.Zero(t, fails(x, jane(here), 1, now.Add(5*time.Second)))
	require.Equal(t, 1, fails(x, jane(here), 100, now.Add(10*time.Second)),
		"one of six in a minute has come back")
	require.Equal(t, 6, fails(x, jane(here), 100, now.Add(time.Hour)),
		"no more than a minute's are saved up")
	require.Zero(t, fails(x, jane(here), 1, now), "a clock that goes back gives nothing")

	require.Equal(t, 1000, fails(New(Limits{PerAddress: 2000}), jane(here), 1000, now),
		"no limit for names")
	require.Equal(t, 1000, fails(New(Limits{PerName: 2000}), jane(here), 1000, now),
		"no limit for addresses")
	exempt := jane(here)
	exempt.Exempt = true
	require.Equal(t, 1000, fails(x, exempt, 1000, now))
}

func TestAnAttemptThatDoesNotFailCostsNothing(t *testing.T) {
	now := time.Now()
	x := New(Limits{PerName: 2, PerAddress: 3})
	for range 100 {
		a, ok := x.Begin(jane(here), now)
		require.True(t, ok)
		x.Accepted(a, now)
		b, ok := x.Begin(Who{Addr: here, Name: "joe"}, now)
		require.True(t, ok)
		x.Undecided(b, now)
	}
	require.Empty(t, x.failures)
	require.Len(t, x.known, 1)

	a, _ := x.Begin(jane(here), now)
	b, _ := x.Begin(jane(here), now)
	_, ok := x.Begin(jane(here), now)
	require.False(t, ok, "what is under way counts")
	x.Undecided(a, now)
	require.Equal(t, 1, fails(x, jane(here), 100, now))
	x.Undecided(b, now)
}

func TestKnownNamesAreNotHeldToTheLimitOfTheirAddress(t *testing.T) {
	now := time.Now()
	x := New(Limits{PerName: 2, PerAddress: 3})
	a, _ := x.Begin(jane(here), now)
	require.False(t, a.Known)
	x.Accepted(a, now)
	client := Who{Addr: here, Name: "a client identifier"}
	a, _ = x.Begin(client, now)
	x.Accepted(a, now)
	for i := range 10 {
		fails(x, Who{Addr: here, Name: fmt.Sprint(i), Named: true}, 1, now)
	}
	a, ok := x.Begin(jane(here), now)
	require.True(t, ok)
	require.True(t, a.Known)
	require.True(t, a.Over)
	x.Accepted(a, now)
	require.Zero(t, fails(x, client, 1, now), "only User Names are known")
	client.Again = true
	require.Equal(t, 2, fails(x, client, 100, now), "a client that was accepted on this connection")
	require.Equal(t, 2, fails(x, jane(here), 100, now), "its own limit holds")
	a, _ = x.Begin(jane(there), now)
	require.False(t, a.Known, "at another address nobody knows it")
}

func TestTheTablesAreBounded(t *testing.T) {
	now := time.Now()
	x := New(Limits{PerName: 2, PerAddress: 3})
	for i := range 3 * MaxEntries {
		w := Who{Addr: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
			Name:  "n",
			Named: true}
		a, _ := x.Begin(w, now)
		x.Accepted(a, now)
		x.Begin(w, now)
	}
	require.Len(t, x.failures, MaxEntries)
	require.Len(t, x.known, MaxEntries)
}
