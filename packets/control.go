package packets

// A Pingreq is a PINGREQ packet: a client shows that it is alive (3.12).
type Pingreq struct{}

// Type returns TypePingreq.
func (*Pingreq) Type() Type { return TypePingreq }

// Size returns 2.
func (*Pingreq) Size(Version) int { return 2 }

// Append appends the whole packet: see Packet. The error is always nil.
func (*Pingreq) Append(dst []byte, _ Version) ([]byte, error) {
	return append(dst, byte(TypePingreq)<<4, 0), nil
}

// Decode returns an error if body is not empty.
func (*Pingreq) Decode(_ Header, body []byte, _ Version) error {
	r := cursor{t: TypePingreq, b: body}
	return r.end()
}

// A Pingresp is a PINGRESP packet: the answer to PINGREQ (3.13).
type Pingresp struct{}

// Type returns TypePingresp.
func (*Pingresp) Type() Type { return TypePingresp }

// Size returns 2.
func (*Pingresp) Size(Version) int { return 2 }

// Append appends the whole packet: see Packet. The error is always nil.
func (*Pingresp) Append(dst []byte, _ Version) ([]byte, error) {
	return append(dst, byte(TypePingresp)<<4, 0), nil
}

// Decode returns an error if body is not empty.
func (*Pingresp) Decode(_ Header, body []byte, _ Version) error {
	r := cursor{t: TypePingresp, b: body}
	return r.end()
}

// A Disconnect is a DISCONNECT packet: the last one of a connection (3.14).
type Disconnect struct {
	Code       ReasonCode // since 5.0
	Properties Properties // since 5.0
}

// Type returns TypeDisconnect.
func (d *Disconnect) Type() Type { return TypeDisconnect }

// Size returns the length of the whole packet.
func (d *Disconnect) Size(v Version) int { return packetLen(d.remaining(v)) }

func (d *Disconnect) remaining(v Version) int {
	switch {
	case v < V5 || d.Code == NormalDisconnection && len(d.Properties) == 0:
		return 0
	case len(d.Properties) == 0:
		return 1
	default:
		return 1 + propertiesLen(d.Properties)
	}
}

// Append appends the whole packet in its shortest form: see Packet.
func (d *Disconnect) Append(dst []byte, v Version) ([]byte, error) {
	n := d.remaining(v)
	if n > 0 {
		if err := checkFrame(TypeDisconnect, n, d.Properties, v); err != nil {
			return dst, err
		}
	}
	b := appendHeader(dst, byte(TypeDisconnect)<<4, n)
	if n > 0 {
		b = append(b, byte(d.Code))
	}
	if n > 1 {
		b = appendProperties(b, d.Properties)
	}
	return b, nil
}

// Decode decodes the body: see Packet.
func (d *Disconnect) Decode(_ Header, body []byte, v Version) error {
	*d = Disconnect{}
	r := cursor{t: TypeDisconnect, b: body}
	if v >= V5 && len(body) > 0 {
		// [MQTT-3.14.2-1]
		if d.Code = ReasonCode(r.uint8("reason code")); !d.Code.ValidIn(TypeDisconnect) {
			r.fail(ProtocolError, "reason code", "is not one of DISCONNECT")
		}
		if len(body) > 1 {
			d.Properties = r.properties(TypeDisconnect)
		}
	}
	return r.end()
}

// An Auth is an AUTH packet: a step of enhanced authentication (3.15). It does not exist before
// 5.0.
type Auth struct {
	Code       ReasonCode
	Properties Properties // the Authentication Method is mandatory
}

// Type returns TypeAuth.
func (a *Auth) Type() Type { return TypeAuth }

// Size returns the length of the whole packet.
func (a *Auth) Size(Version) int { return packetLen(a.remaining()) }

func (a *Auth) remaining() int {
	if a.Code == Success && len(a.Properties) == 0 {
		return 0
	}
	return 1 + propertiesLen(a.Properties)
}

// Append appends the whole packet, in the form of 5.0 whatever the version is: see Packet.
func (a *Auth) Append(dst []byte, _ Version) ([]byte, error) {
	n := a.remaining()
	if err := checkFrame(TypeAuth, n, a.Properties, V5); err != nil {
		return dst, err
	}
	b := appendHeader(dst, byte(TypeAuth)<<4, n)
	if n > 0 {
		b = appendProperties(append(b, byte(a.Code)), a.Properties)
	}
	return b, nil
}

// Decode decodes the body: see Packet. Without an Authentication Method the error is a
// ProtocolError (3.15.2.2.2). A packet with Remaining Length 0 has none, and is therefore refused.
func (a *Auth) Decode(_ Header, body []byte, _ Version) error {
	*a = Auth{}
	r := cursor{t: TypeAuth, b: body}
	if len(body) > 0 {
		// [MQTT-3.15.2-1]
		if a.Code = ReasonCode(r.uint8("reason code")); !a.Code.ValidIn(TypeAuth) {
			r.fail(ProtocolError, "reason code", "is not one of AUTH")
		}
		a.Properties = r.properties(TypeAuth)
	}
	if !a.Properties.Has(AuthenticationMethod) {
		r.fail(ProtocolError, "properties", "have no authentication method")
	}
	return r.end()
}
