package packets

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPropertiesAreReadAsTheyWereAppended(t *testing.T) {
	p := Properties(nil).AppendUint(PayloadFormatIndicator, 1).AppendUint(TopicAlias, 65535).
		AppendUint(MessageExpiryInterval, math.MaxUint32).AppendUser("k", "v").
		AppendUint(SubscriptionIdentifier, 300).
		AppendText(ContentType, "text").AppendBytes(CorrelationData, []byte{0, 255}).AppendUser("k",
		"").
		AppendUint(SubscriptionIdentifier, 268435455)
	require.NoError(t, p.Check(TypePublish))
	for id, want := range map[Property]uint32{
		PayloadFormatIndicator: 1, TopicAlias: 65535, MessageExpiryInterval: math.MaxUint32,
		SubscriptionIdentifier: 300,
	} {
		got, ok := p.Uint(id)
		require.True(t, ok, "%v", id)
		require.Equal(t, want, got, "%v", id)
		require.True(t, p.Has(id))
	}
	s, ok := p.Text(ContentType)
	require.True(t, ok)
	require.Equal(t, "text", s)
	b, ok := p.Bytes(CorrelationData)
	require.True(t, ok)
	require.Equal(t, []byte{0, 255}, b)
	require.Equal(t, []uint32{300, 268435455}, slices.Collect(p.SubscriptionIDs()))
	var user []string
	for k, v := range p.User() {
		user = append(user, k+"="+v)
	}
	require.Equal(t, []string{"k=v", "k="}, user)

	_, ok = p.Uint(ReceiveMaximum)
	require.False(t, ok, "what is not there is not found")
	_, ok = p.Text(ResponseTopic)
	require.False(t, ok)
	require.False(t, p.Has(ResponseTopic))
	_, ok = p.Uint(ContentType)
	require.False(t, ok, "a string is no integer")
	_, ok = p.Bytes(TopicAlias)
	require.False(t, ok, "an integer is no string")
	_, ok = p.Bytes(UserProperty)
	require.False(t, ok, "a pair is no string")
}

func TestIterationMayStopEarly(t *testing.T) {
	p := Properties(nil).AppendUser("a", "").AppendUser("b", "").
		AppendUint(SubscriptionIdentifier, 1).AppendUint(SubscriptionIdentifier, 2)
	for k := range p.User() {
		require.Equal(t, "a", k)
		break
	}
	for n := range p.SubscriptionIDs() {
		require.EqualValues(t, 1, n)
		break
	}
	for id := range p.All() {
		require.Equal(t, UserProperty, id)
		break
	}
}

func TestOffsetLetsAnIntegerBeChangedInPlace(t *testing.T) {
	p := Properties(nil).AppendUser("k", "v").AppendUint(MessageExpiryInterval, 60)
	i := p.Offset(MessageExpiryInterval)
	require.Equal(t, []byte{0, 0, 0, 60}, []byte(p[i:]))
	p[i+3] = 59
	n, _ := p.Uint(MessageExpiryInterval)
	require.EqualValues(t, 59, n)
	require.Equal(t, -1, p.Offset(TopicAlias))
	require.Equal(t, 1, p.Offset(UserProperty))
	require.Equal(t, -1, Properties(nil).Offset(UserProperty))
}

func TestWithoutKeepsTheOthersInOrder(t *testing.T) {
	p := Properties(nil).AppendUser("k", "v").AppendUint(TopicAlias, 1).
		AppendUint(SubscriptionIdentifier, 2).AppendText(ContentType, "t")
	want := Properties(nil).AppendUser("k", "v").AppendText(ContentType, "t")
	require.Equal(t, want, p.Without(nil, TopicAlias, SubscriptionIdentifier))
	require.Equal(t, p, p.Without(nil))
	require.Empty(t, p.Without(nil, UserProperty, TopicAlias, SubscriptionIdentifier, ContentType))
	require.Equal(t, append(slices.Clone(want), want...),
		p.Without(slices.Clone(want), TopicAlias, SubscriptionIdentifier),
		"Without must append")
	same := slices.Clone(p)
	require.Equal(t, want, same.Without(same[:0], TopicAlias, SubscriptionIdentifier), "in place")
}

