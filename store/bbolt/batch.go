package bbolt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	bolt "go.etcd.io/bbolt"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/internal/codec"
)

// A batch applies operations in a transaction.
type batch struct {
	sessions, subscriptions, received, messages, queues, uses, retained *bolt.Bucket
}

func newBatch(tx *bolt.Tx) *batch {
	return &batch{
		sessions: tx.Bucket(bSessions), subscriptions: tx.Bucket(bSubscriptions),
		received: tx.Bucket(bReceived),
		messages: tx.Bucket(bMessages), queues: tx.Bucket(bQueues), uses: tx.Bucket(bUses),
		retained: tx.Bucket(bRetained),
	}
}

// A delivery is the stored part of a queue entry, without its place.
type delivery struct {
	store.Delivery
	id       uint16
	released bool
}

const (
	useRetain   = 1 << 2
	useReleased = 1 << 3
	useUnused   = 1 << 4
)

var errUse = errors.New("not a delivery")

func (u *delivery) encode() []byte {
	flags := byte(u.QoS) & 3
	if u.Retain {
		flags |= useRetain
	}
	if u.released {
		flags |= useReleased
	}
	b := []byte{flags, byte(u.id), byte(u.id >> 8)}
	b = binary.AppendUvarint(b, uint64(len(u.IDs)))
	for _, id := range u.IDs {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return append(b, u.Group...)
}

func decodeUse(b []byte) (u delivery, err error) {
	if len(b) < 4 || b[0] >= useUnused {
		return u, errUse
	}
	u.QoS, u.Retain, u.released = packets.QoS(b[0]&3), b[0]&useRetain != 0, b[0]&useReleased != 0
	u.id = binary.LittleEndian.Uint16(b[1:])
	b = b[3:]
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)) {
		return u, errUse
	}
	b = b[size:]
	for range n {
		id, size := binary.Uvarint(b)
		if size <= 0 || id > 1<<32-1 {
			return u, errUse
		}
		u.IDs, b = append(u.IDs, uint32(id)), b[size:]
	}
	u.Group = string(b)
	return u, nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func place(session, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(number(session), seq)
}

// named appends a name to a key. Long names are hashed, because bbolt bounds its keys.
func named(key []byte, name string) []byte {
	if len(name) <= 1024 {
		return append(append(key, 0), name...)
	}
	sum := sha256.Sum256([]byte(name))
	return append(append(key, 1), sum[:]...)
}

func set(b *bolt.Bucket, key, value []byte) error { return b.Put(key, seal(key, value)) }

func encode(op store.Op) []byte {
	var e codec.Encoder
	return e.Append(nil, op)
}

// there says whether the Session exists.
func (b *batch) there(session uint64) bool { return b.sessions.Get(number(session)) != nil }

func (b *batch) apply(op store.Op) error {
	switch op := op.(type) {
	case *store.PutSession:
		return set(b.sessions, number(op.Session), encode(op))
	case *store.DeleteSession:
		return b.deleteSession(op.Session)
	case *store.PutSubscription:
		if b.there(op.Session) {
			return set(b.subscriptions, named(number(op.Session), op.Filter), encode(op))
		}
	case *store.DeleteSubscription:
		return b.subscriptions.Delete(named(number(op.Session), op.Filter))
	case *store.Publish:
		return b.publish(op)
	case *store.Sent:
		return b.change(op.Session, op.Seq, func(u *delivery) { u.id = op.ID })
	case *store.Released:
		return b.change(op.Session, op.Seq, func(u *delivery) { u.released = true })
	case *store.Done:
		return b.done(op.Session, op.Seq)
	case *store.Received:
		return b.receive(op.Session, op.ID)
	case *store.Forget:
		return b.received.Delete(binary.BigEndian.AppendUint16(number(op.Session), op.ID))
	case *store.PutRetained:
		return b.publish(&store.Publish{Message: op.Message, Retain: true})
	case *store.DeleteRetained:
		return b.unretain(op.Topic)
	default:
		panic("BUG: an operation that is none of store's")
	}
	return nil
}

