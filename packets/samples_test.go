package packets

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// versions are all protocol versions.
var versions = []Version{V31, V311, V5}

// types are all packet types.
var types = []Type{
	TypeConnect, TypeConnack, TypePublish, TypePuback, TypePubrec, TypePubrel, TypePubcomp,
	TypeSubscribe, TypeSuback,
	TypeUnsubscribe, TypeUnsuback, TypePingreq, TypePingresp, TypeDisconnect, TypeAuth,
}

// A sample is a valid packet.
type sample struct {
	name string
	v    Version
	p    Packet
}

// samples returns valid packets of v: of each type a bare one and one with all that it can have.
func samples(v Version) []sample {
	props := func(p Properties) Properties {
		if v < V5 {
			return nil
		}
		return p
	}
	user := Properties(nil).AppendUser("k", "v").AppendUser("", "").AppendUser("k", "w")
	user = slices.Clip(user) // so that each use appends to a copy
	reason := slices.Clip(user.AppendText(ReasonString, "because"))
	will := &Will{Topic: "gone", Payload: []byte("bye"), QoS: QoS2, Retain: true,
		Properties: props(user.AppendUint(WillDelayInterval, 9).AppendText(ContentType,
			"text/plain"))}
	s := []sample{
		{"a bare CONNECT", v, &Connect{Version: v, CleanStart: true}},
		{"a CONNECT with all there is", v,
			&Connect{Version: v, CleanStart: true, KeepAlive: 60, ClientID: "c1", Will: will,
				HasUsername: true, Username: "u", HasPassword: true, Password: []byte("secret"),
				Properties: props(user.AppendUint(SessionExpiryInterval,
					100).AppendUint(ReceiveMaximum, 20).
					AppendText(AuthenticationMethod, "m").AppendText(AuthenticationData,
					"\x00\xFF"))}},
		{"a bare CONNACK", v, &Connack{}},
		{"a CONNACK that refuses", v, &Connack{Code: NotAuthorized, Properties: props(reason)}},
		{"a bare PUBLISH", v, &Publish{Topic: []byte("a")}},
		{"a PUBLISH with all there is", v,
			&Publish{Dup: true, Retain: true, QoS: QoS2, PacketID: 65535,
				Topic: []byte("höhe/über/✓"), Payload: []byte("payload"),
				Properties: props(user.AppendUint(TopicAlias, 3).
					AppendUint(SubscriptionIdentifier, 1).AppendUint(SubscriptionIdentifier, 268435455).
					AppendUint(PayloadFormatIndicator, 1).AppendText(ResponseTopic, "r").
					AppendText(CorrelationData, "\x00"))}},
		{"a PUBLISH whose Remaining Length has three bytes", v,
			&Publish{QoS: QoS1, PacketID: 1, Topic: []byte("big"), Payload: make([]byte, 16384)}},
		{"a SUBSCRIBE with one filter", v, &Subscribe{PacketID: 1,
			Subscriptions: []Subscription{{Filter: "a"}}}},
		{"a SUBSCRIBE with three filters", v,
			&Subscribe{PacketID: 2, Properties: props(user.AppendUint(SubscriptionIdentifier, 200)),
				Subscriptions: []Subscription{{Filter: "a/+/b", QoS: QoS1}, {Filter: "/"},
					{Filter: "$share/g/#", QoS: QoS2, RetainAsPublished: v >= V5,
						RetainHandling: min(byte(v)/5*2, 2)}}}},
		{"a SUBACK", v, &Suback{PacketID: 2, Codes: []ReasonCode{GrantedQoS1, UnspecifiedError,
			GrantedQoS0}, Properties: props(reason)}},
		{"an UNSUBSCRIBE with one filter", v, &Unsubscribe{PacketID: 3, Filters: []string{"#"}}},
		{"an UNSUBSCRIBE with two filters", v, &Unsubscribe{PacketID: 3,
			Filters: []string{"a", "b/#"}, Properties: props(user)}},
		{"a PINGREQ", v, &Pingreq{}},
		{"a PINGRESP", v, &Pingresp{}},
		{"a bare DISCONNECT", v, &Disconnect{}},
	}
	for _, t := range []Type{TypePuback, TypePubrec, TypePubrel, TypePubcomp} {
		s = append(s, sample{"a bare " + t.String(), v, &Ack{Kind: t, PacketID: 258}})
	}
	if v < V5 {
		return append(s, sample{"an UNSUBACK", v, &Unsuback{PacketID: 3}})
	}
	for _, t := range []Type{TypePuback, TypePubrec, TypePubrel, TypePubcomp} {
		code := QuotaExceeded
		if !code.ValidIn(t) {
			code = PacketIdentifierNotFound
		}
		s = append(s, sample{"a failed " + t.String(), v, &Ack{Kind: t, PacketID: 258, Code: code}},
			sample{"a " + t.String() + " with properties", v,
				&Ack{Kind: t, PacketID: 258, Code: code, Properties: reason}})
	}
	method := reason.AppendText(AuthenticationMethod, "m")
	return append(s,
		sample{"a CONNACK with all there is", v,
			&Connack{SessionPresent: true, Properties: Properties(nil).
				AppendUint(SessionExpiryInterval, 1).AppendUint(ReceiveMaximum,
				1).AppendUint(MaximumQoS, 0).
				AppendUint(RetainAvailable, 0).AppendUint(MaximumPacketSize, 1).
				AppendText(AssignedClientIdentifier, "id").
				AppendUint(TopicAliasMaximum, 5).AppendUint(WildcardSubscriptionAvailable, 1).
				AppendUint(SubscriptionIdentifierAvailable,
					0).AppendUint(SharedSubscriptionAvailable, 1).
				AppendUint(ServerKeepAlive, 7).AppendText(ResponseInformation, "i").
				AppendText(ServerReference, "s")}},
		sample{"an UNSUBACK", v,
			&Unsuback{PacketID: 3, Codes: []ReasonCode{Success, NoSubscriptionExisted}}},
		sample{"an UNSUBACK with properties", v,
			&Unsuback{PacketID: 3, Codes: []ReasonCode{NotAuthorized}, Properties: reason}},
		sample{"a PUBLISH with a Topic Alias for a topic", v,
			&Publish{Properties: Properties(nil).AppendUint(TopicAlias, 1)}},
		sample{"a DISCONNECT with a code", v, &Disconnect{Code: DisconnectWithWill}},
		sample{"a DISCONNECT with properties", v,
			&Disconnect{Code: ServerMoved, Properties: reason.AppendText(ServerReference, "s")}},
		sample{"an AUTH", v, &Auth{Code: ContinueAuthentication, Properties: method}},
		sample{"an AUTH of success", v, &Auth{Properties: method}},
	)
}

