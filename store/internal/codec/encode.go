// Package codec is the binary form of operations in stores that keep bytes.
//
// An operation is a byte that says which it is, then its fields. Numbers are varints as in
// encoding/binary; strings and byte strings have their length in front; instants are 8 bytes,
// little-endian, and missing if 0, as a flag says. A Session and a Seq are written as the
// difference to the one before in the same stream, zigzag. Format by format:
//
//	1  PutSession: flags, session, client, principal, user, mount, expiry, [expires at], [will]
//	2  DeleteSession: session
//	3  PutSubscription: session, filter, options, identifier
//	4  DeleteSubscription: session, filter
//	5  Publish: message, publish flags, [from session, identifier], number of deliveries, runs of deliveries
//	6  Sent: session, seq, identifier
//	7  Released: session, seq
//	8  Done: session, seq
//	9  Received: session, identifier
//	10 Forget: session, identifier
//	11 PutRetained: message
//	12 DeleteRetained: topic
//
// A message is flags, topic, [from], [properties], payload, [expires]. A run of deliveries is a
// byte of flags, [its length, if over 1], [number of Subscription Identifiers, each of them],
// [group], then session and seq of each delivery: 10,000 Sessions that get the same message cost
// 20,000 bytes.
package codec

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

const (
	putSession byte = iota + 1
	deleteSession
	putSubscription
	deleteSubscription
	publish
	sent
	released
	done
	received
	forget
	putRetained
	deleteRetained
)

// Flags of a message. Bits 0 and 1 are the QoS.
const (
	messageRetain byte = 1 << (iota + 2)
	messageProperties
	messageExpires
	messageFrom
	messageUnused
)

// Flags of a Publish.
const (
	publishRetain byte = 1 << iota
	publishFrom
	publishUnused
)

// Flags of a run of deliveries. Bits 0 and 1 are the QoS.
const (
	runRetain byte = 1 << (iota + 2)
	runIDs
	runGroup
	runLong
	runUnused
)

// Flags of a Session.
const (
	sessionExpires byte = 1 << iota
	sessionWill
	sessionWillAt
	sessionNamed
	sessionUnused
)

// Options of a subscription. Bits 0 and 1 are the QoS, 4 and 5 the Retain Handling, as on the wire
// (3.8.3.1).
const (
	optionNoLocal           byte = 1 << 2
	optionRetainAsPublished byte = 1 << 3
	optionUnused            byte = 1 << 6
)

// An Encoder appends operations to one stream. The zero value begins one.
type Encoder struct {
	session, seq uint64 // the last ones written
}

// Append appends op to dst.
func (e *Encoder) Append(dst []byte, op store.Op) []byte {
	switch op := op.(type) {
	case *store.Publish:
		return e.publish(dst, op)
	case *store.Sent:
		dst = e.place(append(dst, sent), op.Session, op.Seq)
		return binary.AppendUvarint(dst, uint64(op.ID))
	case *store.Released:
		return e.place(append(dst, released), op.Session, op.Seq)
	case *store.Done:
		return e.place(append(dst, done), op.Session, op.Seq)
	case *store.Received:
		return binary.AppendUvarint(e.appendSession(append(dst, received), op.Session),
			uint64(op.ID))
	case *store.Forget:
		return binary.AppendUvarint(e.appendSession(append(dst, forget), op.Session), uint64(op.ID))
	case *store.PutRetained:
		return AppendMessage(append(dst, putRetained), op.Message)
	case *store.DeleteRetained:
		return appendString(append(dst, deleteRetained), op.Topic)
	case *store.PutSession:
		return e.putSession(dst, op)
	case *store.DeleteSession:
		return e.appendSession(append(dst, deleteSession), op.Session)
	case *store.PutSubscription:
		return e.putSubscription(dst, op)
	case *store.DeleteSubscription:
		return appendString(e.appendSession(append(dst, deleteSubscription), op.Session), op.Filter)
	}
	panic(fmt.Sprintf("BUG: %T is no operation", op))
}

func (e *Encoder) appendSession(dst []byte, session uint64) []byte {
	dst = binary.AppendVarint(dst, int64(session-e.session))
	e.session = session
	return dst
}

func (e *Encoder) place(dst []byte, session, seq uint64) []byte {
	dst = e.appendSession(dst, session)
	dst = binary.AppendVarint(dst, int64(seq-e.seq))
	e.seq = seq
	return dst
}

