package packets

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// A protocolTable is what testdata/tables.json says about the packets. The tests of this file are
// generated from it and know nothing of the tables in the code.
type protocolTable struct {
	PacketTypes []struct {
		Value           byte                       `json:"value"`
		Name            string                     `json:"name"`
		FirstByte       map[string][]string        `json:"first_byte"`
		RemainingLength map[string]json.RawMessage `json:"remaining_length"`
		Properties      bool                       `json:"properties_5_0"`
	} `json:"packet_types"`
	Properties           []propertyRow    `json:"properties"`
	PropertiesByPacket   map[string][]int `json:"properties_by_packet"`
	ReasonCodes          []reasonRow      `json:"reason_codes"`
	ReasonCodesByPacket  map[string][]int `json:"reason_codes_by_packet"`
	SubackReturnCodes311 []int            `json:"suback_return_codes_3_1_1"`
	ReturnCodes          map[string]any   `json:"reason_5_0_to_return_3_1_1_suggestion"`
	RawLimits            json.RawMessage  `json:"limits"`
	Topics               struct {
		MatchExamples  [][3]any `json:"match_examples"`
		InvalidFilters []string `json:"invalid_filters"`
		ValidFilters   []string `json:"valid_filters"`
	} `json:"topics"`
}

type propertyRow struct {
	ID        byte            `json:"id"`
	Name      string          `json:"name"`
	Type      string          `json:"type"`
	Packets   []string        `json:"packets"`
	MayRepeat map[string]bool `json:"may_repeat"`
	Valid     struct {
		Values []uint32 `json:"values"`
		Min    *uint32  `json:"min"`
		Max    *uint32  `json:"max"`
		Bytes  []int    `json:"bytes"`
	} `json:"valid"`
	Errors struct {
		OutOfRange *string `json:"out_of_range"`
	} `json:"errors"`
}

type reasonRow struct {
	Code    byte     `json:"code"`
	Name    string   `json:"name"`
	Failure bool     `json:"failure"`
	Packets []string `json:"packets"`
}

// tables reads the table once.
var tables = sync.OnceValue(func() *protocolTable {
	b, err := os.ReadFile("testdata/tables.json")
	if err != nil {
		panic(err)
	}
	t := new(protocolTable)
	if err := json.Unmarshal(b, t); err != nil {
		panic(err)
	}
	return t
})

func (r propertyRow) id() Property { return Property(r.ID) }

func (r propertyRow) in(packet string) bool { return slices.Contains(r.Packets, packet) }

// integer returns the value of the property as it stands on the wire, without its identifier.
func (r propertyRow) integer(n uint32) []byte {
	switch r.Type {
	case "byte":
		return []byte{byte(n)}
	case "two_byte_integer":
		return binary.BigEndian.AppendUint16(nil, uint16(n))
	case "four_byte_integer":
		return binary.BigEndian.AppendUint32(nil, n)
	case "variable_byte_integer":
		return Properties(nil).AppendUint(r.id(), n)[1:]
	default:
		panic(r.Type)
	}
}

// values returns valid values on the wire, the ends of each range among them, and values that are
// out of range.
func (r propertyRow) values() (valid, invalid [][]byte) {
	str := func(s string) []byte {
		return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
	}
	switch r.Type {
	case "utf8_string":
		return [][]byte{str("v"), str("ä\uFEFF✓"), str(strings.Repeat("x", 65535))}, nil
	case "binary":
		return [][]byte{str("\x00\xFF"), str(""), str(strings.Repeat("\x00", 65535))}, nil
	case "utf8_string_pair":
		return [][]byte{append(str("k"), str("v")...), append(str(""), str("")...),
			append(str(strings.Repeat("k", 65535)), str(strings.Repeat("v", 65535))...)}, nil
	}
	if r.Valid.Values != nil {
		for _, n := range r.Valid.Values {
			valid = append(valid, r.integer(n))
		}
		return valid, [][]byte{r.integer(slices.Max(r.Valid.Values) + 1), r.integer(255)}
	}
	if *r.Valid.Min > 0 {
		invalid = [][]byte{r.integer(*r.Valid.Min - 1)}
	}
	return [][]byte{r.integer(*r.Valid.Min), r.integer(*r.Valid.Max)}, invalid
}

