package webhook

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/internal/queue"
	"github.com/dunlin-mqtt/dunlin/internal/safelog"
)

// Events sends the broker's events to a server. Its Observer never waits: events go into a queue,
// and one goroutine sends them.
type Events struct {
	poster  poster
	o       EventOptions
	queue   *queue.Queue[Event]
	dropped atomic.Uint64

	ctx    context.Context // ends when Close gives up
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended

	// most bytes of a request, as far as the server has not refused them; owned by the goroutine
	limit int
}

// maxRetry is the longest pause, so that twice as much is a Duration.
const maxRetry = 365 * 24 * time.Hour

// NewEvents returns an Events that sends until Close. It fails if the options are invalid.
func NewEvents(o EventOptions) (*Events, error) {
	for _, d := range []struct {
		of  *time.Duration
		def time.Duration
	}{
		{&o.Interval, time.Second}, {&o.RetryMin, 500 * time.Millisecond},
		{&o.RetryMax, 30 * time.Second},
	} {
		if *d.of <= 0 {
			*d.of = d.def
		}
	}
	for _, n := range []struct {
		of  *int
		def int
	}{
		{&o.Batch, 100}, {&o.RequestBytes, 1 << 20}, {&o.Queue, 10_000},
		{&o.QueueBytes, 16 << 20}, {&o.Attempts, 10},
	} {
		if *n.of <= 0 {
			*n.of = n.def
		}
	}
	o.RetryMin, o.RetryMax = min(o.RetryMin, maxRetry), min(o.RetryMax, maxRetry)
	o.Logger = safelog.Logger(o.Logger)
	for _, name := range o.Only {
		if !slices.Contains(eventNames, name) {
			return nil, fmt.Errorf("webhook: EventOptions.Only: %q is none of %q", name, eventNames)
		}
	}
	e := &Events{
		poster: poster{client: o.Client, url: o.URL, header: o.Header, secret: o.Secret,
			timeout: o.Timeout},
		o:     o,
		queue: queue.New[Event](o.Queue, o.QueueBytes),
		done:  make(chan struct{}),
		limit: o.RequestBytes,
	}
	if err := e.poster.check(); err != nil {
		return nil, err
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	go e.run() // Close waits for it
	return e, nil
}

// Dropped returns how many events were dropped without reaching the server.
func (e *Events) Dropped() uint64 { return e.dropped.Load() }

// Close sends the queued events. It returns when that is done, or with an error when ctx ends.
// Events that arrive after the beginning of Close are dropped. Further calls do the same.
func (e *Events) Close(ctx context.Context) error {
	e.queue.Close()
	defer e.poster.client.CloseIdleConnections()
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
	}
	e.cancel()
	<-e.done
	return fmt.Errorf("webhook: %d events were not sent: %w", e.Dropped(), ctx.Err())
}

// add queues an event, if there is room.
func (e *Events) add(x Event) {
	x.cut()
	queued := e.queue.Add(x.peer(), x.size(), func(number uint64) Event {
		x.Seq, x.Time = number, time.Now().UTC()
		return x
	})
	if !queued {
		e.dropped.Add(1)
	}
}

// run sends until the queue is empty and Close has been called.
func (e *Events) run() {
	defer close(e.done)
	for e.gather() {
		e.sendAll(e.queue.Take(e.o.Batch, e.o.RequestBytes))
	}
}

// gather waits until there is a batch. It returns false if the queue is empty and closed.
func (e *Events) gather() bool {
	var due <-chan time.Time
	for {
		events, bytes, closed := e.queue.Load()
		switch {
		case events >= e.o.Batch || bytes >= e.o.RequestBytes || closed:
			return events > 0
		case events > 0 && due == nil:
			t := time.NewTimer(e.o.Interval)
			defer t.Stop()
			due = t.C
		}
		select {
		case <-e.queue.Ready():
		case <-due:
			return true
		}
	}
}

// An encoded event is an event with its JSON.
type encoded struct {
	event Event
	text  []byte
}

// sendAll sends events, in as many requests as their size needs.
func (e *Events) sendAll(events []Event) {
	var batch []encoded
	size := 0
	for _, x := range events {
		text, err := json.Marshal(x)
		if err != nil { // the others are none the worse for it
			e.drop(1, 0, err)
			continue
		}
		if len(batch) > 0 && size+len(text) > e.limit {
			e.send(batch)
			batch, size = nil, 0
		}
		batch = append(batch, encoded{x, text})
		size += len(text) + 1
	}
	if len(batch) > 0 {
		e.send(batch)
	}
}

// drop counts dropped events.
func (e *Events) drop(n, attempts int, err error) {
	e.dropped.Add(uint64(n))
	e.o.Logger.Warn("webhook: events are dropped", "url", e.poster.url, "events", n, "attempts",
		attempts,
		"err", err)
}

// send attempts a request until the server accepts it. It halves a request that is too large for
// the server.
func (e *Events) send(batch []encoded) {
	delivery := rand.Text()
	pause := e.o.RetryMin
	for attempt := 1; ; attempt++ {
		err := e.attempt(batch, delivery)
		if err == nil {
			return
		}
		if err == refused(http.StatusRequestEntityTooLarge) && e.sendSmaller(batch) {
			return
		}
		if _, never := err.(refused); never || attempt >= e.o.Attempts || e.ctx.Err() != nil {
			e.drop(len(batch), attempt, err)
			return
		}
		wait := time.NewTimer(pause/2 + mathrand.N(pause/2+1))
		select {
		case <-wait.C:
		case <-e.ctx.Done():
			wait.Stop()
		}
		pause = min(2*pause, e.o.RetryMax)
	}
}

// sendSmaller sends the events of a request that was too large for the server: in halves, or
// without the payload if it is one event. It returns false if neither is possible.
func (e *Events) sendSmaller(batch []encoded) bool {
	if len(batch) > 1 {
		size := 0
		for _, x := range batch {
			size += len(x.text) + 1
		}
		e.limit = min(e.limit, size/2)
		half := len(batch) / 2
		e.send(batch[:half])
		e.send(batch[half:])
		return true
	}
	x := batch[0].event
	if len(x.Payload) == 0 {
		return false
	}
	x.Payload, x.Truncated = nil, append(slices.Clone(x.Truncated), "payload")
	text, err := json.Marshal(x)
	if err != nil {
		return false
	}
	e.send([]encoded{{x, text}})
	return true
}

// refused is the error for a status that another attempt would not change.
type refused int

func (r refused) Error() string { return fmt.Sprintf("status %d", int(r)) }

func (e *Events) attempt(batch []encoded, delivery string) error {
	texts := make([][]byte, len(batch))
	for i := range batch {
		texts[i] = batch[i].text
	}
	head, err := json.Marshal(struct {
		Sent    time.Time `json:"sent"`
		Dropped uint64    `json:"dropped"`
		Events  []Event   `json:"events"`
	}{time.Now().UTC(), e.Dropped(), []Event{}})
	if err != nil {
		return err
	}
	head = bytes.TrimSuffix(head, []byte("]}"))
	body := slices.Concat(head, bytes.Join(texts, []byte(",")), []byte("]}"))
	status, _, err := e.poster.post(e.ctx, body, delivery)
	switch {
	case err != nil && status == 0:
		return err
	case status >= 200 && status < 300:
		return nil
	case retry(status):
		return fmt.Errorf("status %d", status)
	}
	return refused(status)
}