func TestPropertiesThatTheWireCannotHold(t *testing.T) {
	long := strings.Repeat("x", 65536)
	start := Properties(nil).AppendUser("k", "v")
	for name, p := range map[string]Properties{
		"a long string":         start.AppendText(ReasonString, long),
		"long binary data":      start.AppendBytes(CorrelationData, []byte(long)),
		"a long name":           start.AppendUser(long, ""),
		"a long value":          start.AppendUser("", long),
		"a byte over 255":       start.AppendUint(MaximumQoS, 256),
		"two bytes over 65,535": start.AppendUint(TopicAlias, 65536),
		"a variable byte integer over 268,435,455": start.AppendUint(SubscriptionIdentifier,
			268435456),
	} {
		t.Run(name, func(t *testing.T) {
			for _, p := range []Properties{p, p.AppendUser("more", ""), p.Without(nil),
				p.Without(nil).AppendUint(TopicAlias, 1)} {
				_, err := (&Publish{Topic: []byte("a"), Properties: p}).Append(nil, V5)
				require.Error(t, err, "it must not be sent as something else")
				requireCode(t, MalformedPacket, p.Check(TypePublish), "nor pass the check")
				require.Empty(t, maps.Collect(p.All()))
			}
		})
	}
	require.Len(t, start, 7, "what was there must stay")
}

// Each getter and each Append method is called with each of the 256 identifiers. One that is not
// for the type of the property finds nothing, or makes Properties that nobody can send by mistake.
func TestNoPropertyOfAnotherTypePanics(t *testing.T) {
	start := Properties(nil).AppendUser("k", "v")
	for n := range 256 {
		id := Property(n)
		k := propertyTable[id].kind
		integer, text := k != 0 && k <= kindVarint, k == kindText || k == kindBinary
		for name, tt := range map[string]struct {
			p    Properties
			fits bool
		}{
			"AppendUint":  {start.AppendUint(id, 1), integer},
			"AppendText":  {start.AppendText(id, "x"), text},
			"AppendBytes": {start.AppendBytes(id, []byte("x")), text},
		} {
			_, ok := tt.p.Uint(id)
			require.Equal(t, tt.fits && integer, ok, "%v after %s", id, name)
			_, ok = tt.p.Text(id)
			require.Equal(t, tt.fits && text, ok, "%v after %s", id, name)
			_, ok = tt.p.Bytes(id)
			require.Equal(t, tt.fits && text, ok, "%v after %s", id, name)
			if tt.fits {
				require.True(t, tt.p.Has(id))
				continue
			}
			want := "PUBLISH: " + id.String() + " was given a value that it cannot hold"
			for _, p := range []Properties{tt.p, tt.p.Without(nil, id), tt.p.AppendUser("k", "v")} {
				require.EqualError(t, p.Check(TypePublish), "Malformed Packet: "+want)
				_, err := (&Publish{Topic: []byte("a"), Properties: p}).Append(nil, V5)
				require.EqualError(t, err, "packets: "+want)
			}
		}
	}
	require.Len(t, start, 7, "what was there must stay")
}

func TestReadingStopsWhereBytesAreNotProperties(t *testing.T) {
	good := Properties(nil).AppendUint(TopicAlias, 1)
	for name, tail := range map[string]string{
		"an identifier that is not defined": "\x04\x00",
		"an integer cut short":              "\x02\x00",
		"a string cut short":                "\x03\x00\x05abc",
		"a string without a length":         "\x03\x00",
		"a pair without a value":            "\x26\x00\x01k",
		"a pair with half a value":          "\x26\x00\x01k\x00\x02v",
		"a variable byte integer too long":  "\x0B\xFF\xFF\xFF\xFF\x01",
		"a variable byte integer cut short": "\x0B\x80",
		"an identifier alone":               "\x01",
	} {
		t.Run(name, func(t *testing.T) {
			p := append(slices.Clone(good), tail...)
			n, ok := p.Uint(TopicAlias)
			require.True(t, ok, "what comes before is found")
			require.EqualValues(t, 1, n)
			require.False(t, p.Has(Property(tail[0])))
			require.Equal(t, -1, p.Offset(Property(tail[0])))
			require.Len(t, maps.Collect(p.All()), 1)
			require.Equal(t, good, p.Without(nil))
			requireCode(t, MalformedPacket, p.Check(TypePublish), name)
			require.Equal(t, "PUBLISH qos=0 topic=a payload= topic-alias=1 malformed-properties",
				Trace(&Publish{Topic: []byte("a"), Properties: p}))
		})
	}
}

