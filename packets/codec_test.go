package packets

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func TestSizeIsWhatAppendWrites(t *testing.T) {
	for _, s := range allSamples() {
		t.Run(s.v.String()+"/"+s.name, func(t *testing.T) {
			b := encode(t, s.p, s.v)
			require.Len(t, b, s.p.Size(s.v))
			after, err := s.p.Append([]byte("before"), s.v)
			require.NoError(t, err)
			require.Equal(t, "before"+string(b), string(after), "Append must append")
			h, _ := split(t, b, s.v)
			require.Equal(t, s.p.Type(), h.Type)
		})
	}
}

func TestPacketsComeBackAsTheyWere(t *testing.T) {
	for _, s := range allSamples() {
		t.Run(s.v.String()+"/"+s.name, func(t *testing.T) {
			b := encode(t, s.p, s.v)
			got, n, err := Decode(append(b, "next"...), s.v, Limits{})
			require.NoError(t, err)
			require.Equal(t, len(b), n)
			require.Empty(t, cmp.Diff(s.p, got))

			used := got // which Decode must replace completely
			h, body := split(t, b, s.v)
			require.NoError(t, used.Decode(h, body, s.v))
			require.Empty(t, cmp.Diff(s.p, used))
		})
	}
}

func TestRandomPacketsComeBackAsTheyWere(t *testing.T) {
	r := seeded(t)
	for range 5000 {
		v := versions[r.IntN(len(versions))]
		want := randomPacket(r, v)
		b := encode(t, want, v)
		require.Equal(t, want.Size(v), len(b), Trace(want))
		got, _, err := Decode(b, v, Limits{})
		require.NoError(t, err, Trace(want))
		require.Empty(t, cmp.Diff(want, got))
		require.Equal(t, b, encode(t, got, v), Trace(want))
		require.NoError(t, Limits{Filters: 4, UserProperties: 4}.Check(got))
	}
}

// acceptable returns the lengths, less than that of the whole body, at which the body of p may end.
func acceptable(t *testing.T, p Packet, v Version) (lengths []int) {
	t.Helper()
	shorter := func(q Packet) {
		_, body := split(t, encode(t, q, v), v)
		lengths = append(lengths, len(body))
	}
	switch p := p.(type) {
	case *Publish:
		_, body := split(t, encode(t, p, v), v)
		for n := range len(p.Payload) {
			lengths = append(lengths, len(body)-n-1)
		}
	case *Subscribe:
		for n := range p.Subscriptions[1:] {
			q := *p
			q.Subscriptions = p.Subscriptions[:n+1]
			shorter(&q)
		}
	case *Unsubscribe:
		for n := range p.Filters[1:] {
			q := *p
			q.Filters = p.Filters[:n+1]
			shorter(&q)
		}
	case *Suback:
		for n := range p.Codes[1:] {
			q := *p
			q.Codes = p.Codes[:n+1]
			shorter(&q)
		}
	case *Unsuback:
		for n := range max(len(p.Codes)-1, 0) {
			q := *p
			q.Codes = p.Codes[:n+1]
			shorter(&q)
		}
	case *Ack:
		return []int{2, 3} // the short forms
	case *Disconnect:
		return []int{0, 1}
	}
	return lengths
}

func TestNoPrefixOfAPacketIsAPacket(t *testing.T) {
	for _, s := range allSamples() {
		t.Run(s.v.String()+"/"+s.name, func(t *testing.T) {
			b := encode(t, s.p, s.v)
			for n := range min(len(b), 300) {
				_, taken, err := Decode(b[:n], s.v, Limits{})
				require.Equal(t, ErrShort, err, "%d bytes of %d are not all", n, len(b))
				require.Zero(t, taken)
			}
			_, body := split(t, b, s.v)
			ok := acceptable(t, s.p, s.v)
			for n := range min(len(body), 300) {
				p, _, err := Decode(frame(b[0], body[:n]), s.v, Limits{})
				if slices.Contains(ok, n) {
					require.NoError(t, err, "%d bytes of %d are a packet of their own", n,
						len(body))
					continue
				}
				if _, is := err.(*Error); !is {
					t.Fatalf("a body of %d bytes instead of %d must be refused, got %v %v", n,
						len(body), p, err)
				}
			}
			// And none may go on after its end.
			if s.p.Type() == TypePublish || s.p.Type() == TypeSuback ||
				s.p.Type() == TypeUnsuback && s.v == V5 ||
				s.v == V5 && len(body) < 4 {
				return // there more bytes are payload, codes or fields that were left out
			}
			_, _, err := Decode(frame(b[0], append(body, 0)), s.v, Limits{})
			requireCode(t, MalformedPacket, err, "one byte too many")
		})
	}
}

