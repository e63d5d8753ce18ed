package packets

import "encoding/binary"

// The bits of the Connect Flags (3.1.2.3).
const (
	flagReserved   = 1 << 0
	flagCleanStart = 1 << 1
	flagWill       = 1 << 2
	flagWillQoS    = 3 << 3
	flagWillRetain = 1 << 5
	flagPassword   = 1 << 6
	flagUsername   = 1 << 7
)

// bridgeBit is the bit of the Protocol Level that Mosquitto and other brokers set in their bridges.
// It is not part of the standard.
const bridgeBit = 0x80

// A Connect is a CONNECT packet: a client asks for a Session (3.1).
type Connect struct {
	Version     Version // decides the form; Append also accepts unknown versions
	Bridge      bool    // the bridge bit of the Protocol Level is set; 3.1 and 3.1.1 only
	CleanStart  bool    // Clean Session in 3.1 and 3.1.1
	KeepAlive   uint16  // seconds; 0: off
	ClientID    string  // empty: the server assigns one
	Will        *Will   // nil: none
	HasUsername bool
	Username    string
	HasPassword bool
	Password    []byte
	Properties  Properties // since 5.0
}

// A Will is the message that a server publishes for a client whose connection ends without
// DISCONNECT (3.1.2.5).
type Will struct {
	Topic      string
	Payload    []byte
	QoS        QoS
	Retain     bool
	Properties Properties // the Will Properties, since 5.0 (3.1.3.2)
}

// Type returns TypeConnect.
func (c *Connect) Type() Type { return TypeConnect }

// Size returns the length of the whole packet. The version is c.Version; the parameter is ignored.
func (c *Connect) Size(Version) int { return packetLen(c.remaining()) }

// protocolName returns the Protocol Name that belongs to c.Version (3.1.2.1).
func (c *Connect) protocolName() string {
	if c.Version == V31 {
		return "MQIsdp"
	}
	return "MQTT"
}

func (c *Connect) remaining() int {
	n := 2 + len(c.protocolName()) + 4 + 2 + len(c.ClientID)
	if c.Version >= V5 {
		n += propertiesLen(c.Properties)
	}
	if c.Will != nil {
		n += 2 + len(c.Will.Topic) + 2 + len(c.Will.Payload)
		if c.Version >= V5 {
			n += propertiesLen(c.Will.Properties)
		}
	}
	if c.HasUsername {
		n += 2 + len(c.Username)
	}
	if c.HasPassword {
		n += 2 + len(c.Password)
	}
	return n
}

// check returns an error if a field does not fit the wire.
func (c *Connect) check() error {
	err := checkFrame(TypeConnect, c.remaining(), c.Properties, c.Version)
	field := func(name string, n int) {
		if err == nil {
			err = checkField(TypeConnect, name, n)
		}
	}
	field("client identifier", len(c.ClientID))
	if w := c.Will; w != nil {
		field("will topic", len(w.Topic))
		field("will payload", len(w.Payload))
		if err == nil {
			err = checkQoS(TypeConnect, w.QoS)
		}
		if err == nil {
			err = checkFrame(TypeWill, 0, w.Properties, c.Version)
		}
	}
	field("user name", len(c.Username))
	field("password", len(c.Password))
	return err
}

// flags returns the Connect Flags.
func (c *Connect) flags() (f byte) {
	if c.CleanStart {
		f |= flagCleanStart
	}
	if w := c.Will; w != nil {
		f |= flagWill | byte(w.QoS)<<3
		if w.Retain {
			f |= flagWillRetain
		}
	}
	if c.HasPassword {
		f |= flagPassword
	}
	if c.HasUsername {
		f |= flagUsername
	}
	return f
}

// Append appends the whole packet: see Packet. It uses c.Version and ignores the parameter. It
// leaves out a user name or password whose Has field is false.
func (c *Connect) Append(dst []byte, _ Version) ([]byte, error) {
	if err := c.check(); err != nil {
		return dst, err
	}
	b := appendHeader(dst, byte(TypeConnect)<<4, c.remaining())
	b = appendField(b, c.protocolName())
	level := byte(c.Version)
	if c.Bridge && c.Version < V5 {
		level |= bridgeBit
	}
	b = append(b, level, c.flags())
	b = binary.BigEndian.AppendUint16(b, c.KeepAlive)
	if c.Version >= V5 {
		b = appendProperties(b, c.Properties)
	}
	b = appendField(b, c.ClientID)
	if w := c.Will; w != nil {
		if c.Version >= V5 {
			b = appendProperties(b, w.Properties)
		}
		b = appendField(appendField(b, w.Topic), w.Payload)
	}
	if c.HasUsername {
		b = appendField(b, c.Username)
	}
	if c.HasPassword {
		b = appendField(b, c.Password)
	}
	return b, nil
}