// appendRandom appends the property with a random valid value.
func (r propertyRow) appendRandom(rnd *rand.Rand, p Properties) Properties {
	switch r.Type {
	case "utf8_string":
		return p.AppendText(r.id(), randomTopic(rnd))
	case "binary":
		return p.AppendBytes(r.id(), randomBytes(rnd))
	case "utf8_string_pair":
		return p.AppendUser(randomText(rnd), randomText(rnd))
	}
	if r.Valid.Values != nil {
		return p.AppendUint(r.id(), r.Valid.Values[rnd.IntN(len(r.Valid.Values))])
	}
	return p.AppendUint(r.id(),
		*r.Valid.Min+uint32(rnd.Uint64N(uint64(*r.Valid.Max-*r.Valid.Min)+1)))
}

// typeNamed returns the type of the given name.
func typeNamed(name string) Type {
	for t := TypeConnect; t <= TypeWill; t++ {
		if t.String() == name {
			return t
		}
	}
	panic(name)
}

// carrier returns a valid 5.0 packet of the named type with the given properties.
func carrier(name string, p Properties) Packet {
	switch name {
	case "CONNECT":
		return &Connect{Version: V5, Properties: p}
	case "WILL":
		return &Connect{Version: V5, Will: &Will{Topic: "w", Properties: p}}
	case "CONNACK":
		return &Connack{Properties: p}
	case "PUBLISH":
		return &Publish{Topic: []byte("a"), Properties: p}
	case "PUBACK", "PUBREC", "PUBREL", "PUBCOMP":
		return &Ack{Kind: typeNamed(name), PacketID: 1, Properties: p}
	case "SUBSCRIBE":
		return &Subscribe{PacketID: 1, Subscriptions: []Subscription{{Filter: "a"}}, Properties: p}
	case "SUBACK":
		return &Suback{PacketID: 1, Codes: []ReasonCode{0}, Properties: p}
	case "UNSUBSCRIBE":
		return &Unsubscribe{PacketID: 1, Filters: []string{"a"}, Properties: p}
	case "UNSUBACK":
		return &Unsuback{PacketID: 1, Codes: []ReasonCode{0}, Properties: p}
	case "DISCONNECT":
		return &Disconnect{Properties: p}
	case "AUTH":
		if !p.Has(AuthenticationMethod) {
			p = append(Properties(nil).AppendText(AuthenticationMethod, "m"), p...)
		}
		return &Auth{Properties: p}
	}
	panic(name)
}

// withProperties encodes and decodes a packet of the named type with the given properties.
func withProperties(t *testing.T, name string, p Properties) error {
	t.Helper()
	if name == "CONNECT" && p.Has(AuthenticationData) && !p.Has(AuthenticationMethod) {
		p = append(slices.Clone(p), Properties(nil).AppendText(AuthenticationMethod, "m")...)
	}
	want := carrier(name, p)
	got, _, err := Decode(encode(t, want, V5), V5, Limits{})
	if err == nil {
		require.Equal(t, want, got, "the packet must come back as it was")
	}
	return err
}

