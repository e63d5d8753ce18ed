package tap

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func who(id string) Who {
	at := &net.TCPAddr{IP: net.IPv4(10, 0, 0, byte(len(id))), Port: 4000}
	return Who{Conn: uint64(len(id)), Client: &hooks.Client{ID: id, RemoteAddr: at},
		Version: packets.V5}
}

func publish(t *testing.T, topic string, alias uint32) []byte {
	p := &packets.Publish{Topic: []byte(topic), Payload: []byte("x")}
	if alias > 0 {
		p.Properties = p.Properties.AppendUint(packets.TopicAlias, alias)
	}
	b, err := p.Append(nil, packets.V5)
	require.NoError(t, err)
	return b
}

// shown stops x and returns its packets in short.
func shown(x *Tap) (all []string) {
	x.Stop()
	for p := range x.Packets() {
		q, err := p.Packet()
		text := fmt.Sprint(err)
		if err == nil {
			text = packets.Trace(q)
		}
		way := "<"
		if p.Incoming {
			way = ">"
		}
		all = append(all, p.Client.ID+way+text)
	}
	return all
}

func start(t *testing.T, taps *Taps, o hooks.TapOptions) *Tap {
	x, err := taps.Start(t.Context(), o)
	require.NoError(t, err)
	return x
}

func TestATapShowsWhatItIsAskedFor(t *testing.T) {
	var taps Taps
	require.Nil(t, taps.On())
	all, a := start(t, &taps, hooks.TapOptions{}), start(t, &taps, hooks.TapOptions{ClientID: "a"})
	net := start(t, &taps, hooks.TapOptions{Address: "10.0.0.2/31"})
	host := start(t, &taps, hooks.TapOptions{Address: "10.0.0.1"})
	filter := start(t, &taps, hooks.TapOptions{Filter: "m/+/x"})
	ping := []byte{0xC0, 0}
	taps.On().See(who("a"), time.Now(), In, append(publish(t, "x", 0), ping...))
	x := who("bb")
	x.Mount = "m/"
	taps.On().See(x, time.Now(), Out, publish(t, "a/x", 0))
	const a1, a2, b = "a>PUBLISH qos=0 topic=x payload=x", "a>PINGREQ",
		"bb<PUBLISH qos=0 topic=a/x payload=x"
	require.Equal(t, []string{a1, a2, b}, shown(all))
	require.Equal(t, []string{a1, a2}, shown(a))
	require.Equal(t, []string{b}, shown(net))
	require.Equal(t, []string{a1, a2}, shown(host))
	require.Equal(t, []string{b}, shown(filter))
	require.Nil(t, taps.On(), "nobody watches any more")
}

// A Tap of an address looks at each read and each write of all connections.
func TestToLookForAnAddressDoesNotAllocate(t *testing.T) {
	x := start(t, new(Taps), hooks.TapOptions{Address: "10.0.0.0/24"})
	for _, at := range []net.Addr{
		&net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 1}, &net.TCPAddr{IP: net.IPv4(10, 0, 1, 7)},
		&net.UnixAddr{Name: "/run/mqtt"}, nil,
	} {
		client := &hooks.Client{RemoteAddr: at}
		require.Zero(t, testing.AllocsPerRun(100, func() { x.watches(client) }), "%v", at)
	}
	for at, is := range map[net.Addr]bool{
		&net.TCPAddr{IP: net.ParseIP("10.0.0.7"), Port: 1}:     true,
		&net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.7")}:       true,
		&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}: false,
		&net.UDPAddr{IP: net.ParseIP("10.0.0.7"), Port: 2}:     true, // of QUIC
		&net.UnixAddr{Name: "10.0.0.7:1"}:                      false,
		(*net.TCPAddr)(nil):                                    false,
	} {
		require.Equal(t, is, x.watches(&hooks.Client{RemoteAddr: at}), "%v", at)
	}
}

func TestAFilterFollowsTopicAliases(t *testing.T) {
	var taps Taps
	x := start(t, &taps, hooks.TapOptions{Filter: "a"})
	w := who("c")
	see := func(way Way, topic string, alias uint32) {
		taps.On().See(w, time.Now(), way, publish(t, topic, alias))
	}
	see(In, "a", 1)
	see(In, "", 1)
	see(Out, "", 1) // of the other direction: not known
	see(In, "b", 1)
	see(In, "", 1) // stands for b now
	require.Len(t, shown(x), 2)
}

func TestSecretsAreBlanked(t *testing.T) {
	var taps Taps
	x := start(t, &taps, hooks.TapOptions{})
	secret := []byte("secret")
	p := packets.Properties(nil).AppendText(packets.AuthenticationMethod, "M").
		AppendBytes(packets.AuthenticationData, secret)
	for _, q := range []packets.Packet{
		&packets.Connect{Version: packets.V5, ClientID: "c", HasPassword: true, Password: secret,
			Properties: p},
		&packets.Connect{Version: packets.V311, ClientID: "c", HasUsername: true, Username: "u",
			HasPassword: true, Password: secret},
		&packets.Auth{Code: packets.ContinueAuthentication, Properties: p},
		&packets.Connack{Properties: p},
	} {
		b, err := q.Append(nil, packets.V5)
		require.NoError(t, err)
		require.True(t, bytes.Contains(b, secret))
		taps.On().See(who("c"), time.Now(), In, b)
		broken := bytes.Clone(b)
		broken[len(broken)-1]++
		broken[1]-- // the last byte belongs to the next packet
		taps.On().See(who("c"), time.Now(), In, broken[:len(broken)-1])
	}
	x.Stop()
	n := 0
	for p := range x.Packets() {
		require.NotContains(t, string(p.Data), "secre", "%q", p.Data)
		if p.Withheld {
			continue
		}
		n++
		_, err := p.Packet()
		require.NoError(t, err, "what is left is a packet")
		require.Contains(t, string(p.Data), "***")
	}
	require.GreaterOrEqual(t, n, 4)
}