func TestMessageGivesItsProperties(t *testing.T) {
	m := &Message{Topic: "a",
		Properties: Properties(nil).AppendText(ContentType, "t").AppendText(ResponseTopic, "r").
			AppendBytes(CorrelationData, []byte("c")).AppendUint(MessageExpiryInterval,
			math.MaxUint32)}
	require.Equal(t, "t", m.ContentType())
	require.Equal(t, "r", m.ResponseTopic())
	require.Equal(t, []byte("c"), m.CorrelationData())
	d, ok := m.Expiry()
	require.True(t, ok)
	require.EqualValues(t, uint32(math.MaxUint32), d.Seconds(),
		"the longest interval must not overflow")

	bare := &Message{Topic: "a"}
	require.Empty(t, bare.ContentType())
	require.Empty(t, bare.ResponseTopic())
	require.Nil(t, bare.CorrelationData())
	_, ok = bare.Expiry()
	require.False(t, ok, "it never expires")
}

func TestMessageTakesItsProperties(t *testing.T) {
	shared := make(Properties, 0, 100).AppendUser("k", "v").AppendText(ContentType, "old")
	m := &Message{Topic: "a", Properties: shared}
	m.SetContentType("t")
	m.SetResponseTopic("r")
	m.SetCorrelationData([]byte("c"))
	m.SetExpiry(1500 * time.Millisecond)
	m.AddUser("k", "w")
	require.Equal(t, Properties(nil).AppendUser("k", "v").AppendText(ContentType, "t").
		AppendText(ResponseTopic, "r").AppendBytes(CorrelationData, []byte("c")).
		AppendUint(MessageExpiryInterval, 2).AppendUser("k", "w"), m.Properties)
	require.NoError(t, m.Properties.Check(TypePublish))
	require.Equal(t, Properties(nil).AppendUser("k", "v").AppendText(ContentType, "old"), shared,
		"what other messages may share must stay")

	other := &Message{Topic: "a", Properties: shared}
	other.AddUser("a", "b")
	(&Message{Topic: "a", Properties: shared}).AddUser("c", "d")
	require.Equal(t, Properties(nil).AppendUser("k", "v").AppendText(ContentType, "old").
		AppendUser("a", "b"), other.Properties, "two messages must not write to the same memory")

	m.SetContentType("")
	m.SetResponseTopic("")
	m.SetCorrelationData(nil)
	m.SetExpiry(0)
	require.Equal(t, Properties(nil).AppendUser("k", "v").AppendUser("k", "w"), m.Properties,
		"what is empty is removed")
}

func TestTheExpiryOfAMessage(t *testing.T) {
	for name, tt := range map[string]struct {
		set, want time.Duration
		ok        bool
	}{
		"never":                  {0, 0, false},
		"a negative one":         {-time.Second, 0, false},
		"the shortest one":       {1, time.Second, true},
		"whole seconds":          {time.Minute, time.Minute, true},
		"one that is rounded up": {time.Minute + 1, time.Minute + time.Second, true},
		"the longest one": {math.MaxUint32 * time.Second,
			math.MaxUint32 * time.Second, true},
		"one that no property can hold": {math.MaxInt64, math.MaxUint32 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			var m Message
			m.SetExpiry(tt.set)
			d, ok := m.Expiry()
			require.Equal(t, tt.ok, ok)
			require.Equal(t, tt.want, d)
			require.NoError(t, m.Properties.Check(TypePublish))
		})
	}
}

func TestAMessageWithAValueThatIsTooLong(t *testing.T) {
	long := strings.Repeat("x", 65_536)
	for name, set := range map[string]func(*Message){
		"content-type":     func(m *Message) { m.SetContentType(long) },
		"response-topic":   func(m *Message) { m.SetResponseTopic(long) },
		"correlation-data": func(m *Message) { m.SetCorrelationData([]byte(long)) },
		"user-property":    func(m *Message) { m.AddUser("k", long) },
	} {
		t.Run(name, func(t *testing.T) {
			var m Message
			set(&m)
			m.SetExpiry(time.Second)
			m.AddUser("k", "v")
			require.ErrorContains(t, m.Properties.Check(TypePublish), name+" was given a value")
			require.Empty(t, m.ContentType())
			_, ok := m.Expiry()
			require.False(t, ok)
		})
	}
}

func TestACloneSharesNothingThatChanges(t *testing.T) {
	m := &Message{Topic: "a", Payload: []byte("x"), QoS: QoS1, Retain: true,
		Properties: Properties(nil).AppendText(ContentType, "y")}
	c := m.Clone()
	require.Equal(t, m, c)
	clear(m.Payload)
	clear(m.Properties)
	m.Topic = "b"
	require.Equal(t, "a", c.Topic)
	require.Equal(t, "x", string(c.Payload))
	require.Equal(t, "y", c.ContentType())
	require.Equal(t, new(Message), new(Message).Clone())
	require.Nil(t, (*Message)(nil).Clone())
}