// The packets that have properties, by their names in the table.
func propertyPackets() (names []string) {
	for name := range tables().PropertiesByPacket {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// [MQTT5-NOID-2.2.2.2-1] and the lists of properties of each packet.
func TestEveryPropertyInEveryPacket(t *testing.T) {
	for _, name := range propertyPackets() {
		t.Run(name, func(t *testing.T) {
			legal := 0
			for id := range 256 {
				i := slices.IndexFunc(tables().Properties,
					func(r propertyRow) bool { return int(r.ID) == id })
				if i < 0 {
					p := Properties{byte(id), 0, 0, 0, 0, 0}
					requireCode(t, MalformedPacket, p.Check(typeNamed(name)),
						"property %d is not defined", id)
					if id > 0 { // 0 does not even encode
						requireCode(t, MalformedPacket, withProperties(t, name, p),
							"property %d is not defined", id)
					}
					continue
				}
				row := tables().Properties[i]
				if row.in(name) {
					legal++
					require.Contains(t, tables().PropertiesByPacket[name], id)
					testLegalProperty(t, row, name)
					continue
				}
				valid, _ := row.values()
				err := withProperties(t, name, append(Properties{row.ID}, valid[0]...))
				requireCode(t, MalformedPacket, err, "%s must be refused", row.Name)
			}
			require.Len(t, tables().PropertiesByPacket[name], legal)
		})
	}
}

// testLegalProperty tests the values of a property in a packet that may have it.
func testLegalProperty(t *testing.T, row propertyRow, name string) {
	t.Helper()
	valid, invalid := row.values()
	for _, value := range valid {
		err := withProperties(t, name, append(Properties{row.ID}, value...))
		require.NoError(t, err, "%s = % X must be accepted", row.Name, value[:min(len(value), 20)])
	}
	outOfRange := ProtocolError
	if s := row.Errors.OutOfRange; s != nil && len(*s) == 4 {
		n, err := strconv.ParseUint(*s, 0, 8)
		require.NoError(t, err)
		outOfRange = ReasonCode(n)
	}
	for _, value := range invalid {
		err := withProperties(t, name, append(Properties{row.ID}, value...))
		requireCode(t, outOfRange, err, "%s = % X is out of range", row.Name, value)
	}
	once := append(Properties{row.ID}, valid[0]...)
	if name == "AUTH" && row.id() == AuthenticationMethod { // twice already means twice
		once = Properties(nil).AppendText(AuthenticationMethod, "m")
	}
	err := withProperties(t, name, slices.Concat(once, Properties(nil).AppendUser("k", "v"), once))
	if row.MayRepeat[name] {
		require.NoError(t, err, "%s may occur twice", row.Name)
	} else {
		requireCode(t, ProtocolError, err, "%s must not occur twice", row.Name)
	}
	for _, value := range valid {
		for n := range min(len(value), 8) {
			p := append(Properties{row.ID}, value[:n]...)
			requireCode(t, MalformedPacket, p.Check(typeNamed(name)), "%s is cut after %d bytes",
				row.Name, n)
		}
	}
}

// badText is no UTF-8 string in the sense of 1.5.4.
var badText = map[string]string{
	"U+0000":                      "a\x00b",
	"a lone continuation byte":    "\x80",
	"a lone start byte":           "a\xC3",
	"an overlong slash":           "\xC0\xAF",
	"an overlong U+0000":          "\xC0\x80",
	"a surrogate":                 "\xED\xA0\x80",
	"the last surrogate":          "\xED\xBF\xBF",
	"a code point above U+10FFFF": "\xF4\x90\x80\x80",
	"a start byte of five":        "\xF8\x88\x80\x80\x80",
	"0xFF":                        "abcdefgh\xFF",
	"U+0000 behind eight letters": "abcdefgh\x00",
}

// [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-1.5.7-1]
func TestNoStringMayBeOtherThanUTF8(t *testing.T) {
	for why, bad := range badText {
		t.Run(why, func(t *testing.T) {
			for _, row := range tables().Properties {
				var variants []Properties
				switch row.Type {
				case "utf8_string":
					variants = []Properties{Properties(nil).AppendText(row.id(), bad)}
				case "utf8_string_pair":
					variants = []Properties{Properties(nil).AppendUser(bad, "v"),
						Properties(nil).AppendUser("k", bad)}
				}
				for _, p := range variants {
					for _, name := range row.Packets {
						requireCode(t, MalformedPacket, withProperties(t, name, p), "%s in %s",
							row.Name, name)
					}
				}
			}
			for _, v := range versions {
				for field, p := range map[string]Packet{
					"Topic Name": &Publish{Topic: []byte(bad)},
					"filter": &Subscribe{PacketID: 1,
						Subscriptions: []Subscription{{Filter: bad}}},
					"filter to be removed": &Unsubscribe{PacketID: 1, Filters: []string{bad}},
					"Client Identifier":    &Connect{Version: v, ClientID: bad},
					"User Name":            &Connect{Version: v, HasUsername: true, Username: bad},
					"Will Topic":           &Connect{Version: v, Will: &Will{Topic: bad}},
				} {
					_, _, err := Decode(encode(t, p, v), v, Limits{})
					requireCode(t, MalformedPacket, err, "%s in %v", field, v)
				}
			}
			require.False(t, ValidUTF8(bad))
			require.False(t, ValidUTF8([]byte(bad)))
			require.False(t, ValidTopicName(bad))
			require.False(t, ValidTopicFilter(bad))
		})
	}
}

// [MQTT5-NOID-2.4-1] and the lists of Reason Codes of each packet.
func TestEveryReasonCodeInEveryPacket(t *testing.T) {
	for name, list := range tables().ReasonCodesByPacket {
		t.Run(name, func(t *testing.T) {
			packet := typeNamed(name)
			for code := range 256 {
				p := carrier(name, nil)
				switch p := p.(type) {
				case *Connack:
					p.Code = ReasonCode(code)
				case *Ack:
					p.Code = ReasonCode(code)
				case *Suback:
					p.Codes = []ReasonCode{0, ReasonCode(code)}
				case *Unsuback:
					p.Codes = []ReasonCode{0, ReasonCode(code)}
				case *Disconnect:
					p.Code = ReasonCode(code)
				case *Auth:
					p.Code = ReasonCode(code)
				}
				require.Equal(t, slices.Contains(list, code), ReasonCode(code).ValidIn(packet),
					"0x%02X", code)
				got, _, err := Decode(encode(t, p, V5), V5, Limits{})
				if slices.Contains(list, code) {
					require.NoError(t, err, "0x%02X must be accepted", code)
					require.Equal(t, p, got)
				} else {
					requireCode(t, ProtocolError, err, "0x%02X must be refused", code)
				}
			}
		})
	}
	for _, packet := range types {
		if _, ok := tables().ReasonCodesByPacket[packet.String()]; !ok {
			require.False(t, Success.ValidIn(packet), "%v has no Reason Code", packet)
		}
	}
}

func TestReasonCodesHaveTheNamesOfTheStandard(t *testing.T) {
	for _, row := range tables().ReasonCodes {
		require.Equal(t, row.Name, ReasonCode(row.Code).String())
		require.Equal(t, row.Failure, ReasonCode(row.Code).Failed())
	}
	require.Equal(t, "ReasonCode(0x03)", ReasonCode(3).String())
	for _, row := range tables().Properties {
		require.Equal(t, strings.ToLower(strings.ReplaceAll(row.Name, " ", "-")), row.id().String())
	}
	require.Equal(t, "property-4", Property(4).String())
}

// [v3.1.1 MQTT-3.2.2-6] [v3.1.1 MQTT-3.9.3-2]
func TestReturnCodesBefore50(t *testing.T) {
	for code := range 256 {
		want, ok := tables().ReturnCodes[fmt.Sprintf("0x%02X", code)].(float64)
		require.Equal(t, ok, ReasonCode(code).ReturnCode() != 0, "0x%02X", code)
		require.Equal(t, byte(want), ReasonCode(code).ReturnCode(), "0x%02X", code)
		b, err := (&Connack{Code: ReasonCode(code)}).Append([]byte("before"), V311)
		if ReasonCode(code).Failed() && !ok {
			require.Error(t, err, "0x%02X must not be sent as accepted", code)
			require.Equal(t, "before", string(b))
		} else {
			require.Equal(t, "before\x20\x02\x00"+string(rune(want)), string(b))
		}

		_, _, err = Decode([]byte{0x20, 2, 0, byte(code)}, V311, Limits{})
		if code <= 5 {
			require.NoError(t, err, "return code %d", code)
		} else {
			requireCode(t, MalformedPacket, err, "return code %d is reserved", code)
		}
		_, _, err = Decode([]byte{0x90, 3, 0, 1, byte(code)}, V311, Limits{})
		require.Equal(t, slices.Contains(tables().SubackReturnCodes311, code), err == nil,
			"SUBACK 0x%02X", code)
		b = encode(t, &Suback{PacketID: 1, Codes: []ReasonCode{ReasonCode(code)}}, V311)
		if code > 0x80 {
			require.EqualValues(t, 0x80, b[4], "a failure must be sent as 0x80")
		}
	}
}

// [MQTT-2.1.3-1] [MQTT-3.3.1-2] [MQTT-3.3.1-4] [v3.1.1 MQTT-2.2.2-2]
func TestEveryFirstByte(t *testing.T) {
	for first := range 256 {
		row := tables().PacketTypes[first>>4]
		hex := fmt.Sprintf("0x%02X", first)
		for _, v := range append([]Version{0}, versions...) {
			ok := slices.Contains(row.FirstByte["3.1.1"], hex)
			switch {
			case v == V5:
				ok = slices.Contains(row.FirstByte["5.0"], hex)
			case v == V31 && (first == 0x6A || first == 0x8A || first == 0xAA):
				ok = true // 3.1 has DUP in PUBREL, SUBSCRIBE and UNSUBSCRIBE
			}
			h, err := ParseHeader([]byte{byte(first), 5}, v)
			if ok {
				require.NoError(t, err, "%s in %v", hex, v)
				require.Equal(t, Header{Type(first >> 4), byte(first & 15), 5, 2}, h)
				continue
			}
			requireCode(t, MalformedPacket, err, "%s in %v", hex, v)
			_, err = ParseHeader([]byte{byte(first)}, v)
			requireCode(t, MalformedPacket, err, "%s alone is refused before its length has come",
				hex)
		}
	}
	for _, row := range tables().PacketTypes[1:] {
		require.Equal(t, row.Name, Type(row.Value).String())
	}
}

// [MQTT5-NOID-2.1.4-1] [v3.1.1 MQTT311-NOID-3.2-1]
func TestRemainingLengthOfEachPacket(t *testing.T) {
	for _, row := range tables().PacketTypes[1:] {
		for _, v := range []Version{V311, V5} {
			var want struct{ Exact, Min *int }
			if raw := row.RemainingLength[v.String()]; raw != nil {
				require.NoError(t, json.Unmarshal(raw, &want))
			}
			for n := range 300 {
				if want.Exact != nil && n == *want.Exact || want.Exact == nil &&
					(want.Min == nil || n >= *want.Min) {
					continue
				}
				for _, fill := range []byte{0, 1} {
					h := Header{Type: Type(row.Value), Flags: 2, Remaining: n, Len: 2}
					body := slices.Repeat([]byte{fill}, n)
					var e *Error
					require.ErrorAs(t, empty(h.Type).Decode(h, body, v), &e,
						"%s of %v with length %d", row.Name, v, n)
				}
			}
		}
	}
}

// empty returns an empty packet.
func empty(t Type) Packet {
	switch t {
	case TypeConnect:
		return new(Connect)
	case TypeAuth:
		return new(Auth)
	case TypePingreq:
		return new(Pingreq)
	case TypePingresp:
		return new(Pingresp)
	default:
		return carrier(t.String(), nil)
	}
}

// [MQTT5-NOID-1.5.5-1] [MQTT-1.5.5-1] [v3.1.1 MQTT311-NOID-2.2.3-1]
func TestVariableByteIntegers(t *testing.T) {
	var limits struct {
		Varint struct {
			Ranges [][2]int `json:"ranges"`
		} `json:"variable_byte_integer"`
		PacketMax int `json:"packet_max_bytes"`
	}
	require.NoError(t, json.Unmarshal(tables().RawLimits, &limits))
	require.Len(t, limits.Varint.Ranges, 4)
	for i, ends := range limits.Varint.Ranges {
		for _, n := range ends {
			b := Properties(nil).AppendUint(SubscriptionIdentifier, uint32(n))
			require.Len(t, b, 1+i+1, "%d has %d bytes", n, i+1)
			h, err := ParseHeader(append([]byte{0x30}, b[1:]...), V5)
			require.NoError(t, err)
			require.Equal(t, Header{TypePublish, 0, n, 2 + i}, h)
			for cut := range len(b) {
				_, err := ParseHeader(append([]byte{0x30}, b[1:]...)[:cut], V5)
				require.ErrorIs(t, err, ErrShort)
			}
			if i == 3 {
				continue
			}
			padded := append([]byte{0x30}, b[1:]...)
			padded[len(padded)-1] |= 0x80
			padded = append(padded, 0)
			for _, v := range []Version{0, V5} {
				_, err = ParseHeader(padded, v)
				requireCode(t, MalformedPacket, err, "% X is not the shortest form", padded)
			}
			for _, v := range []Version{V31, V311} {
				h, err = ParseHeader(padded, v)
				require.NoError(t, err, "%v does not demand the shortest form", v)
				require.Equal(t, Header{TypePublish, 0, n, 3 + i}, h)
			}
			requireCode(t, MalformedPacket, Properties(append([]byte{byte(SubscriptionIdentifier)},
				padded[1:]...)).Check(TypePublish),
				"% X as a Subscription Identifier", padded[1:])
		}
	}
	for _, v := range versions {
		_, err := ParseHeader([]byte{0x30, 0xFF, 0xFF, 0xFF, 0xFF}, v)
		requireCode(t, MalformedPacket, err, "a Remaining Length of more than four bytes")
		_, err = ParseHeader([]byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}, v)
		requireCode(t, MalformedPacket, err, "a Remaining Length of five bytes")
	}
	require.Equal(t, limits.PacketMax, 5+limits.Varint.Ranges[3][1])
	_, _, err := Decode([]byte{0x30, 6, 0, 1, 'a', 0x80, 0, 'p'}, V5, Limits{})
	requireCode(t, MalformedPacket, err, "a Property Length not in its shortest form")
}

// [MQTT-3.1.2-3] [MQTT-3.1.2-11] [MQTT-3.1.2-12] [MQTT-3.1.2-13] [v3.1.1 MQTT-3.1.2-22]
func TestEveryByteOfConnectFlags(t *testing.T) {
	for flags := range 256 {
		for _, v := range versions {
			name := "\x00\x04MQTT"
			if v == V31 {
				name = "\x00\x06MQIsdp"
			}
			body := append([]byte(name), byte(v), byte(flags), 0, 10)
			will, q := flags&4 != 0, flags>>3&3
			if v == V5 {
				body = append(body, 0)
			}
			body = append(body, 0, 1, 'c')
			if will && v == V5 {
				body = append(body, 0)
			}
			if will {
				body = append(body, 0, 1, 'w', 0, 1, 'p')
			}
			body = append(body, strings.Repeat("\x00\x01x", flags>>7+flags>>6&1)...)
			got, _, err := Decode(frame(0x10, body), v, Limits{})
			if v != V31 && flags&1 != 0 || !will && flags&0x38 != 0 || q == 3 || v != V5 &&
				flags>>6 == 1 {
				requireCode(t, MalformedPacket, err, "flags %08b in %v", flags, v)
				continue
			}
			require.NoError(t, err, "flags %08b in %v", flags, v)
			c := got.(*Connect)
			require.Equal(t, flags&2 != 0, c.CleanStart)
			require.Equal(t, flags&0x80 != 0, c.HasUsername)
			require.Equal(t, flags&0x40 != 0, c.HasPassword)
			require.Equal(t, will, c.Will != nil)
			if will {
				require.Equal(t, flags&0x20 != 0, c.Will.Retain)
				require.EqualValues(t, q, c.Will.QoS)
			}
		}
	}
}

// [MQTT-3.8.3-4] [MQTT-3.8.3-5] [MQTT5-NOID-3.8.3.1-1] [MQTT5-NOID-3.8.3.1-2] [v3.1.1 MQTT-3.8.3-4]
func TestEveryByteOfSubscriptionOptions(t *testing.T) {
	for options := range 256 {
		for _, filter := range []string{"a/b", "$share/g/a", "$shared/g"} {
			body := append([]byte{0, 1, 0, 0, byte(len(filter))}, filter...)
			_, _, err := Decode(frame(0x82, append(body, byte(options))), V5, Limits{})
			switch {
			case options>>6 != 0:
				requireCode(t, MalformedPacket, err, "options %08b", options)
			case options&3 == 3, options>>4&3 == 3, options&4 != 0 && filter == "$share/g/a":
				requireCode(t, ProtocolError, err, "options %08b for %s", options, filter)
			default:
				require.NoError(t, err, "options %08b for %s", options, filter)
			}
		}
		for _, v := range []Version{V31, V311} {
			_, _, err := Decode([]byte{0x82, 6, 0, 1, 0, 1, 'a', byte(options)}, v, Limits{})
			if options <= 2 {
				require.NoError(t, err, "requested QoS %d in %v", options, v)
			} else {
				requireCode(t, MalformedPacket, err, "requested QoS %d in %v", options, v)
			}
		}
	}
}

// [MQTT-2.2.1-3] [v3.1.1 MQTT-2.3.1-1]
func TestPacketIdentifierZeroIsRefused(t *testing.T) {
	for _, v := range versions {
		for _, p := range []Packet{
			&Publish{QoS: QoS1, Topic: []byte("a")}, &Publish{QoS: QoS2, Topic: []byte("a")},
			&Ack{Kind: TypePuback},
			&Ack{Kind: TypePubrec}, &Ack{Kind: TypePubrel}, &Ack{Kind: TypePubcomp},
			&Subscribe{Subscriptions: []Subscription{{Filter: "a"}}},
			&Suback{Codes: []ReasonCode{0}},
			&Unsubscribe{Filters: []string{"a"}}, &Unsuback{Codes: []ReasonCode{0}},
		} {
			_, _, err := Decode(encode(t, p, v), v, Limits{})
			requireCode(t, ProtocolError, err, "%s in %v", Trace(p), v)
		}
	}
}

func TestTopicsOfTheTable(t *testing.T) {
	for _, row := range tables().Topics.MatchExamples {
		filter, name, want := row[0].(string), row[1].(string), row[2].(bool)
		require.Equal(t, want, MatchTopic(filter, name), "does %q match %q?", filter, name)
	}
	valid := func(filter string) bool {
		_, inner, err := SplitShared(filter)
		return err == nil && ValidTopicFilter(filter) && ValidTopicFilter(inner)
	}
	for _, filter := range tables().Topics.ValidFilters {
		require.True(t, valid(filter), "%q is valid", filter)
	}
	for _, filter := range tables().Topics.InvalidFilters {
		require.False(t, valid(filter), "%q is not valid", filter)
	}
}

// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1] [MQTT-4.8.2-1] [MQTT-4.8.2-2]
func TestAnIllFormedFilterMakesThePacketMalformed(t *testing.T) {
	decode := func(filter string, v Version) (errs []error) {
		for _, p := range []Packet{
			&Subscribe{PacketID: 1, Subscriptions: []Subscription{{Filter: "a"}, {Filter: filter}}},
			&Unsubscribe{PacketID: 1, Filters: []string{"a", filter}},
		} {
			_, _, err := Decode(encode(t, p, v), v, Limits{})
			errs = append(errs, err)
		}
		return errs
	}
	for _, v := range versions {
		for _, filter := range tables().Topics.InvalidFilters {
			for _, err := range decode(filter, v) {
				if v < V5 && ValidTopicFilter(filter) { // there are no shared subscriptions
					require.NoError(t, err, "%q in %v", filter, v)
					continue
				}
				requireCode(t, MalformedPacket, err, "%q in %v", filter, v)
			}
		}
		for _, filter := range tables().Topics.ValidFilters {
			for _, err := range decode(filter, v) {
				require.NoError(t, err, "%q in %v", filter, v)
			}
		}
	}
}
