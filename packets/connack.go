package packets

import "fmt"

// A Connack is a CONNACK packet: the server's answer to CONNECT (3.2).
type Connack struct {
	SessionPresent bool       // not in 3.1
	Code           ReasonCode // sent as Code.ReturnCode in 3.1 and 3.1.1
	Properties     Properties // since 5.0
}

// Type returns TypeConnack.
func (c *Connack) Type() Type { return TypeConnack }

// Size returns the length of the whole packet.
func (c *Connack) Size(v Version) int { return packetLen(c.remaining(v)) }

func (c *Connack) remaining(v Version) int {
	if v < V5 {
		return 2
	}
	return 2 + propertiesLen(c.Properties)
}

// Append appends the whole packet: see Packet. For 3.1 and 3.1.1 it also returns an error if Code
// is a failure without a return code in these versions. The server then closes the connection
// without a CONNACK [v3.1.1 MQTT-3.2.2-6].
func (c *Connack) Append(dst []byte, v Version) ([]byte, error) {
	n := c.remaining(v)
	code := byte(c.Code)
	if v < V5 {
		code = c.Code.ReturnCode()
		if code == 0 && c.Code.Failed() {
			return dst, fmt.Errorf("packets: CONNACK: no return code stands for %v", c.Code)
		}
	}
	if err := checkFrame(TypeConnack, n, c.Properties, v); err != nil {
		return dst, err
	}
	var present byte
	if c.SessionPresent && v != V31 {
		present = 1
	}
	b := append(appendHeader(dst, byte(TypeConnack)<<4, n), present, code)
	if v >= V5 {
		b = appendProperties(b, c.Properties)
	}
	return b, nil
}

// returnCodes are the Reason Codes that stand for the 3.1.1 return codes.
var returnCodes = [...]ReasonCode{
	Success, UnsupportedProtocolVersion, ClientIdentifierNotValid, ServerUnavailable,
	BadUserNameOrPassword, NotAuthorized,
}

// Decode decodes the body: see Packet.
func (c *Connack) Decode(_ Header, body []byte, v Version) error {
	*c = Connack{}
	r := cursor{t: TypeConnack, b: body}
	flags := r.uint8("acknowledge flags")
	if v != V31 { // 3.1 does not use this byte
		c.SessionPresent = flags&1 != 0
		if flags > 1 { // [MQTT-3.2.2-1]
			r.fail(MalformedPacket, "acknowledge flags", "have a reserved bit")
		}
	}
	code := r.uint8("reason code")
	switch {
	case v >= V5:
		if c.Code = ReasonCode(code); !c.Code.ValidIn(TypeConnack) { // [MQTT-3.2.2-8]
			r.fail(ProtocolError, "reason code", "is not one of CONNACK")
		}
		c.Properties = r.properties(TypeConnack)
	case int(code) < len(returnCodes):
		c.Code = returnCodes[code]
	default:
		r.fail(MalformedPacket, "return code", "is reserved")
	}
	if c.SessionPresent && c.Code != Success { // [MQTT-3.2.2-6]
		r.fail(ProtocolError, "acknowledge flags", "have session present with a refusal")
	}
	return r.end()
}
