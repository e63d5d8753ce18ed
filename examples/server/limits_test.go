package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// closed says whether the server closes a new connection before it says anything.
func closed(t *testing.T, addr string) bool {
	t.Helper()
	conn := dial(t, addr)
	p := &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "closed"}
	b, err := p.Append(nil, packets.V5)
	require.NoError(t, err)
	_, _ = conn.Write(b) // may find it closed
	_, err = conn.Read(make([]byte, 1))
	conn.Close()
	return err != nil
}

func TestLimitsOfAddresses(t *testing.T) {
	addrs, _ := start(t, "-listen", "127.0.0.1:0", "-max-connections-ip", "2")
	login{"a", "-", "-"}.at(t, dial(t, addrs[0]))
	b := dial(t, addrs[0])
	login{"b", "-", "-"}.at(t, b)
	require.True(t, closed(t, addrs[0]), "a third connection")
	b.Close()
	eventually(t, "a place is free", func() bool { return !closed(t, addrs[0]) })

	addrs, _ = start(t, "-listen", "127.0.0.1:0", "-rate-connect-ip", "0.001")
	login{"a", "-", "-"}.at(t, dial(t, addrs[0]))
	require.True(t, closed(t, addrs[0]), "a second one within a quarter of an hour")

	addrs, _ = start(t, "-listen", "127.0.0.1:0", "-password-file", users(t, "jane", "pencil"),
		"-max-auth-failures", "2")
	for _, want := range []packets.ReasonCode{packets.BadUserNameOrPassword,
		packets.BadUserNameOrPassword, packets.ConnectionRateExceeded} {
		_, code := connect(t, dial(t, addrs[0]), login{"c", "jane", "wrong"})
		require.Equal(t, want, code)
	}
}

func TestRatesOfPublishers(t *testing.T) {
	addrs, _ := start(t, "-listen", "127.0.0.1:0", "-rate-publish", "2", "-rate-exceeded", "refuse")
	c := login{"c", "-", "-"}.at(t, dial(t, addrs[0]))
	codes := map[packets.ReasonCode]int{}
	for range 30 { // on a slow machine each may take a while, in which there is room again
		codes[c.publish("a", "x")]++
	}
	require.GreaterOrEqual(t, codes[packets.QuotaExceeded], 1, "%v", codes)
	require.GreaterOrEqual(t, codes[packets.NoMatchingSubscribers], 2, "%v", codes)

	addrs, _ = start(t, "-listen", "127.0.0.1:0", "-rate-publish-bytes", "1000")
	c = login{"c", "-", "-"}.at(t, dial(t, addrs[0]))
	began := time.Now()
	for range 4 {
		require.Equal(t, packets.NoMatchingSubscribers, c.publish("a", strings.Repeat("x", 500)))
	}
	require.Greater(t, time.Since(began), 400*time.Millisecond,
		"2,000 bytes, of which 1,000 may come at once")
}

func TestBannedByFlag(t *testing.T) {
	addrs, printed := start(t, "-listen", "127.0.0.1:0", "-ban", "client:bad", "-ban", "user:joe",
		"-ban", "address:192.0.2.0/24")
	for _, l := range []login{{"bad", "-", "-"}, {"c", "joe", "-"}} {
		_, code := connect(t, dial(t, addrs[0]), l)
		require.Equal(t, packets.Banned, code, "%+v", l)
	}
	login{"good", "jane", "-"}.at(t, dial(t, addrs[0]))
	require.True(t, containsAll(printed.String(), "192.0.2.0/24", "banned"))

	addrs, _ = start(t, "-listen", "127.0.0.1:0", "-ban", "address:127.0.0.0/8")
	require.True(t, closed(t, addrs[0]))
}

func TestSessionsAndSubscriptionsByFlag(t *testing.T) {
	addrs, _ := start(t, "-listen", "127.0.0.1:0", "-session-per-principal", "-min-wildcard-level",
		"1")
	jane := login{"c", "jane", "-"}.at(t, dial(t, addrs[0]))
	joe := login{"c", "joe", "-"}.at(t, dial(t, addrs[0]))
	joe.ping()
	jane.ping()
	require.Equal(t, packets.NotAuthorized, jane.subscribe("#"))
	require.Equal(t, packets.Success, jane.subscribe("a/#"))

	addrs, _ = start(t, "-listen", "127.0.0.1:0", "-max-memory", "30000", "-max-retained", "1")
	c := login{"c", "-", "-"}.at(t, dial(t, addrs[0]))
	c.id++
	c.send(&packets.Publish{QoS: 1, PacketID: c.id, Topic: []byte("a"),
		Payload: make([]byte, 25_000), Retain: true})
	require.Equal(t, packets.QuotaExceeded, c.want(packets.TypePuback).(*packets.Ack).Code,
		"there is no memory for it")
	require.Equal(t, packets.NoMatchingSubscribers, c.publish("a", "x"),
		"live messages that need no memory go on")
}

func TestFlagsOfLimits(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-rate-exceeded", "shout"}, `-rate-exceeded "shout" is neither pause nor refuse`},
		{[]string{"-ban-time", "-1s"}, "-ban-time -1s is negative"},
	} {
		_, err := parse(tt.args)
		require.ErrorContains(t, err, tt.want)
	}
	for _, s := range []string{"jane", "name:jane", "address:nowhere", "client:"} {
		o, err := parse([]string{"-ban", s})
		require.NoError(t, err)
		o.logTo(new(bytes.Buffer))
		b, err := dunlin.New(o.cfg)
		require.NoError(t, err)
		require.ErrorContains(t, o.limits.ban(b), "-ban")
		b.Close()
	}
	o, err := parse([]string{"-rate-connect", "7", "-max-takeovers", "3", "-ban-time", "1m",
		"-max-connecting", "9", "-max-retained-bytes", "5",
		"-max-sessions-user", "1", "-max-subscriptions-user", "2", "-max-retained-user", "3",
		"-max-retained-bytes-user", "4", "-max-queued-bytes-user", "-1",
		"-max-kept-bytes-user", "6", "-max-delay", "1h", "-max-delayed-user", "7",
		"-max-connections-user", "8"})
	require.NoError(t, err)
	require.Equal(t, 7.0, o.cfg.ConnectRate)
	require.Equal(t, 3, o.cfg.MaxTakeovers)
	require.Equal(t, time.Minute, o.cfg.BanTime)
	require.Equal(t, 9, o.cfg.MaxConnecting)
	require.Equal(t, 5, o.cfg.MaxRetainedBytes)
	require.Equal(t, time.Hour, o.cfg.MaxDelay)
	require.Equal(t, []int{1, 2, 3, 4, -1, 6, 7, 8}, []int{o.cfg.MaxSessionsPerPrincipal,
		o.cfg.MaxSubscriptionsPerPrincipal, o.cfg.MaxRetainedPerPrincipal,
		o.cfg.MaxRetainedBytesPerPrincipal, o.cfg.MaxQueuedBytesPerPrincipal,
		o.cfg.MaxKeptBytesPerPrincipal, o.cfg.MaxDelayedPerPrincipal,
		o.cfg.MaxConnectionsPerPrincipal})
}
