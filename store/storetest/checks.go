package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"strings"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

var checks = []check{
	{"an empty store yields nothing", "A broker that starts for the first time has no Sessions.",
		(*env).reopen},
	{"every operation comes back after reopening",
		"What a client was told to be kept must be there after a restart.", everyOperation},
	{"every operation comes back from the middle of its life",
		"A crash may come between any two steps of a delivery.", everyStep},
	{"random histories come back, reopened after every commit",
		"The state after a restart is that of the last commit.", reopenEach},
	{"random histories come back, with checkpoints now and then",
		"Checkpoint changes nothing that Load would yield.", checkpoints},
	{"a batch applies in order", "A broker commits what happened in one moment as one batch.",
		order},
	{"what an operation names may be missing",
		"A Session may end while a message for it is on its way.", missing},
	{"numbers come again once they are free", "After a restart nobody knows which were used.",
		numbersAgain},
	{"a queue is in the order of Seq",
		"Entries of different publishers may be committed in any order.", sequence},
	{"equal messages stay apart", "Two publishes are two messages, whatever they hold.",
		equalTwice},
	{"names that look alike stay apart", "A key made by joining names must not be ambiguous.",
		alike},
	{"empty strings and nil slices come back",
		"A Zero length Client Identifier or payload is nothing special.", empties},
	{"strings of 65,535 bytes and numbers at their limits come back", "They are what MQTT allows.",
		limits},
	{"a payload of 16 MiB comes back", "MQTT allows up to 256 MiB.", huge},
	{"a batch of 20,000 operations comes back",
		"Group commit gathers what comes while a commit is under way.", largeBatch},
	{"one publish to 10,000 Sessions stays one message",
		"Otherwise a restart would need the memory 10,000 times.", fanOut},
	{"many commits of one operation come back", "A quiet broker commits them one by one.",
		smallCommits},
	{"Load may be called twice, and broken off", "A caller that breaks off leaves the sequence.",
		loadTwice},
	{"what was loaded stays as it is", "The broker keeps messages that it has loaded.",
		loadedStays},
	{"Load ends when its context does", "A broker that is told to stop while it loads must stop.",
		loadCancel},
	{"Commit with a context that is done is all or nothing",
		"A broker that stops must not leave half a batch.", commitCancel},
	{"a closed store commits nothing", "An error is better than a commit that goes nowhere.",
		closed},
	{"no goroutine is left after Close", "The program that embeds the broker goes on without it.",
		goroutines},
}

func message(topic, payload string) *store.Message {
	return &store.Message{Message: packets.Message{Topic: topic, Payload: []byte(payload),
		QoS: packets.QoS1}, From: "publisher"}
}

func put(session uint64) *store.PutSession {
	return &store.PutSession{Session: session, ClientID: fmt.Sprint("c", session), Expiry: 60}
}

func publish(m *store.Message, seq uint64, sessions ...uint64) *store.Publish {
	p := &store.Publish{Message: m}
	for _, s := range sessions {
		p.To = append(p.To, store.Delivery{Session: s, Seq: seq, QoS: packets.QoS1})
	}
	return p
}