// allSamples returns the samples of all versions.
func allSamples() (s []sample) {
	for _, v := range versions {
		s = append(s, samples(v)...)
	}
	return s
}

// seeded returns a source of random numbers and prints its seed.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, seed))
}

// randomText returns valid text.
func randomText(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(12) {
		b.WriteRune([]rune("aZ09/ $+#\"\\=,\x01\u007Fäß✓\uFEFF\U0001F426")[r.IntN(20)])
	}
	return b.String()
}

// randomTopic returns a Topic Name.
func randomTopic(r *rand.Rand) string {
	return "t" + strings.NewReplacer("+", "p", "#", "h").Replace(randomText(r))
}

// randomFilter returns a Topic Filter.
func randomFilter(r *rand.Rand) string {
	return randomTopic(r) + []string{"", "/+", "/#", "/+/b"}[r.IntN(4)]
}

// randomBytes returns binary data; nil if it is empty.
func randomBytes(r *rand.Rand) []byte {
	n := []int{0, 1, 7, 64, 65, 127, 128, 300}[r.IntN(8)]
	if n == 0 {
		return nil
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// randomProperties returns properties that in may have, in random order.
func randomProperties(r *rand.Rand, v Version, in Type) (p Properties) {
	if v < V5 {
		return nil
	}
	for _, i := range r.Perm(len(tables().Properties)) {
		prop := tables().Properties[i]
		times := r.IntN(2)
		if prop.MayRepeat[in.String()] {
			times = r.IntN(3)
		}
		if in == TypeAuth && prop.id() == AuthenticationMethod {
			times = 1
		}
		if in == TypeConnect && prop.id() == AuthenticationData {
			times = 0
		}
		if !prop.in(in.String()) {
			continue
		}
		for range times {
			p = prop.appendRandom(r, p)
		}
	}
	return p
}

// randomCode returns a Reason Code of packets of type t.
func randomCode(r *rand.Rand, v Version, t Type) ReasonCode {
	codes := tables().ReasonCodesByPacket[t.String()]
	for {
		c := ReasonCode(codes[r.IntN(len(codes))])
		if v >= V5 || t == TypeSuback && c <= UnspecifiedError || t == TypeConnack &&
			returnCodeOf(c) == c {
			return c
		}
	}
}

// returnCodeOf returns the code that c becomes on its way through a 3.1.1 CONNACK.
func returnCodeOf(c ReasonCode) ReasonCode {
	return map[byte]ReasonCode{1: UnsupportedProtocolVersion, 2: ClientIdentifierNotValid,
		3: ServerUnavailable,
		4: BadUserNameOrPassword, 5: NotAuthorized}[c.ReturnCode()]
}

// randomCodes returns one to four Reason Codes of packets of type t.
func randomCodes(r *rand.Rand, v Version, t Type) (codes []ReasonCode) {
	for range 1 + r.IntN(4) {
		codes = append(codes, randomCode(r, v, t))
	}
	return codes
}

// randomPacket returns a valid packet of v.
func randomPacket(r *rand.Rand, v Version) Packet {
	t := types[r.IntN(len(types))]
	is := func() bool { return r.IntN(2) == 0 }
	props := randomProperties(r, v, t)
	id := uint16(1 + r.IntN(65535))
	switch t {
	case TypeConnect:
		return randomConnect(r, v, props)
	case TypeConnack:
		c := &Connack{Code: randomCode(r, v, t), Properties: props}
		c.SessionPresent = c.Code == Success && v != V31 && is()
		return c
	case TypePublish:
		p := &Publish{QoS: QoS(r.IntN(3)), Retain: is(), Topic: []byte(randomTopic(r)),
			Payload: randomBytes(r), Properties: props}
		if p.QoS > 0 {
			p.PacketID, p.Dup = id, is()
		}
		return p
	case TypeSubscribe:
		s := &Subscribe{PacketID: id, Properties: props}
		for range 1 + r.IntN(4) {
			sub := Subscription{Filter: randomFilter(r), QoS: QoS(r.IntN(3))}
			if v >= V5 {
				sub.NoLocal, sub.RetainAsPublished, sub.RetainHandling = is(), is(), byte(r.IntN(3))
			}
			s.Subscriptions = append(s.Subscriptions, sub)
		}
		return s
	case TypeSuback:
		return &Suback{PacketID: id, Properties: props, Codes: randomCodes(r, v, t)}
	case TypeUnsubscribe:
		u := &Unsubscribe{PacketID: id, Properties: props}
		for range 1 + r.IntN(4) {
			u.Filters = append(u.Filters, randomFilter(r))
		}
		return u
	case TypeUnsuback:
		u := &Unsuback{PacketID: id, Properties: props}
		if v >= V5 {
			u.Codes = randomCodes(r, v, t)
		}
		return u
	case TypePingreq:
		return &Pingreq{}
	case TypePingresp:
		return &Pingresp{}
	}
	if v < V5 {
		if t >= TypeDisconnect {
			return &Disconnect{}
		}
		return &Ack{Kind: t, PacketID: id}
	}
	code := randomCode(r, v, t)
	switch t {
	case TypeDisconnect:
		return &Disconnect{Code: code, Properties: props}
	case TypeAuth:
		return &Auth{Code: code, Properties: props}
	default:
		return &Ack{Kind: t, PacketID: id, Code: code, Properties: props}
	}
}

func randomConnect(r *rand.Rand, v Version, props Properties) *Connect {
	is := func() bool { return r.IntN(2) == 0 }
	c := &Connect{Version: v, CleanStart: is(), KeepAlive: uint16(r.Uint32()),
		ClientID: randomText(r), Properties: props}
	if is() {
		c.Will = &Will{Topic: randomTopic(r), Payload: randomBytes(r), QoS: QoS(r.IntN(3)),
			Retain:     is(),
			Properties: randomProperties(r, v, TypeWill)}
	}
	if is() {
		c.HasUsername, c.Username = true, randomText(r)
	}
	if is() && (c.HasUsername || v >= V5) {
		c.HasPassword, c.Password = true, randomBytes(r)
	}
	return c
}

// encode returns the bytes of p and fails the test if there are none.
func encode(tb testing.TB, p Packet, v Version) []byte {
	tb.Helper()
	b, err := p.Append(nil, v)
	require.NoError(tb, err, "%s must encode", Trace(p))
	return b
}

// split returns the header and the body of a packet.
func split(tb testing.TB, b []byte, v Version) (h Header, body []byte) {
	tb.Helper()
	h, err := ParseHeader(b, v)
	require.NoError(tb, err, "% X must have a valid header", b[:min(len(b), 5)])
	require.Len(tb, b, h.Len+h.Remaining, "the Remaining Length must be that of the packet")
	return h, b[h.Len:]
}

// frame returns a packet with the given first byte and body.
func frame(first byte, body []byte) []byte {
	b := []byte{first}
	for n := len(body); ; n >>= 7 {
		if n < 0x80 {
			b = append(b, byte(n))
			break
		}
		b = append(b, byte(n)|0x80)
	}
	return append(b, body...)
}

// requireCode fails the test unless err is an *Error with the given code.
func requireCode(tb testing.TB, want ReasonCode, err error, why string, args ...any) {
	tb.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != want {
		tb.Fatalf("wanted %v (0x%02X), got %v: "+why,
			append([]any{want, byte(want), err}, args...)...)
	}
	require.NotEmpty(tb, e.Reason, "an error must say what is wrong")
}