func (e *Encoder) putSession(dst []byte, op *store.PutSession) []byte {
	var flags byte
	if op.ExpiresAt != 0 {
		flags |= sessionExpires
	}
	if op.Named {
		flags |= sessionNamed
	}
	if op.Will != nil {
		flags |= sessionWill
		if op.Will.At != 0 {
			flags |= sessionWillAt
		}
	}
	dst = e.appendSession(append(dst, putSession, flags), op.Session)
	dst = appendString(dst, op.ClientID)
	dst = appendString(dst, op.Principal)
	dst = appendString(dst, op.Username)
	dst = appendString(dst, op.Mount)
	dst = binary.AppendUvarint(dst, uint64(op.Expiry))
	if op.ExpiresAt != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(op.ExpiresAt))
	}
	if w := op.Will; w != nil {
		dst = appendMessage(dst, &w.Message, "", 0)
		dst = binary.AppendUvarint(dst, uint64(w.Delay))
		if w.At != 0 {
			dst = binary.LittleEndian.AppendUint64(dst, uint64(w.At))
		}
	}
	return dst
}

func (e *Encoder) putSubscription(dst []byte, op *store.PutSubscription) []byte {
	options := byte(op.QoS)&3 | op.RetainHandling&3<<4
	if op.NoLocal {
		options |= optionNoLocal
	}
	if op.RetainAsPublished {
		options |= optionRetainAsPublished
	}
	dst = appendString(e.appendSession(append(dst, putSubscription), op.Session), op.Filter)
	return binary.AppendUvarint(append(dst, options), uint64(op.ID))
}

func (e *Encoder) publish(dst []byte, op *store.Publish) []byte {
	dst = AppendMessage(append(dst, publish), op.Message)
	var flags byte
	if op.Retain {
		flags |= publishRetain
	}
	if op.FromSession != 0 {
		flags |= publishFrom
	}
	dst = append(dst, flags)
	if op.FromSession != 0 {
		dst = e.appendSession(dst, op.FromSession)
		dst = binary.AppendUvarint(dst, uint64(op.FromID))
	}
	dst = binary.AppendUvarint(dst, uint64(len(op.To)))
	for to := op.To; len(to) > 0; {
		n := 1
		for n < len(to) && alike(&to[0], &to[n]) {
			n++
		}
		dst = e.run(dst, to[:n])
		to = to[n:]
	}
	return dst
}

// alike tells whether two deliveries can be in one run.
func alike(a, b *store.Delivery) bool {
	return a.QoS == b.QoS && a.Retain == b.Retain && a.Group == b.Group &&
		slices.Equal(a.IDs, b.IDs)
}

func (e *Encoder) run(dst []byte, to []store.Delivery) []byte {
	d := &to[0]
	flags := byte(d.QoS) & 3
	if d.Retain {
		flags |= runRetain
	}
	if len(d.IDs) > 0 {
		flags |= runIDs
	}
	if d.Group != "" {
		flags |= runGroup
	}
	if len(to) > 1 {
		flags |= runLong
	}
	dst = append(dst, flags)
	if len(to) > 1 {
		dst = binary.AppendUvarint(dst, uint64(len(to)))
	}
	if len(d.IDs) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(d.IDs)))
		for _, id := range d.IDs {
			dst = binary.AppendUvarint(dst, uint64(id))
		}
	}
	if d.Group != "" {
		dst = appendString(dst, d.Group)
	}
	for i := range to {
		dst = e.place(dst, to[i].Session, to[i].Seq)
	}
	return dst
}

// AppendMessage appends a message.
func AppendMessage(dst []byte, m *store.Message) []byte {
	return appendMessage(dst, &m.Message, m.From, m.Expires)
}

func appendMessage(dst []byte, m *packets.Message, from string, expires int64) []byte {
	flags := byte(m.QoS) & 3
	if m.Retain {
		flags |= messageRetain
	}
	if len(m.Properties) > 0 {
		flags |= messageProperties
	}
	if expires != 0 {
		flags |= messageExpires
	}
	if from != "" {
		flags |= messageFrom
	}
	dst = appendString(append(dst, flags), m.Topic)
	if from != "" {
		dst = appendString(dst, from)
	}
	if len(m.Properties) > 0 {
		dst = appendString(dst, m.Properties)
	}
	dst = appendString(dst, m.Payload)
	if expires != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(expires))
	}
	return dst
}

func appendString[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}