// Decode decodes the body: see Packet. It reads the version from the packet and ignores the
// parameter. The Reason Code of the error is
//
//   - UnsupportedProtocolVersion for a Protocol Level other than the three versions, and for 5.0
//     with another Protocol Name,
//   - ProtocolError for any other Protocol Name, which a server does not answer,
//   - TopicNameInvalid for a Will Topic that is empty or has wildcards,
//   - otherwise MalformedPacket or ProtocolError.
//
// If the packet holds a Protocol Level, c.Version is set to it even on an error, so that the server
// can refuse in the form that the client understands.
func (c *Connect) Decode(_ Header, body []byte, _ Version) error {
	*c = Connect{}
	r := cursor{t: TypeConnect, b: body}
	name := r.take(int(r.uint16("protocol name")), "protocol name")
	c.Version = Version(r.uint8("protocol level"))
	if level := c.Version &^ bridgeBit; level != c.Version && (level == V31 || level == V311) {
		c.Version, c.Bridge = level, true
	}
	if r.err != nil {
		return r.err
	}
	switch v, old := c.Version, string(name) == "MQIsdp"; {
	case v == V31 && old, (v == V311 || v == V5) && string(name) == "MQTT":
	case v == V5, string(name) == "MQTT", old && v != V311: // [MQTT-3.1.2-1] [v3.1.1 MQTT-3.1.2-2]
		return Errorf(UnsupportedProtocolVersion, "CONNECT: neither MQTT 3.1, 3.1.1 nor 5.0")
	default: // [v3.1.1 MQTT-3.1.2-1]
		return Errorf(ProtocolError, "CONNECT: the protocol name is not that of MQTT")
	}
	flags := r.uint8("connect flags")
	c.checkFlags(&r, flags)
	c.CleanStart = flags&flagCleanStart != 0
	c.KeepAlive = r.uint16("keep alive")
	if c.Version >= V5 {
		c.Properties = r.properties(TypeConnect)
		if c.Properties.Has(AuthenticationData) && !c.Properties.Has(AuthenticationMethod) {
			r.fail(ProtocolError, "properties", "have authentication data but no method")
		}
	}
	c.ClientID = r.text("client identifier")
	if flags&flagWill != 0 {
		c.Will = decodeWill(&r, flags, c.Version)
	}
	if c.HasUsername = flags&flagUsername != 0; c.HasUsername {
		c.Username = r.text("user name")
	}
	if c.HasPassword = flags&flagPassword != 0; c.HasPassword {
		c.Password = r.binary("password")
	}
	return r.end()
}

// checkFlags checks the Connect Flags against one another (3.1.2.3).
func (c *Connect) checkFlags(r *cursor, flags byte) {
	switch {
	case flags&flagReserved != 0 && c.Version != V31: // [MQTT-3.1.2-3]; 3.1 does not use it
		r.fail(MalformedPacket, "connect flags", "have the reserved bit")
	case flags&flagWill == 0 &&
		flags&(flagWillQoS|flagWillRetain) != 0: // [MQTT-3.1.2-11] [MQTT-3.1.2-13]
		r.fail(MalformedPacket, "connect flags", "have a will QoS or will retain without a will")
	case flags&flagWillQoS == flagWillQoS: // [MQTT-3.1.2-12]
		r.fail(MalformedPacket, "connect flags", "have will QoS 3")
	case c.Version < V5 && flags&(flagUsername|flagPassword) == flagPassword:
		// [v3.1.1 MQTT-3.1.2-22]
		r.fail(MalformedPacket, "connect flags", "have a password without a user name")
	}
}

// decodeWill reads the fields of the Will.
func decodeWill(r *cursor, flags byte, v Version) *Will {
	w := &Will{QoS: QoS(flags & flagWillQoS >> 3), Retain: flags&flagWillRetain != 0}
	if v >= V5 {
		w.Properties = r.properties(TypeWill)
	}
	w.Topic = r.text("will topic")
	if !ValidTopicName(w.Topic) {
		r.fail(TopicNameInvalid, "will topic", "is empty or has a wildcard")
	}
	w.Payload = r.binary("will payload")
	return w
}
