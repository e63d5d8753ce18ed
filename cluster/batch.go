package cluster

import (
	"fmt"
	"time"

	"github.com/dunlin-mqtt/dunlin/store"
)

// A Batch is what one Commit decides. A part that is refused does not affect the others.
type Batch struct {
	// Forget makes the engine forget each Key, before Records of the same Batch take effect. A Key
	// that is not known has no effect.
	Forget  []Key
	Records []*Record
	Changes []*Change
}

// A Record is one message of the log.
type Record struct {
	Part    int            // the partition, 0 to Limits.Partitions-1
	Message *store.Message // Commit does not modify it, and does not keep it
	// Retain makes it the retained message of its topic. With an empty payload it removes the
	// retained message. The order of the log decides between several.
	Retain bool
	// Once, unless its Name is empty, lets only the first Record with this Key into the log, until
	// Forget. So a QoS 2 message, or a Will, is not stored twice. Only Commit uses it: Records that
	// are read need not have it.
	Once Key

	// Pos is the position in the partition. Positions increase, and not always by one. Commit sets
	// it, to 0 if the record was not added.
	Pos uint64
	// Repeated is set by Commit: Once was known, so nothing was added.
	Repeated bool
	// Err is set by Commit: nil, ErrTooLarge, ErrFull or ErrFenced. With an error nothing was
	// added. ErrFull refuses all Records of the Batch in this partition that are not too large.
	Err error
}

// Size returns the bytes of topic, payload and properties together, which Limits.Record bounds.
func (r *Record) Size() int {
	return len(r.Message.Topic) + len(r.Message.Payload) + len(r.Message.Properties)
}

// A Key names what happens once: the message of a Session under a Packet Identifier, or the Will of
// one connection of a Session.
type Key struct {
	Part int    // the same as that of its Record
	Name string // at most MaxOnce bytes
}

// A Change replaces one or two values of the register, both or none, if each of them has the Rev
// that the caller expects.
type Change struct {
	Put []Put
	// Err is set by Commit: nil, ErrConflict, ErrFull, ErrTooLarge or ErrFenced. With an error
	// nothing has changed.
	Err error
}

// A Put is a value of the register to be.
type Put struct {
	Key string // parts with slashes between them, of any other bytes; at most MaxKey bytes
	Rev uint64 // what the key must have; 0: the key must be free
	// Value is the new value. Nil frees the key. An empty slice is a value.
	Value []byte
	// TTL is the time after which the key is free again by itself; 0: never. Whole seconds.
	TTL time.Duration
	// New is set by Commit if the Change succeeds: the Rev of the new value; 0 if the key is free.
	New uint64
}

// Bounds that all Backends share.
const (
	MaxKey  = 1024 // bytes of a key of the register
	MaxOnce = 256  // bytes of the Name of a Key
)

// Check prepares a Batch for Commit, as every Backend does first. It clears everything that Commit
// sets, and sets Err of each Record and Change that is too large. It returns an error, and Commit
// returns the same, if the Batch is too large or makes no sense.
func (b *Batch) Check(l Limits) error {
	if n := max(len(b.Records), len(b.Changes), len(b.Forget)); n > l.Batch {
		return fmt.Errorf("cluster: a Batch with %d of a kind, %d are allowed: %w",
			n, l.Batch, ErrTooLarge)
	}
	for i := range b.Forget {
		if err := b.Forget[i].check(l); err != nil {
			return err
		}
	}
	for _, r := range b.Records {
		if err := r.check(l); err != nil {
			return err
		}
	}
	for _, c := range b.Changes {
		if err := c.check(l); err != nil {
			return err
		}
	}
	return nil
}

func (k Key) check(l Limits) error {
	if k.Part < 0 || k.Part >= l.Partitions {
		return fmt.Errorf("cluster: a Key of partition %d, there are %d", k.Part, l.Partitions)
	}
	if k.Name == "" || len(k.Name) > MaxOnce {
		return fmt.Errorf("cluster: the Name of a Key has %d bytes, expected 1 to %d",
			len(k.Name), MaxOnce)
	}
	return nil
}

func (r *Record) check(l Limits) error {
	r.Pos, r.Repeated, r.Err = 0, false, nil
	switch {
	case r.Part < 0 || r.Part >= l.Partitions:
		return fmt.Errorf("cluster: a Record of partition %d, there are %d", r.Part, l.Partitions)
	case r.Message == nil || r.Message.Topic == "":
		return fmt.Errorf("cluster: a Record without a topic")
	case r.Once.Name != "":
		if err := r.Once.check(l); err != nil {
			return err
		}
		if r.Once.Part != r.Part {
			return fmt.Errorf("cluster: a Record of partition %d with a Key of partition %d",
				r.Part, r.Once.Part)
		}
	}
	if r.Size() > l.Record {
		r.Err = ErrTooLarge
	}
	return nil
}

func (c *Change) check(l Limits) error {
	c.Err = nil
	if len(c.Put) < 1 || len(c.Put) > 2 {
		return fmt.Errorf("cluster: a Change has %d values, expected 1 or 2", len(c.Put))
	}
	if len(c.Put) == 2 && c.Put[0].Key == c.Put[1].Key {
		return fmt.Errorf("cluster: a Change has the key %q twice", c.Put[0].Key)
	}
	for i := range c.Put {
		p := &c.Put[i]
		p.New = 0
		switch {
		case p.Key == "":
			return fmt.Errorf("cluster: a Change with an empty key")
		case p.TTL < 0 || p.TTL%time.Second != 0:
			return fmt.Errorf("cluster: the TTL of key %q is %v, expected whole seconds",
				p.Key, p.TTL)
		case p.Value == nil && p.TTL != 0:
			return fmt.Errorf("cluster: key %q is freed and has a TTL", p.Key)
		}
		if len(p.Key) > MaxKey || len(p.Value) > l.Value {
			c.Err = ErrTooLarge
		}
	}
	return nil
}