// eachOperation returns at least one operation of each kind. Each has an effect.
func eachOperation() []store.Op {
	full := message("t", "payload")
	full.Properties = packets.Properties(nil).AppendUser("k", "v").
		AppendUint(packets.MessageExpiryInterval, 9)
	full.QoS, full.Retain, full.Expires = packets.QoS2, true, 1_770_000_000_123_456_789
	will := packets.Message{Topic: "will", Payload: []byte("bye"), QoS: packets.QoS1, Retain: true,
		Properties: packets.Properties(nil).AppendText(packets.ResponseTopic, "r")}
	return []store.Op{
		&store.PutSession{Session: 1, ClientID: "one", Principal: "p", Username: "u", Named: true,
			Mount: "m/", Expiry: 1<<32 - 1, ExpiresAt: 1_770_000_000_000_000_001,
			Will: &store.Will{Message: will, Delay: 30, At: 1_770_000_000_000_000_002}},
		put(2), put(3), put(4),
		&store.PutSubscription{Session: 1, ID: 268_435_455, Subscription: packets.Subscription{
			Filter: "$share/g/a/+", QoS: packets.QoS2, NoLocal: true, RetainAsPublished: true,
			RetainHandling: 2}},
		&store.PutSubscription{Session: 2,
			Subscription: packets.Subscription{Filter: "#", QoS: packets.QoS1}},
		&store.PutSubscription{Session: 2, Subscription: packets.Subscription{Filter: "gone"}},
		&store.DeleteSubscription{Session: 2, Filter: "gone"},
		&store.PutSubscription{Session: 2, Subscription: packets.Subscription{Filter: "a\x00b"}},
		&store.PutSubscription{Session: 2, Subscription: packets.Subscription{Filter: "a\x00c"}},
		&store.DeleteSubscription{Session: 2, Filter: "a\x00c"},
		&store.Publish{Message: full, Retain: true, FromSession: 3, FromID: 65535,
			To: []store.Delivery{
				{Session: 1, Seq: 1, QoS: packets.QoS2, Retain: true, IDs: []uint32{1, 268_435_455},
					Group: "$share/g/a/+"},
				{Session: 2, Seq: 1, QoS: packets.QoS1},
				{Session: 2, Seq: 2, QoS: packets.QoS0, IDs: []uint32{7}},
				{Session: 4, Seq: 1},
			}},
		&store.Sent{Session: 1, Seq: 1, ID: 65535},
		&store.Released{Session: 1, Seq: 1},
		&store.Sent{Session: 2, Seq: 1, ID: 1},
		&store.Done{Session: 2, Seq: 2},
		&store.Received{Session: 2, ID: 1},
		&store.Received{Session: 2, ID: 2},
		&store.Forget{Session: 2, ID: 1},
		&store.DeleteSession{Session: 4},
		&store.PutRetained{Message: message("r", "stays")},
		&store.PutRetained{Message: message("gone", "goes")},
		&store.DeleteRetained{Topic: "gone"},
	}
}

func everyOperation(e *env) error {
	if err := e.commit(eachOperation()...); err != nil {
		return err
	}
	return e.reopen()
}

func everyStep(e *env) error {
	for _, op := range eachOperation() {
		if err := e.commit(op); err != nil {
			return err
		}
		if err := e.reopen(); err != nil {
			return fmt.Errorf("after %T: %w", op, err)
		}
	}
	return nil
}

func reopenEach(e *env) error { return e.histories(30, 1, 0) }

func checkpoints(e *env) error { return e.histories(200, 40, 15) }

// histories plays random batches into a store. After some of the commits it reopens the store and
// calls Checkpoint.
func (e *env) histories(commits, reopen, checkpoint int) error {
	for round := range e.rounds {
		h := NewHistory(e.seed + uint64(round))
		rng := rand.New(rand.NewPCG(e.seed, uint64(round)))
		if err := e.wipe(); err != nil {
			return err
		}
		h.State = e.want.Clone()
		for n := range commits {
			err := e.commit(h.Batch()...)
			if err == nil && checkpoint > 0 && rng.IntN(checkpoint) == 0 {
				err = e.store.Checkpoint(ctx)
			}
			if err == nil && rng.IntN(reopen) == 0 {
				err = e.reopen()
			}
			if err != nil {
				return fmt.Errorf("history %d, commit %d: %w", round, n, err)
			}
		}
		if err := e.reopen(); err != nil {
			return fmt.Errorf("history %d: %w", round, err)
		}
	}
	return nil
}

// wipe removes everything from the store with operations.
func (e *env) wipe() error {
	if err := e.opened(); err != nil {
		return err
	}
	var ops []store.Op
	for _, id := range e.want.ids() {
		ops = append(ops, &store.DeleteSession{Session: id})
	}
	for topic := range e.want.Retained {
		ops = append(ops, &store.DeleteRetained{Topic: topic})
	}
	return e.commit(ops...)
}

