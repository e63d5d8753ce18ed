package script

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A watch checks on one connection the rules that every packet of a broker has to follow, whatever
// the scenario is about. That a packet can be decoded at all covers its layout, flags, strings and
// properties.
type watch struct {
	version   packets.Version
	connect   *packets.Connect // the first that was sent; nil if it was not well-formed
	accepted  bool             // a successful CONNACK has come
	answered  bool             // any CONNACK has come
	bye       bool             // DISCONNECT has come
	open      []uint16         // identifiers of deliveries not yet acknowledged
	aliases   map[uint32]bool
	available struct{ noRetain bool } // what the CONNACK denied
}

// sent learns from what the client sends.
func (w *watch) sent(b []byte) {
	if w.connect == nil {
		w.version = guess(b, w.version)
	}
	for len(b) > 0 {
		p, n, err := packets.Decode(b, w.version, packets.Limits{})
		if n == 0 || err != nil {
			return
		}
		b = b[n:]
		switch p := p.(type) {
		case *packets.Connect:
			if w.connect == nil {
				w.connect, w.version = p, p.Version
			}
		case *packets.Ack:
			if p.Kind == packets.TypePuback || p.Kind == packets.TypePubcomp ||
				p.Kind == packets.TypePubrec && p.Code.Failed() {
				w.open = slices.DeleteFunc(w.open, func(id uint16) bool { return id == p.PacketID })
			}
		}
	}
}

// guess finds the version of a CONNECT that may be malformed.
func guess(b []byte, otherwise packets.Version) packets.Version {
	switch {
	case bytes.Contains(b, []byte("\x00\x04MQTT\x04")):
		return packets.V311
	case bytes.Contains(b, []byte("\x00\x06MQIsdp\x03")):
		return packets.V31
	}
	return otherwise
}

// received checks what the broker sent.
func (w *watch) received(m received) error {
	if w.connect == nil { // a malformed CONNECT: all that may come is a refusal
		if m.kind() != packets.TypeConnack {
			return fmt.Errorf("MQTT-3.2.0-1: %v before a CONNECT that is well-formed", m.kind())
		}
		return nil
	}
	if m.p == nil {
		return m.err
	}
	if again, err := m.p.Append(nil, w.version); err != nil || !bytes.Equal(again, m.raw) {
		return fmt.Errorf("MQTT-1.5.5-1: % x is not its shortest form, % x", short(m.raw),
			short(again))
	}
	if w.bye {
		return errors.New("MQTT-3.14.4-1: it follows a DISCONNECT")
	}
	if limit, ok := w.connect.Properties.Uint(packets.MaximumPacketSize); ok &&
		len(m.raw) > int(limit) {
		return fmt.Errorf("MQTT-3.1.2-24: %d bytes, the client takes %d", len(m.raw), limit)
	}
	if err := w.order(m.p); err != nil {
		return err
	}
	if err := w.codes(m.p); err != nil {
		return err
	}
	switch p := m.p.(type) {
	case *packets.Connack:
		return w.connack(p)
	case *packets.Publish:
		return w.publish(p)
	}
	return nil
}

// order checks which packets may come when.
func (w *watch) order(p packets.Packet) error {
	switch t := p.Type(); t {
	case packets.TypeConnack:
		if w.answered {
			return errors.New("MQTT-3.2.0-2: a second CONNACK")
		}
	case packets.TypeAuth:
		if !w.connect.Properties.Has(packets.AuthenticationMethod) {
			return errors.New("MQTT-4.12.0-6: AUTH to a client that named no method")
		}
	case packets.TypeDisconnect:
		if !w.accepted {
			return errors.New("MQTT-3.14.0-1: DISCONNECT before an accepting CONNACK")
		}
		if w.version < packets.V5 {
			return fmt.Errorf("DISCONNECT to a client of version %v", w.version)
		}
		w.bye = true
	case packets.TypeConnect, packets.TypeSubscribe, packets.TypeUnsubscribe, packets.TypePingreq:
		return fmt.Errorf("%v goes from clients to brokers only", t)
	default:
		if !w.accepted {
			return fmt.Errorf("MQTT-3.2.0-1: %v before an accepting CONNACK", t)
		}
	}
	return nil
}

