package journal

import (
	"context"

	"github.com/dunlin-mqtt/dunlin/store"
)

// A Write is what one goroutine adds together, such as a message with the queues that it is in. It
// pins its batch: the batch is not committed before Settle. A Write must not wait for a batch while
// it pins one.
type Write struct {
	j     *Journal
	batch *Batch         // pinned; nil: nothing was added
	op    *store.Publish // see Publish; nil: there is none
	slot  int            // its place in batch.ops
	keep  int            // how many callers of Together want batch to stay pinned
	room  int64          // taken for what is about to be added; Clear gives it back
}

// NewWrite returns a Write of nothing.
func NewWrite(j *Journal) Write { return Write{j: j} }

// Batch is the batch that w pins, nil if it has added nothing.
func (w *Write) Batch() *Batch { return w.batch }

// Message is the operation of the message that w adds, nil if nothing has needed it yet.
func (w *Write) Message() *store.Publish { return w.op }

// Publish returns the operation of the message m, until Conclude: the caller adds to it who gets m.
// born is the ticket of the batch in which the Session began that is to be named in it.
func (w *Write) Publish(m *store.Message, born uint64) *store.Publish {
	if w.op != nil && w.batch.ticket >= born {
		return w.op
	}
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	if w.batch != nil && w.batch.ticket < born {
		w.op = nil // that one is complete
		w.j.unpinLocked(w.batch)
		w.batch = nil
	}
	w.pinLocked()
	x := w.batch
	w.slot = len(x.ops)
	w.op = x.nextPublish(m)
	w.j.putLocked(x, w.op)
	return w.op
}

// pinLocked makes the pending batch the one of w, unless it has one.
func (w *Write) pinLocked() {
	if w.batch == nil {
		w.batch = w.j.pending
		w.batch.pins++
	}
}

func (j *Journal) unpinLocked(x *Batch) {
	if x.pins--; x.pins == 0 && x.unpinned != nil {
		close(x.unpinned)
	}
}

// Pin pins the pending batch if w has none, although w adds no operation.
func (w *Write) Pin() {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.pinLocked()
}

// Put adds op.
func (w *Write) Put(op store.Op) {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.pinLocked()
	w.j.putLocked(w.batch, op)
}

// Begin adds a Session that begins, which somebody waits for.
func (w *Write) Begin(op *store.PutSession) {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.pinLocked()
	w.batch.births = append(w.batch.births, op.Session)
	w.batch.urgent = true
	w.j.putLocked(w.batch, op)
}

// Add adds op, which nobody waits for, to what w writes together. Otherwise it need not be in the
// batch of w.
func (w *Write) Add(op store.Op) {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	if w.keep > 0 {
		w.pinLocked()
		w.j.putLocked(w.batch, op)
	} else {
		w.j.putLocked(w.j.pending, op)
	}
}

// Tie adds op, which may be nil, to what w has just added, so that both are committed or neither
// is. More is to do when that is decided. If w has added nothing op is added by itself, and Tie
// returns false.
func (w *Write) Tie(op store.Op) bool {
	j := w.j
	j.mu.Lock()
	defer j.mu.Unlock()
	x := w.batch
	if x == nil {
		if op != nil {
			j.putLocked(j.pending, op)
		}
		return false
	}
	if op != nil {
		j.putLocked(x, op)
		x.tieLocked(op)
	}
	j.leadsLocked(x)
	x.urgent = true
	return true
}

// Lead notes that more is to do when the batch of w is decided, which is pinned if it is not yet.
// What the caller keeps for that weighs n bytes.
func (w *Write) Lead(n int) {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.pinLocked()
	w.j.leadsLocked(w.batch)
	w.j.growLocked(w.batch, n)
	w.batch.urgent = true
}

// Follow makes whoever waits for what w does wait for all that is not decided yet, although w adds
// nothing.
func (w *Write) Follow() {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	if !w.j.settledLocked() {
		w.pinLocked()
	}
}

// Conclude ends the operation of a message: all that it is for is in it.
func (w *Write) Conclude() {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.concludeLocked()
}

// ConcludeUrgently is Conclude, where somebody is going to wait for the message.
func (w *Write) ConcludeUrgently() {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.concludeLocked()
	w.batch.urgent = true
}

func (w *Write) concludeLocked() {
	op := w.op
	if op == nil {
		return
	}
	w.op = nil
	w.j.growLocked(w.batch, weighDeliveries(op.To))
	if len(op.To) == 0 && !op.Retain {
		w.j.withdrawLocked(w.batch, w.slot, op)
	}
}

// Hold makes h wait for what w has just added. It returns the ticket, 0 if that is nothing.
func (w *Write) Hold(h Waiting) uint64 {
	if w.batch == nil {
		return 0
	}
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.batch.enlistLocked(h)
	return w.batch.ticket
}

// Want says that the caller will wait for what w has added. It returns nil if that is nothing.
func (w *Write) Want() *Batch {
	if w.batch == nil {
		return nil
	}
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.batch.wantLocked()
	return w.batch
}

// Together keeps what is added until Apart in one batch.
func (w *Write) Together() { w.keep++ }

// Apart ends what Together began.
func (w *Write) Apart() {
	w.keep--
	w.Settle()
}

// Settle lets the committer have what w has added, unless that is kept together.
func (w *Write) Settle() {
	if w.batch == nil || w.keep > 0 {
		return
	}
	w.j.mu.Lock()
	w.j.unpinLocked(w.batch)
	urgent := w.batch.urgent
	w.batch = nil
	w.j.mu.Unlock()
	if urgent {
		w.j.wake()
	}
}

// Clear is Settle, after a panic as well, and gives back the room that was taken: what was added
// counts itself by now.
func (w *Write) Clear() {
	w.op = nil
	w.Settle()
	if n := w.room; n > 0 {
		w.room = 0
		w.j.Room.Give(n)
	}
}

// Waits says whether w may wait: it neither pins a batch nor keeps anything together.
func (w *Write) Waits() bool { return w.batch == nil && w.keep == 0 }

// TakeRoom takes n bytes of Room until Clear, if there are so many.
func (w *Write) TakeRoom(n int64) bool {
	if !w.j.Room.Take(n) {
		return false
	}
	w.room += n
	return true
}

// Exceed takes n bytes of Room until Clear, whether or not there are so many.
func (w *Write) Exceed(n int64) {
	w.j.Room.Add(n)
	w.room += n
}

// AwaitRoom waits for n bytes of Room, as that of the Journal does, and takes them until Clear.
func (w *Write) AwaitRoom(ctx context.Context, n int64) error {
	err := w.j.AwaitRoom(ctx, n)
	if err == nil {
		w.room += n
	}
	return err
}