// decodeEncodeDecode checks that what can be decoded can be encoded, is not longer then, and
// decodes to the same packet.
func decodeEncodeDecode(t *testing.T, b []byte, v Version) {
	t.Helper()
	first, n, err := Decode(b, v, Limits{})
	if err != nil {
		if _, ok := err.(*Error); !ok && err != ErrShort {
			t.Fatalf("decoding % X returned %v", b, err)
		}
		return
	}
	if c, ok := first.(*Connect); ok {
		v = c.Version
	}
	again := encode(t, first, v)
	if len(again) > n || len(again) != first.Size(v) {
		t.Fatalf("%d bytes were encoded to %d, Size %d", n, len(again), first.Size(v))
	}
	second, n, err := Decode(again, v, Limits{})
	require.NoError(t, err, "what was decoded and encoded must decode again: %s", Trace(first))
	require.Len(t, again, n)
	require.Empty(t, cmp.Diff(first, second))
	if line := Trace(first); strings.ContainsAny(line, "\n\r\x00") ||
		!strings.HasPrefix(line, first.Type().String()) {
		t.Fatalf("the trace %q is not one line", line)
	}
}

func TestDamagedPacketsDoNoHarm(t *testing.T) {
	r := seeded(t)
	all := allSamples()
	for range 20000 {
		s := all[r.IntN(len(all))]
		b := encode(t, s.p, s.v)
		b = b[:min(len(b), 400)]
		damage(r, b)
		decodeEncodeDecode(t, b, versions[r.IntN(len(versions))])
	}
}

// damage changes one to three bytes of b.
func damage(r *rand.Rand, b []byte) {
	for range 1 + r.IntN(3) {
		i := r.IntN(len(b))
		switch r.IntN(3) {
		case 0:
			b[i] ^= 1 << r.IntN(8)
		case 1:
			b[i] = byte(r.Uint32())
		default:
			b[i] = []byte{0, 1, 0x7F, 0x80, 0xFF}[r.IntN(5)]
		}
	}
}

func TestAppendRefusesWhatTheWireCannotHold(t *testing.T) {
	long := strings.Repeat("x", 65536)
	fits := long[1:]
	bad := Properties(nil).AppendText(ReasonString, long)
	subs := func(s Subscription) []Subscription { return []Subscription{{Filter: "a"}, s} }
	for name, tt := range map[string]struct{ bad, good Packet }{
		"client identifier": {&Connect{Version: V5, ClientID: long},
			&Connect{Version: V5, ClientID: fits}},
		"user name": {&Connect{Version: V5, HasUsername: true, Username: long},
			&Connect{Version: V5, HasUsername: true, Username: fits}},
		"password": {&Connect{Version: V5, HasPassword: true, Password: []byte(long)},
			&Connect{Version: V5, HasPassword: true, Password: []byte(fits)}},
		"will topic": {&Connect{Version: V5, Will: &Will{Topic: long}},
			&Connect{Version: V5, Will: &Will{Topic: fits}}},
		"will payload": {&Connect{Version: V5, Will: &Will{Payload: []byte(long)}},
			&Connect{Version: V5, Will: &Will{Payload: []byte(fits)}}},
		"will QoS": {&Connect{Version: V5, Will: &Will{QoS: 4}},
			&Connect{Version: V5, Will: &Will{QoS: 3}}},
		"topic name": {&Publish{Topic: []byte(long)}, &Publish{Topic: []byte(fits)}},
		"QoS":        {&Publish{QoS: 4}, &Publish{QoS: 3}},
		"topic filter": {&Subscribe{Subscriptions: subs(Subscription{Filter: long})},
			&Subscribe{Subscriptions: subs(Subscription{Filter: fits})}},
		"requested QoS": {&Subscribe{Subscriptions: subs(Subscription{QoS: 4})},
			&Subscribe{Subscriptions: subs(Subscription{QoS: 3})}},
		"retain flag": {&Subscribe{Subscriptions: subs(Subscription{RetainHandling: 4})},
			&Subscribe{Subscriptions: subs(Subscription{RetainHandling: 3})}},
		"other filter": {&Unsubscribe{Filters: []string{"a", long}},
			&Unsubscribe{Filters: []string{"a", fits}}},
		"will property": {&Connect{Version: V5, Will: &Will{Properties: bad}},
			&Connect{Version: V311, Will: &Will{Properties: bad}}},
		"CONNECT": {&Connect{Version: V5, Properties: bad},
			&Connect{Version: V311, Properties: bad}},
		"CONNACK":        {&Connack{Properties: bad}, nil},
		"PUBLISH":        {&Publish{Properties: bad}, nil},
		"PUBACK":         {&Ack{Kind: TypePuback, Properties: bad}, nil},
		"SUBSCRIBE":      {&Subscribe{Properties: bad}, nil},
		"SUBACK":         {&Suback{Properties: bad}, nil},
		"UNSUBSCRIBE":    {&Unsubscribe{Properties: bad}, nil},
		"UNSUBACK":       {&Unsuback{Properties: bad}, nil},
		"DISCONNECT":     {&Disconnect{Properties: bad}, nil},
		"AUTH":           {&Auth{Properties: bad}, nil},
		"a whole packet": {&Publish{Topic: []byte("a"), Payload: make([]byte, maxRemaining)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := tt.bad.Append([]byte("before"), V5)
			require.Error(t, err)
			require.Equal(t, UnspecifiedError, CodeOf(err), "it is no error of the peer")
			require.Equal(t, "before", string(b), "what was there must stay")
			if tt.good != nil {
				b, err := tt.good.Append(nil, V5)
				require.NoError(t, err)
				require.Len(t, b, tt.good.Size(V5))
			}
		})
	}
	b, err := (&Publish{Topic: []byte("a"), Properties: bad}).Append(nil, V311)
	require.NoError(t, err, "3.1.1 does not write the properties")
	require.Len(t, b, 5)
	require.PanicsWithValue(t, "BUG: PUBLISH is not an acknowledgement of PUBLISH", func() {
		_, _ = (&Ack{Kind: TypePublish}).Append(nil, V5)
	})
}