func (b *batch) receive(session uint64, id uint16) error {
	if !b.there(session) {
		return nil
	}
	return set(b.received, binary.BigEndian.AppendUint16(number(session), id), nil)
}

func (b *batch) publish(op *store.Publish) error {
	var n []byte // the message, once somebody uses it
	add := func() error {
		if n != nil {
			return nil
		}
		next, err := b.messages.NextSequence()
		if err != nil {
			return err
		}
		n = number(next)
		return set(b.messages, n, codec.AppendMessage(nil, op.Message))
	}
	for _, d := range op.To {
		if !b.there(d.Session) {
			continue
		}
		if err := add(); err != nil {
			return err
		}
		at := place(d.Session, d.Seq)
		if err := set(b.queues, at, n); err != nil {
			return err
		}
		u := delivery{Delivery: d}
		if err := set(b.uses, bytes.Join([][]byte{n, at}, nil), u.encode()); err != nil {
			return err
		}
	}
	if op.FromSession != 0 {
		if err := b.receive(op.FromSession, op.FromID); err != nil {
			return err
		}
	}
	if !op.Retain {
		return nil
	}
	if err := b.unretain(op.Message.Topic); err != nil {
		return err
	}
	if err := add(); err != nil {
		return err
	}
	if err := set(b.retained, named(nil, op.Message.Topic), n); err != nil {
		return err
	}
	return set(b.uses, n, nil)
}

// unretain removes the retained message of a topic.
func (b *batch) unretain(topic string) error {
	key := named(nil, topic)
	n, err := b.get(b.retained, "retained", key)
	if n == nil || err != nil {
		return err
	}
	if err := b.retained.Delete(key); err != nil {
		return err
	}
	return b.unuse(n, nil)
}

// get returns a copy of a value, or nil.
func (b *batch) get(bucket *bolt.Bucket, name string, key []byte) ([]byte, error) {
	v := bucket.Get(key)
	if v == nil {
		return nil, nil
	}
	v, err := unseal(name, key, v)
	return append([]byte{}, v...), err
}

// change changes an entry of a queue, if it exists.
func (b *batch) change(session, seq uint64, change func(u *delivery)) error {
	at := place(session, seq)
	n, err := b.get(b.queues, "queues", at)
	if n == nil || err != nil {
		return err
	}
	key := append(n, at...)
	v, err := b.get(b.uses, "uses", key)
	if err != nil {
		return err
	}
	u, err := decodeUse(v)
	if err != nil {
		return err
	}
	change(&u)
	return set(b.uses, key, u.encode())
}

func (b *batch) done(session, seq uint64) error {
	at := place(session, seq)
	n, err := b.get(b.queues, "queues", at)
	if n == nil || err != nil {
		return err
	}
	if err := b.queues.Delete(at); err != nil {
		return err
	}
	return b.unuse(n, at)
}

// unuse removes one use of a message. With the last use it removes the message.
func (b *batch) unuse(n, at []byte) error {
	if err := b.uses.Delete(bytes.Join([][]byte{n, at}, nil)); err != nil {
		return err
	}
	if k, _ := b.uses.Cursor().Seek(n); bytes.HasPrefix(k, n) {
		return nil
	}
	return b.messages.Delete(n)
}

func (b *batch) deleteSession(session uint64) error {
	id := number(session)
	if err := b.sessions.Delete(id); err != nil {
		return err
	}
	for _, bucket := range []*bolt.Bucket{b.subscriptions, b.received} {
		for _, k := range keys(bucket, id) {
			if err := bucket.Delete(k); err != nil {
				return err
			}
		}
	}
	for _, k := range keys(b.queues, id) {
		if err := b.done(session, binary.BigEndian.Uint64(k[8:])); err != nil {
			return err
		}
	}
	return nil
}

// keys returns the keys that begin with prefix.
func keys(b *bolt.Bucket, prefix []byte) (all [][]byte) {
	c := b.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		all = append(all, bytes.Clone(k))
	}
	return all
}
