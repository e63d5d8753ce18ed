package dunlin

import (
	"math"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is how an error is told: with a Reason Code that is one of a failure, and with a text
// that every client can read.

// fitting returns the code of an error, or Not authorized if no packet of that type may have it
// (2.4) or it stands for no failure. What a connection ends with while its CONNACK waits for the
// store is no fault of the client: it may come again.
func fitting(code packets.ReasonCode, t packets.Type) packets.ReasonCode {
	switch {
	case code.Failed() && code.ValidIn(t):
		return code
	case t == packets.TypeConnack && code == packets.ServerShuttingDown:
		return packets.ServerUnavailable
	case t == packets.TypeConnack && code == packets.SessionTakenOver:
		return packets.ServerBusy
	}
	return packets.NotAuthorized
}

// reason returns a Reason String property for err, if the client wants such and its packet, of used
// bytes without it, stays within what it accepts.
func (c *conn) reason(err *packets.Error, used int) packets.Properties {
	if c.noReasons || err.Reason == "" {
		return nil
	}
	text := legible(err.Reason)
	if used+len(text)+9 > int(c.maxPacket) {
		return nil
	}
	return packets.Properties(nil).AppendText(packets.ReasonString, text)
}

// farewell returns the properties of the CONNACK or DISCONNECT with this code that ends a
// connection for err: a Server Reference, which only two codes have (4.11), a Reason String, and
// User Properties. Each is left out if the packet, of used bytes without properties, would be too
// large for the client.
func (c *conn) farewell(err *packets.Error, code packets.ReasonCode,
	used int) (p packets.Properties) {
	to := err.ServerReference
	if to != "" && (code == packets.UseAnotherServer || code == packets.ServerMoved) &&
		used+len(to)+9 <= int(c.maxPacket) && len(to) <= math.MaxUint16 && packets.ValidUTF8(to) {
		p = p.AppendText(packets.ServerReference, to)
	}
	p = append(p, c.reason(err, used+len(p))...)
	if err.UserProperties.Check(packets.TypeConnack) != nil {
		return p
	}
	return c.addProperties(p, used, err.UserProperties, packets.UserProperty)
}

// addProperties appends those of more that are an id, each if the packet, of used bytes without
// properties, stays within what the client accepts.
func (c *conn) addProperties(
	p packets.Properties, used int, more packets.Properties, id packets.Property,
) packets.Properties {
	for x, value := range more.All() {
		if x == id && used+len(p)+len(value)+9 <= int(c.maxPacket) {
			p = append(append(p, byte(x)), value...)
		}
	}
	return p
}

// maxText is how many bytes of a text of somebody else are told.
const maxText = 1024

// maxName is how many bytes of a name that is none are told in an error.
const maxName = 100

// legible makes of s what a UTF-8 Encoded String should hold (1.5.4), at most maxText bytes of it:
// a control character becomes a space, and what is no UTF-8 or stands for no character becomes
// U+FFFD.
func legible(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == 0 || unicode.Is(unicode.Noncharacter_Code_Point, r):
			return utf8.RuneError
		case unicode.IsControl(r):
			return ' '
		}
		return r
	}, cut(s, maxText))
	return cut(s, maxText) // what it has put in may be longer
}

// cut returns the first n bytes of s, less what would be part of a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := n; i > n-utf8.UTFMax && i > 0; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i]
		}
	}
	return s[:n] // is no UTF-8 anyway
}