func TestLimits(t *testing.T) {
	user := func(n int) (p Properties) {
		for range n {
			p = p.AppendUser("k", "v")
		}
		return p
	}
	t.Run("a packet of exactly the limit passes and one more byte does not", func(t *testing.T) {
		b := encode(t, &Publish{Topic: []byte("a"), Payload: make([]byte, 200)}, V5)
		_, _, err := Decode(b, V5, Limits{PacketSize: len(b)})
		require.NoError(t, err)
		_, _, err = Decode(b[:3], V5, Limits{PacketSize: len(b) - 1})
		requireCode(t, PacketTooLarge, err, "and the header alone tells so")
	})
	t.Run("as many User Properties as the limit pass and one more does not", func(t *testing.T) {
		for _, name := range propertyPackets() {
			b := encode(t, carrier(name, user(3)), V5)
			_, _, err := Decode(b, V5, Limits{UserProperties: 3})
			require.NoError(t, err, name)
			_, _, err = Decode(b, V5, Limits{UserProperties: 2})
			requireCode(t, QuotaExceeded, err, name)
		}
	})
	t.Run("User Properties of the Will count with those of the CONNECT", func(t *testing.T) {
		c := &Connect{Version: V5, Properties: user(1),
			Will: &Will{Topic: "w", Properties: user(2)}}
		require.NoError(t, Limits{UserProperties: 3}.Check(c))
		requireCode(t, QuotaExceeded, Limits{UserProperties: 2}.Check(c), "three in all")
	})
	t.Run("as many filters as the limit pass and one more does not", func(t *testing.T) {
		for _, p := range []Packet{
			&Subscribe{PacketID: 1,
				Subscriptions: []Subscription{{Filter: "a"}, {Filter: "b"}, {Filter: "c"}}},
			&Unsubscribe{PacketID: 1, Filters: []string{"a", "b", "c"}},
		} {
			for _, v := range versions {
				b := encode(t, p, v)
				_, _, err := Decode(b, v, Limits{Filters: 3})
				require.NoError(t, err)
				_, _, err = Decode(b, v, Limits{Filters: 2})
				requireCode(t, QuotaExceeded, err, p.Type().String())
				requireCode(t, QuotaExceeded, Limits{Filters: 2}.Check(p), p.Type().String())
			}
		}
	})
}