func TestASlowReaderLosesAndCounts(t *testing.T) {
	var taps Taps
	x := start(t, &taps, hooks.TapOptions{Buffer: 3})
	for range 5 {
		taps.On().See(who("a"), time.Now(), In, publish(t, "t", 0))
	}
	require.EqualValues(t, 2, x.Lost())
	for range 3 {
		for range x.Packets() {
			break // the others wait for the next call
		}
	}
	taps.On().See(who("a"), time.Now(), In, publish(t, "t", 0))
	x.Stop()
	for p := range x.Packets() {
		require.EqualValues(t, 2, p.Lost, "a packet says what was lost before it")
	}

	x = start(t, &taps, hooks.TapOptions{BufferBytes: 20})
	for range 5 {
		taps.On().See(who("a"), time.Now(), In, publish(t, "topic", 0))
	}
	require.EqualValues(t, 4, x.Lost(), "one has room")
	x.Stop()
}

func TestATapEndsAtItsBounds(t *testing.T) {
	var taps Taps
	see := func() {
		if s := taps.On(); s != nil {
			s.See(who("a"), time.Now(), In, publish(t, "t", 0))
		}
	}
	x := start(t, &taps, hooks.TapOptions{MaxPackets: 3})
	for range 5 {
		see()
	}
	require.Nil(t, taps.On())
	require.Len(t, shown(x), 3)
	x = start(t, &taps, hooks.TapOptions{MaxBytes: 10})
	for range 5 {
		see()
	}
	require.Nil(t, taps.On())
	require.Len(t, shown(x), 2, "of 7 bytes each")

	synctest.Test(t, func(t *testing.T) {
		var taps Taps
		x := start(t, &taps, hooks.TapOptions{For: time.Minute})
		begin := time.Now()
		for range x.Packets() {
		}
		require.Equal(t, time.Minute, time.Since(begin))
		require.Nil(t, taps.On(), "also if nothing passes")

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := taps.Start(ctx, hooks.TapOptions{})
		require.NoError(t, err)
		synctest.Wait()
		require.Nil(t, taps.On())
		x = start(t, &taps, hooks.TapOptions{})
		start(t, &taps, hooks.TapOptions{})
		taps.Close()
		require.Nil(t, taps.On())
		require.Empty(t, shown(x))
		_, err = taps.Start(t.Context(), hooks.TapOptions{})
		require.ErrorIs(t, err, ErrClosed)
	})
}

func TestOptionsAreChecked(t *testing.T) {
	var taps Taps
	for _, o := range []hooks.TapOptions{{Address: "nowhere"}, {Filter: "a/#/b"}} {
		_, err := taps.Start(t.Context(), o)
		require.ErrorContains(t, err, "expected")
	}
	for range Most {
		start(t, &taps, hooks.TapOptions{})
	}
	_, err := taps.Start(t.Context(), hooks.TapOptions{})
	require.ErrorContains(t, err, "at most 16")
}

func TestTapsComeAndGoWhilePacketsPass(t *testing.T) {
	var taps Taps
	var wg sync.WaitGroup
	p := publish(t, "t", 0)
	done := make(chan struct{})
	for i := range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if s := taps.On(); s != nil {
					s.See(who(fmt.Sprint(i)), time.Now(), In, p)
				}
			}
		})
	}
	for range 40 {
		x, err := taps.Start(t.Context(), hooks.TapOptions{MaxPackets: 50})
		require.NoError(t, err)
		n := 0
		for range x.Packets() {
			n++
		}
		require.LessOrEqual(t, n, 50)
	}
	close(done)
	wg.Wait()
	require.Nil(t, taps.On())
}

func BenchmarkNobodyWatches(b *testing.B) {
	var taps Taps
	for b.Loop() {
		if taps.On() != nil {
			b.Fatal()
		}
	}
}

func BenchmarkAnotherClientIsWatched(b *testing.B) {
	var taps Taps
	x, err := taps.Start(b.Context(), hooks.TapOptions{ClientID: "somebody"})
	if err != nil {
		b.Fatal(err)
	}
	defer x.Stop()
	w, data := who("somebodx"), []byte{0xC0, 0}
	b.ReportAllocs()
	for b.Loop() {
		if taps.On().Watches(w.Client) {
			taps.On().See(w, time.Time{}, In, data)
		}
	}
}

// A User Name is shown, and a token in its place is not.
func TestTokensAreNotShown(t *testing.T) {
	const token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
	for name, shown := range map[string]string{"ann": "ann", token: hooks.ShownUser(token)} {
		c := &packets.Connect{Version: packets.V5, ClientID: "c", HasUsername: true, Username: name}
		data, err := c.Append(nil, packets.V5)
		require.NoError(t, err)
		got, withheld := blank(data, packets.V5)
		require.False(t, withheld)
		p, _, err := packets.Decode(got, packets.V5, packets.Limits{})
		require.NoError(t, err)
		require.Equal(t, shown, p.(*packets.Connect).Username)
	}
}