func order(e *env) error {
	err := e.commit(put(1), publish(message("a", "1"), 1, 1), &store.Done{Session: 1, Seq: 1},
		publish(message("a", "2"), 2, 1),
		&store.DeleteSession{Session: 1}, put(1), publish(message("a", "3"), 3, 1),
		&store.PutSubscription{Session: 1, Subscription: packets.Subscription{Filter: "f"}},
		&store.DeleteSubscription{Session: 1, Filter: "f"},
		&store.DeleteSubscription{Session: 1, Filter: "g"},
		&store.PutSubscription{Session: 1, Subscription: packets.Subscription{Filter: "g"}},
		&store.Forget{Session: 1, ID: 1}, &store.Received{Session: 1, ID: 1},
		&store.Received{Session: 1, ID: 2}, &store.Forget{Session: 1, ID: 2},
		&store.PutRetained{Message: message("r", "1")}, &store.DeleteRetained{Topic: "r"},
		&store.DeleteRetained{Topic: "s"},
		&store.PutRetained{Message: message("s", "1")},
		&store.PutRetained{Message: message("s", "2")},
		&store.Sent{Session: 1, Seq: 3, ID: 1}, &store.Sent{Session: 1, Seq: 3, ID: 2})
	if err != nil {
		return err
	}
	// A Session that is put again keeps what belongs to it.
	err = e.commit(&store.PutSession{Session: 1, ClientID: "c1", ExpiresAt: 5},
		&store.PutRetained{Message: message("s", "3")})
	if err != nil {
		return err
	}
	return e.reopen()
}

func missing(e *env) error {
	every := eachOperation()
	var ops []store.Op
	for _, op := range every {
		if _, put := op.(*store.PutSession); !put {
			ops = append(ops, op)
		}
	}
	if err := e.commit(ops...); err != nil {
		return err
	}
	if err := e.reopen(); err != nil {
		return err
	}
	// The Sessions come to be afterwards: nothing may wait for them.
	if err := e.commit(put(1), put(2), put(3), put(4)); err != nil {
		return err
	}
	if err := e.reopen(); err != nil {
		return err
	}
	err := e.commit(&store.Sent{Session: 1, Seq: 9, ID: 9}, &store.Released{Session: 1, Seq: 9},
		&store.Done{Session: 1, Seq: 9},
		&store.Publish{Message: message("nobody", "")}, &store.Forget{Session: 1, ID: 9})
	if err != nil {
		return err
	}
	if err := e.commit(publish(message("a", "1"), 9, 1)); err != nil {
		return err
	}
	return e.reopen()
}