func TestDecodedSlicesAliasTheBytesAndCannotGrowIntoThem(t *testing.T) {
	want := &Publish{Topic: []byte("topic"), Payload: []byte("payload"),
		Properties: Properties(nil).AppendUser("k", "v")}
	b := encode(t, want, V5)
	got, _, err := Decode(append(b, "next"...), V5, Limits{})
	require.NoError(t, err)
	p := got.(*Publish)
	before := bytes.Clone(b)
	_, _, _ = append(p.Topic, 'x'), append(p.Payload, 'x'), p.Properties.AppendUint(TopicAlias, 1)
	require.Equal(t, before, b, "appending to a slice of a packet must not change its neighbours")
}

func TestPublishChecksTheFlagsOfAHeaderThatWasNotParsed(t *testing.T) {
	body := []byte("\x00\x01a\x00\x01")
	var p Publish
	requireCode(t, MalformedPacket, p.Decode(Header{Type: TypePublish, Flags: 0x6}, body, V311),
		"QoS 3")
	requireCode(t, MalformedPacket, p.Decode(Header{Type: TypePublish, Flags: 0x8}, body, V311),
		"DUP with QoS 0")
	require.PanicsWithValue(t, "BUG: no packet has type 16", func() { newPacket(TypeWill) })
}

func TestAuthWithoutAnythingIsTwoBytes(t *testing.T) {
	b := encode(t, &Auth{}, V5)
	require.Equal(t, []byte{0xF0, 0}, b)
	require.Equal(t, 2, (&Auth{}).Size(V5))
	_, _, err := Decode(b, V5, Limits{})
	requireCode(t, ProtocolError, err, "it has no Authentication Method")
}

func TestSizesAtTheEndsOfRemainingLength(t *testing.T) {
	for _, n := range []int{127, 128, 16383, 16384, 2097151, 2097152} {
		p := &Publish{Topic: []byte("a"), Payload: make([]byte, n-3)}
		b := encode(t, p, V311)
		require.Len(t, b, p.Size(V311))
		h, body := split(t, b, V311)
		require.Equal(t, n, h.Remaining)
		require.Len(t, body, n)
	}
}

func TestAnotherProtocolLevelIsKept(t *testing.T) {
	for _, level := range []Version{0, 1, 2, 6, 0x82, 0x85, 255} {
		b := encode(t, &Connect{Version: level, ClientID: "c"}, 0)
		var c Connect
		h, body := split(t, b, 0)
		requireCode(t, UnsupportedProtocolVersion, c.Decode(h, body, 0), "level %d", level)
		require.Equal(t, level, c.Version, "the broker answers in the form of this version")
	}
	require.Equal(t, "Version(6)", Version(6).String())
	require.Equal(t, "Type(99)", Type(99).String())
}

func TestABridgeHasTheHighestBitOfTheLevel(t *testing.T) {
	for _, v := range []Version{V31, V311, V5} {
		sent := &Connect{Version: v, ClientID: "c", CleanStart: true, Bridge: true}
		b := encode(t, sent, 0)
		var c Connect
		h, body := split(t, b, 0)
		require.NoError(t, c.Decode(h, body, 0))
		require.Equal(t, v, c.Version)
		require.Equal(t, v < V5, c.Bridge, "5.0 has No Local and Retain As Published of its own")
		c.Properties = nil
		sent.Bridge = c.Bridge
		require.Equal(t, *sent, c)
	}
}

func TestErrors(t *testing.T) {
	cause := Errorf(QuotaExceeded, "disk full")
	wrapped := Errorf(NotAuthorized, "no entry: %w", cause)
	require.Equal(t, "Not authorized: no entry: Quota exceeded: disk full", wrapped.Error(),
		"the cause is named once")
	require.ErrorIs(t, wrapped, cause)
	require.Equal(t, NotAuthorized, CodeOf(wrapped), "the first code counts")
	require.Equal(t, "Banned: try later: packets: the packet is not complete",
		(&Error{Code: Banned, Reason: "try later", Err: ErrShort}).Error(),
		"a cause that is not in the reason is added")
	require.Equal(t, "Server moved (b:1883): see there",
		(&Error{Code: ServerMoved, Reason: "see there", ServerReference: "b:1883"}).Error())
	require.Equal(t, "Banned", (&Error{Code: Banned}).Error())
	require.Equal(t, UnspecifiedError, CodeOf(ErrShort))
	require.Equal(t, Success, CodeOf(nil))
	require.Equal(t, UnspecifiedError, CodeOf(&Error{Reason: "its code is forgotten"}),
		"an error is no success")
	require.Equal(t, UnspecifiedError, CodeOf((*Error)(nil)),
		"nor is a nil one that is an error all the same")
}
