package budget

import "sync/atomic"

// stripes is in how many parts places are counted: Sessions that are busy at the same time rarely
// share one.
const stripes = 16

// A Stripe is where a Session counts its places. Any number will do.
type Stripe uint8

// NextStripe returns the Stripe for one more Session.
func (b *Budget) NextStripe() Stripe { return Stripe(b.nextStripe.Add(1) % stripes) }

// places are the places of deliveries, by stripe.
type places [stripes]struct {
	queued, queuedBytes, inFlight atomic.Int64
	_                             [104]byte // no cache line is shared
}

// AddQueued counts n more, or less, deliveries in queues, of so many bytes.
func (b *Budget) AddQueued(s Stripe, n int, bytes int) {
	if b != nil {
		b.places[s%stripes].queued.Add(int64(n))
		b.places[s%stripes].queuedBytes.Add(int64(bytes))
	}
}

// AddInFlight counts n more, or less, deliveries in flight.
func (b *Budget) AddInFlight(s Stripe, n int) {
	if b != nil {
		b.places[s%stripes].inFlight.Add(int64(n))
	}
}

// Places are the deliveries of all Sessions: those in queues, with their bytes in each queue that
// they are in, and those in flight.
type Places struct{ Queued, QueuedBytes, InFlight int64 }

// Places returns how many there are.
func (b *Budget) Places() (p Places) {
	for i := range b.places {
		p.Queued += b.places[i].queued.Load()
		p.QueuedBytes += b.places[i].queuedBytes.Load()
		p.InFlight += b.places[i].inFlight.Load()
	}
	return p
}