func numbersAgain(e *env) error {
	steps := [][]store.Op{
		{put(1), put(2), publish(message("a", "old"), 1, 1, 2),
			&store.Sent{Session: 1, Seq: 1, ID: 3}, &store.Released{Session: 1, Seq: 1}},
		{&store.Done{Session: 1, Seq: 1}},
		{publish(message("a", "new"), 1, 1)},
		{&store.PutSubscription{Session: 2, Subscription: packets.Subscription{Filter: "old"}},
			&store.Received{Session: 2, ID: 1}},
		{&store.DeleteSession{Session: 2}},
		{put(2), publish(message("a", "newer"), 1, 2)},
		{publish(message("b", "later"), 2, 1, 2)},
		{&store.Done{Session: 1, Seq: 1}, &store.Done{Session: 2, Seq: 1},
			publish(message("a", "last"), 1, 1, 2)},
	}
	for i, ops := range steps {
		if err := e.commit(ops...); err != nil {
			return err
		}
		if err := e.store.Checkpoint(ctx); err != nil {
			return fmt.Errorf("Checkpoint: %w", err)
		}
		if err := e.reopen(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

func sequence(e *env) error {
	for i, seq := range []uint64{5, 3, 9, 4, 8, 1 << 62, 0, 7} {
		err := e.commit(put(1), publish(message("a", fmt.Sprint(seq)), seq, 1))
		if err == nil && i%3 == 2 {
			err = e.commit(&store.Done{Session: 1, Seq: 4})
		}
		if err != nil {
			return err
		}
	}
	return e.reopen()
}

func equalTwice(e *env) error {
	m := message("a", "same")
	err := e.commit(put(1), publish(m, 1, 1), publish(message("a", "same"), 2, 1), publish(m, 3, 1),
		publish(m, 4, 1))
	if err == nil {
		err = e.commit(&store.Done{Session: 1, Seq: 1}, &store.Done{Session: 1, Seq: 3})
	}
	if err != nil {
		return err
	}
	return e.reopen()
}

func alike(e *env) error {
	for i, n := range names {
		sub := packets.Subscription{Filter: n, QoS: packets.QoS(i % 3)}
		m := message(n, fmt.Sprint(i))
		m.From = n
		err := e.commit(put(1), put(11), put(256), put(1<<63+1),
			&store.PutSubscription{Session: 1, ID: uint32(i), Subscription: sub},
			&store.PutSubscription{Session: 11, ID: uint32(i), Subscription: sub},
			&store.PutSubscription{Session: 1, Subscription: packets.Subscription{Filter: "1" + n}},
			&store.PutSubscription{Session: 256,
				Subscription: packets.Subscription{Filter: "1" + n}},
			&store.PutRetained{Message: m}, publish(m, uint64(i), 1, 11, 256, 1<<63+1))
		if err != nil {
			return err
		}
	}
	if err := e.reopen(); err != nil {
		return err
	}
	err := e.commit(&store.DeleteSubscription{Session: 1, Filter: "a"},
		&store.DeleteSubscription{Session: 1, Filter: "1"},
		&store.DeleteRetained{Topic: "a:b"}, &store.DeleteRetained{Topic: "a"},
		&store.DeleteSession{Session: 11},
		&store.Done{Session: 256, Seq: 1}, &store.Done{Session: 1, Seq: 11})
	if err != nil {
		return err
	}
	return e.reopen()
}

func empties(e *env) error {
	none := &store.Message{}
	if err := e.commit(
		&store.PutSession{Session: 1}, &store.PutSession{Session: 2, Will: &store.Will{}},
		&store.PutSession{Session: 3, Will: &store.Will{Message: packets.Message{Payload: []byte{},
			Properties: packets.Properties{}}}},
		&store.PutSubscription{Session: 1},
		&store.Publish{Message: none, Retain: true, To: []store.Delivery{{Session: 1},
			{Session: 2, IDs: []uint32{}}, {Session: 2, Seq: 1, IDs: []uint32{0}}}},
	); err != nil {
		return err
	}
	if err := e.commit(); err != nil {
		return fmt.Errorf("a batch of nothing: %w", err)
	}
	return e.reopen()
}

func limits(e *env) error {
	long := func(end string) string { return strings.Repeat("x", 65535-len(end)) + end }
	m := message(long("1"), "payload")
	m.From, m.Expires = long("f"), 1<<63-1
	m.Properties = packets.Properties(nil).AppendUser(long("k"), long("v"))
	if err := e.commit(
		&store.PutSession{Session: 1<<64 - 1, ClientID: long("c"), Principal: long("p"),
			Username: long("u"),
			Expiry:   1<<32 - 1, ExpiresAt: 1<<63 - 1,
			Will: &store.Will{Message: m.Message, Delay: 1<<32 - 1, At: 1<<63 - 1}},
		&store.PutSession{Session: 2, ClientID: "past", ExpiresAt: -1},
		&store.PutSubscription{Session: 1<<64 - 1, ID: 1<<32 - 1,
			Subscription: packets.Subscription{Filter: long("1")}},
		&store.PutSubscription{Session: 1<<64 - 1, ID: 1,
			Subscription: packets.Subscription{Filter: long("2")}},
		&store.PutRetained{Message: message(long("2"), "2")},
		&store.Publish{Message: m, Retain: true, FromSession: 1<<64 - 1, FromID: 65535,
			To: []store.Delivery{
				{Session: 1<<64 - 1, Seq: 1<<63 - 1, QoS: 2, IDs: []uint32{1<<32 - 1, 0},
					Group: long("g")}}},
		&store.Sent{Session: 1<<64 - 1, Seq: 1<<63 - 1, ID: 65535},
	); err != nil {
		return err
	}
	if err := e.reopen(); err != nil {
		return err
	}
	err := e.commit(&store.DeleteSubscription{Session: 1<<64 - 1, Filter: long("1")},
		&store.DeleteRetained{Topic: long("1")})
	if err != nil {
		return err
	}
	return e.reopen()
}

func huge(e *env) error {
	h := NewHistory(e.seed)
	m := message("a", "")
	m.Payload = h.bytes(16 << 20)
	if err := e.commit(put(1), put(2), publish(message("a", "before"), 1, 1)); err != nil {
		return err
	}
	if err := e.commit(publish(m, 2, 1, 2)); err != nil {
		return err
	}
	if err := e.commit(publish(message("a", "after"), 3, 1)); err != nil {
		return err
	}
	return e.reopen()
}

func largeBatch(e *env) error {
	ops := []store.Op{put(1), put(2), put(3)}
	for i := range uint64(6666) {
		ops = append(ops, publish(message(fmt.Sprint("t", i%100), fmt.Sprint("payload ", i)), i,
			i%3+1))
		if i >= 1000 {
			ops = append(ops, &store.Sent{Session: (i-1000)%3 + 1, Seq: i - 1000, ID: uint16(i)},
				&store.Done{Session: (i-1000)%3 + 1, Seq: i - 1000})
		}
	}
	if err := e.commit(ops...); err != nil {
		return err
	}
	return e.reopen()
}

func fanOut(e *env) error {
	const sessions, messages = 10_000, 4
	var ops []store.Op
	ids := make([]uint64, sessions)
	for i := range ids {
		ids[i] = uint64(i + 1)
		ops = append(ops, put(ids[i]))
	}
	if err := e.commit(ops...); err != nil {
		return err
	}
	for seq := range uint64(messages) {
		m := message("news", strings.Repeat("x", 256))
		if err := e.commit(publish(m, seq, ids...)); err != nil {
			return err
		}
	}
	if err := e.commit(&store.Done{Session: 5000, Seq: 0}, &store.Done{Session: 1, Seq: 1},
		&store.DeleteSession{Session: 10_000}); err != nil {
		return err
	}
	if err := e.reopen(); err != nil {
		return err
	}
	seen := make(map[*store.Message]bool)
	for op, err := range e.store.Load(ctx) {
		if err != nil {
			return fmt.Errorf("Load: %w", err)
		}
		if p, ok := op.(*store.Publish); ok {
			seen[p.Message] = true
		}
	}
	if len(seen) != messages {
		return fmt.Errorf("%d messages came back as %d", messages, len(seen))
	}
	return nil
}

func smallCommits(e *env) error {
	if err := e.commit(put(1)); err != nil {
		return err
	}
	for i := range uint64(200) {
		err := e.commit(publish(message("a", fmt.Sprint(i)), i, 1))
		if err == nil && i%4 != 0 {
			err = e.commit(&store.Done{Session: 1, Seq: i})
		}
		if err != nil {
			return err
		}
	}
	return e.reopen()
}

func loadTwice(e *env) error {
	if err := e.commit(eachOperation()...); err != nil {
		return err
	}
	if err := e.close(); err != nil {
		return err
	}
	s, err := e.open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	e.store = s
	for stop := range 6 {
		n := 0
		for _, err := range s.Load(ctx) {
			if err != nil {
				return fmt.Errorf("Load: %w", err)
			}
			if n++; n > stop {
				break
			}
		}
	}
	seq := s.Load(ctx)
	for range 2 {
		if err := e.load("what a second Load yields"); err != nil {
			return err
		}
		got, err := Fold(seq)
		if err != nil {
			return fmt.Errorf("a sequence that is used twice: %w", err)
		}
		if d := e.want.Diff(got); d != "" {
			return fmt.Errorf("a sequence that is used twice is not what was committed:\n%s", d)
		}
	}
	if err := e.commit(put(77)); err != nil {
		return err
	}
	return e.reopen()
}

func loadedStays(e *env) error {
	if err := e.commit(eachOperation()...); err != nil {
		return err
	}
	if err := e.reopen(); err != nil {
		return err
	}
	var all []store.Op
	for op, err := range e.store.Load(ctx) {
		if err != nil {
			return fmt.Errorf("Load: %w", err)
		}
		all = append(all, op)
	}
	loaded := e.want.Clone()
	h := NewHistory(e.seed)
	h.State = e.want.Clone()
	for range 20 {
		if err := e.commit(h.Batch()...); err != nil {
			return err
		}
	}
	if err := e.store.Checkpoint(ctx); err != nil {
		return fmt.Errorf("Checkpoint: %w", err)
	}
	if err := e.close(); err != nil {
		return err
	}
	got := NewState()
	got.Apply(all...)
	if d := loaded.Diff(got); d != "" {
		return fmt.Errorf("what was loaded has changed:\n%s", d)
	}
	return nil
}

func loadCancel(e *env) error {
	var ops []store.Op
	for i := range uint64(3000) {
		ops = append(ops, put(i+1))
	}
	if err := e.commit(ops...); err != nil {
		return err
	}
	if err := e.reopen(); err != nil {
		return err
	}
	for _, after := range []int{0, 1, 100} {
		c, cancel := context.WithCancel(ctx)
		if after == 0 {
			cancel()
		}
		err := loadUntil(e.store.Load(c), after, cancel)
		cancel()
		if !errors.Is(err, context.Canceled) {
			return fmt.Errorf("Load was cancelled after %d of 3000 operations and ended with %v",
				after, err)
		}
	}
	return e.reopen()
}

// loadUntil cancels the context after n operations, and returns the error that ends the sequence.
func loadUntil(ops iter.Seq2[store.Op, error], after int, cancel func()) error {
	n := 0
	var last error
	for op, err := range ops {
		if last != nil {
			return fmt.Errorf("the sequence goes on after an error, with %v", op)
		}
		if n++; n == after {
			cancel()
		}
		last = err
	}
	return last
}

func commitCancel(e *env) error {
	if err := e.commit(put(1)); err != nil {
		return err
	}
	c, cancel := context.WithCancel(ctx)
	cancel()
	ops := []store.Op{put(2), publish(message("a", "1"), 1, 1, 2),
		&store.PutRetained{Message: message("a", "1")}}
	with := e.want.Clone()
	with.Apply(ops...)
	err := e.store.Commit(c, clone(ops))
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("Commit with a context that is done: %w", err)
	}
	if err == nil {
		e.want = with
		return e.reopen()
	}
	if err := e.commit(put(3)); err != nil {
		return fmt.Errorf("after a Commit with a context that was done: %w", err)
	}
	return e.reopen()
}

func closed(e *env) error {
	if err := e.commit(put(1)); err != nil {
		return err
	}
	s := e.store
	if err := e.close(); err != nil {
		return err
	}
	if s.Commit(ctx, []store.Op{put(2)}) == nil {
		return errors.New("Commit after Close succeeded")
	}
	return e.reopen()
}

func goroutines(e *env) error {
	before := runtime.NumGoroutine()
	h := NewHistory(e.seed)
	for range 3 {
		for range 20 {
			if err := e.commit(h.Batch()...); err != nil {
				return err
			}
		}
		if err := e.store.Checkpoint(ctx); err != nil {
			return fmt.Errorf("Checkpoint: %w", err)
		}
		if err := e.reopen(); err != nil {
			return err
		}
		for range e.store.Load(ctx) {
			break
		}
	}
	if err := e.close(); err != nil {
		return err
	}
	return settled(before, e.patience)
}