// codes checks that each Reason Code is one that a broker may send in that packet.
func (w *watch) codes(p packets.Packet) error {
	var codes []packets.ReasonCode
	var ps packets.Properties
	switch p := p.(type) {
	case *packets.Connack:
		codes = []packets.ReasonCode{p.Code}
		if w.version < packets.V5 && p.Code != 0 &&
			(p.Code.ReturnCode() == 0 || p.Code.ReturnCode() > 5) {
			return fmt.Errorf("3.1.1 MQTT-3.2.2-6: return code of %v", p.Code)
		}
	case *packets.Ack:
		codes, ps = []packets.ReasonCode{p.Code}, p.Properties
	case *packets.Suback:
		codes, ps = p.Codes, p.Properties
		for _, c := range codes {
			if w.version < packets.V5 && c > packets.GrantedQoS2 && c != packets.UnspecifiedError {
				return fmt.Errorf("3.1.1 MQTT-3.9.3-2: return code %#02x", byte(c))
			}
		}
	case *packets.Unsuback:
		codes, ps = p.Codes, p.Properties
	case *packets.Disconnect:
		codes = []packets.ReasonCode{p.Code}
		if p.Code == packets.DisconnectWithWill {
			return errors.New("MQTT-3.14.2-1: only clients send 0x04")
		}
		if p.Properties.Has(packets.SessionExpiryInterval) {
			return errors.New("MQTT-3.14.2-2: a broker's DISCONNECT with a Session Expiry Interval")
		}
	case *packets.Auth:
		codes, ps = []packets.ReasonCode{p.Code}, p.Properties
		if p.Code == packets.ReAuthenticate {
			return errors.New("MQTT-3.15.2-1: only clients send 0x19")
		}
		if p.Code == packets.Success && !w.accepted {
			return errors.New("MQTT-4.12.0-2: AUTH 0x00 before the CONNACK")
		}
	}
	for _, c := range codes {
		if !c.ValidIn(p.Type()) {
			return fmt.Errorf("%#02x is not among the Reason Codes of %v", byte(c), p.Type())
		}
	}
	if n, ok := w.connect.Properties.Uint(packets.RequestProblemInformation); ok && n == 0 &&
		(ps.Has(packets.ReasonString) || ps.Has(packets.UserProperty)) {
		return errors.New("MQTT-3.1.2-29: the client did not want Problem Information")
	}
	return nil
}

func (w *watch) connack(p *packets.Connack) error {
	w.answered, w.accepted = true, p.Code == packets.Success
	c := w.connect
	method, asked := c.Properties.Text(packets.AuthenticationMethod)
	named, told := p.Properties.Text(packets.AuthenticationMethod)
	switch n, _ := c.Properties.Uint(packets.RequestResponseInformation); {
	case p.SessionPresent && (!w.accepted || c.CleanStart):
		return errors.New("MQTT-3.2.2-2, 3.2.2-6: Session Present")
	case w.accepted && asked && named != method || told && named != method:
		return errors.New(
			"MQTT-4.12.0-5, 4.12.0-6: the Authentication Method is not that of the CONNECT")
	case n == 0 && p.Properties.Has(packets.ResponseInformation):
		return errors.New("MQTT-3.1.2-28: Response Information that was not asked for")
	case p.Properties.Has(packets.AssignedClientIdentifier) && c.ClientID != "":
		return errors.New(
			"MQTT5-NOID-3.2.2.3.7-1: an Assigned Client Identifier, although the client has one")
	case p.Properties.Has(packets.ServerReference) && p.Code != packets.UseAnotherServer &&
		p.Code != packets.ServerMoved:
		return errors.New("MQTT5-NOID-3.2.2.3.16-1: a Server Reference without 0x9C or 0x9D")
	}
	n, ok := p.Properties.Uint(packets.RetainAvailable)
	w.available.noRetain = ok && n == 0
	return nil
}

func (w *watch) publish(p *packets.Publish) error {
	if p.Retain && w.available.noRetain {
		return errors.New("MQTT5-NOID-3.8.3.1-4: RETAIN, although it is not available")
	}
	if alias, ok := p.Properties.Uint(packets.TopicAlias); ok {
		if most, _ := w.connect.Properties.Uint(packets.TopicAliasMaximum); alias == 0 ||
			alias > most {
			return fmt.Errorf("MQTT-3.1.2-26, 3.1.2-27: Topic Alias %d, the client takes %d", alias,
				most)
		}
		if len(p.Topic) == 0 && !w.aliases[alias] {
			return fmt.Errorf("MQTT-3.3.2-7: Topic Alias %d was not set on this connection", alias)
		}
		if w.aliases == nil {
			w.aliases = map[uint32]bool{}
		}
		w.aliases[alias] = true
	}
	if p.QoS == packets.QoS0 {
		return nil
	}
	if slices.Contains(w.open, p.PacketID) {
		return fmt.Errorf("MQTT-2.2.1-4: Packet Identifier %d is in use", p.PacketID)
	}
	w.open = append(w.open, p.PacketID)
	if most, ok := w.connect.Properties.Uint(packets.ReceiveMaximum); ok &&
		len(w.open) > int(most) {
		return fmt.Errorf("MQTT-3.3.4-9: %d messages open, the client takes %d", len(w.open), most)
	}
	return nil
}
