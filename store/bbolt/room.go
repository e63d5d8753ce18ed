package bbolt

import (
	"errors"
	"math"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is the room that the file takes on the disk. It is reserved ahead, in steps. A part of
// it, the spare, is kept for batches that take something away: bbolt never overwrites a page that
// is in use, so that such a batch, too, needs free pages before it makes any.

const (
	minStep = 64 << 10 // of room that is reserved at a time, on a disk that is nearly full
	maxStep = 16 << 20

	minSpare = 256 << 10
	maxSpare = 16 << 20
)

// errSpare says that a batch that adds would take the pages that are spare.
var errSpare = errors.New("the pages that are free are kept for batches that take away")

// update applies ops in a transaction, and reserves more room for them if it has to.
func (s *Store) update(ops []store.Op) error {
	step := min(max(s.size, minSpare), maxStep)
	for ; ; step *= 2 { // a large batch is not tried too often
		err := s.try(ops)
		if !errors.Is(err, berrors.ErrMaxSizeReached) && err != errSpare {
			return err
		}
		if gerr := s.reserve(step); gerr != nil {
			return gerr
		}
	}
}

// try applies ops in a transaction within the room that is reserved.
func (s *Store) try(ops []store.Op) error {
	if err := s.whole(s.end); err != nil {
		return err
	}
	adds, limit := store.Adds(ops), s.size
	free := s.db.Stats()
	spare := min(max(s.size/16, minSpare), maxSpare) + 4*int64(free.FreelistInuse)
	if adds {
		limit -= spare
	}
	s.db.MaxSize = int(min(max(limit, 1), math.MaxInt))
	return s.guarded("commit", func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			s.end = tx.Size()
			if err := s.whole(s.end); err != nil {
				return err
			}
			if adds && tx.Size() > limit && int64(free.FreeAlloc) < spare+atMost(ops, s.pageSize) {
				return errSpare
			}
			b := newBatch(tx)
			for _, op := range ops {
				if err := b.apply(op); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// atMost returns about the most that the pages take which a batch writes: bbolt fills them by half
// at least, keys that come one after the other share pages, and each other key may take one of its
// own, with branches above it.
func atMost(ops []store.Op, page int64) int64 {
	var content, apart int64
	queues := make(map[uint64]bool)
	add := func(m *packets.Message) {
		n := int64(len(m.Topic) + len(m.Payload) + len(m.Properties))
		if content += n; n > page/4 {
			content += page
		}
	}
	for _, op := range ops {
		content += 100
		switch op := op.(type) {
		case *store.Publish:
			add(&op.Message.Message)
			for _, d := range op.To {
				content += 100 + 5*int64(len(d.IDs)) + int64(len(d.Group))
				queues[d.Session] = true
			}
			queues[op.FromSession] = true
			if op.Retain {
				apart += 4
			}
		case *store.PutRetained:
			add(&op.Message.Message)
			apart += 4
		case *store.PutSession:
			content += int64(len(op.ClientID) + len(op.Principal) + len(op.Username) +
				len(op.Mount))
			if apart++; op.Will != nil {
				add(&op.Will.Message)
			}
		case *store.PutSubscription:
			content += int64(len(op.Filter))
			apart++
		default:
			apart += 4
		}
	}
	return 2*content + 3*page*(apart+int64(len(queues))+4)
}

// reserve makes the file longer by at most step. Only the lack of room for minStep is an error.
func (s *Store) reserve(step int64) error {
	have, err := s.file.Size()
	if err != nil {
		return err
	}
	if have > s.size && s.file.Allocate(have) == nil { // an earlier process has reserved it
		s.size = have
		return nil
	}
	for {
		err := s.file.Allocate(s.size + step)
		if err == nil {
			break
		}
		if !disk.IsFull(err) || step <= minStep {
			return err
		}
		step = max(step/2, minStep)
	}
	size := s.size + step
	if have < size { // where the system cannot reserve
		if now, err := s.file.Size(); err != nil || now < size {
			if err := errors.Join(err, s.file.Truncate(size)); err != nil {
				return err
			}
		}
	}
	if !s.db.NoSync {
		if err := s.db.Sync(); err != nil {
			return err
		}
	}
	s.size = size
	return nil
}
