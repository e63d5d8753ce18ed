package clustertest

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

var historiesFlag = flag.Int("clustertest.histories", 0,
	"how many histories clustertest.Histories plays; 0: as many as the test says")

// Histories plays n random histories, each on an engine of its own: three nodes commit, change
// values and read, while nodes are killed, paused and cut off, leaders are lost, and space is. Then
// it compares the log, the feeds of all nodes, the register and everything that calls returned.
// Each history has a seed. open makes an engine, from the seed if the engine has chances of its
// own, and calls check with it. The engine needs all faults of [Engine]. A violation is reported
// with its seed, which the flag -clustertest.seed repeats. The flag -clustertest.histories
// overrides n.
func Histories(t *testing.T, n int, open func(t *testing.T, seed uint64, check func(Engine))) {
	first := rand.Uint64()
	if *historiesFlag > 0 {
		n = *historiesFlag
	}
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	for i := range uint64(n) {
		seed, ran := first+i, false
		open(t, seed, func(e Engine) {
			ran = true
			if err := play(e, seed); err != nil {
				t.Errorf("%v\n(history of -clustertest.seed=%d)", err, seed)
			}
		})
		if !ran {
			t.Fatal("open has not called check")
		}
		if t.Failed() {
			return
		}
	}
}

// An outcome is what became of a record.
type outcome int

const (
	outcomeUnknown outcome = iota // the node was killed
	outcomeAdded
	outcomeRepeated
	outcomeRefused
)

// An entry is a record that somebody wanted to commit.
type entry struct {
	r        *cluster.Record // as it was given
	id       string
	once     cluster.Key
	at, life int // of the node, and which of its lives
	batch    int
	became   outcome
}

// A history is what has been done, with what came of it.
type history struct {
	*env
	end chan struct{} // closed when the faults are over

	mu      sync.Mutex // guards the rest
	live    [3]*node
	lives   [3]int
	entries []*entry
	forgot  map[string]int // Forgets by Key
	shots   []shot
	counted int // increments that succeeded
	perhaps int // those that nobody knows of
	claims  map[string]bool
	bad     error
}

// Values of the register: numbers that are incremented, and pairs of keys that have one value.
const (
	counter  = "count"
	sessions = 2
)

// play plays a history and verifies it.
func play(e Engine, seed uint64) error {
	if !e.has("kpclf") {
		return errors.Join(errors.New("clustertest: a history needs all faults of an Engine"),
			e.Close())
	}
	h := &history{env: newEnv(e, seed), end: make(chan struct{}), forgot: map[string]int{},
		claims: map[string]bool{}}
	err := h.run(seed)
	if err == nil {
		err = h.verify()
	}
	if err == nil {
		err = h.wrong()
	}
	if closing := h.close(); err == nil {
		err = closing
	}
	return err
}

func (h *history) run(seed uint64) error {
	if err := h.startAll(); err != nil {
		return err
	}
	h.live = h.nodes
	var group sync.WaitGroup
	for i := range 3 {
		random := rand.New(rand.NewPCG(seed, uint64(i)+10))
		group.Go(func() { h.work(i, random) })
	}
	err := h.misfortune()
	close(h.end)
	group.Wait()
	return errors.Join(err, h.bad)
}

// misfortune makes a few faults, and ends each of them.
func (h *history) misfortune() error {
	for range 1 + h.rand.IntN(5) {
		h.sleep(time.Duration(h.rand.IntN(500)) * time.Millisecond)
		var dead []int
		for range 1 + h.rand.IntN(2) {
			i, j := h.rand.IntN(3), h.rand.IntN(2)
			switch h.rand.IntN(6) {
			case 0:
				if h.nodes[i] != nil {
					dead = append(dead, i)
					h.kill(i)
				}
			case 1:
				if h.nodes[i] != nil {
					h.Pause(i)
				}
			case 2:
				h.isolate(i)
			case 3:
				h.Cut(i, (i+1+j)%3)
			case 4:
				h.LoseLeaders()
			case 5:
				h.SetFull(true)
			}
		}
		h.sleep(time.Duration(h.rand.IntN(5000)) * time.Millisecond)
		for i := range 3 {
			if h.nodes[i] != nil {
				h.Resume(i)
			}
		}
		h.Heal()
		h.SetFull(false)
		for _, i := range dead {
			if err := h.start(i); err != nil {
				return err
			}
			h.mu.Lock()
			h.live[i] = h.nodes[i]
			h.lives[i]++
			h.mu.Unlock()
		}
	}
	return nil
}

// kill kills a node, and lets its worker know.
func (h *history) kill(i int) {
	h.mu.Lock()
	h.live[i] = nil
	h.mu.Unlock()
	h.env.kill(i)
}

// work does what a broker does, on one node, in all of its lives.
func (h *history) work(i int, random *rand.Rand) {
	for batch := 0; ; batch++ {
		select {
		case <-h.end:
			return
		default:
		}
		h.mu.Lock()
		n, life := h.live[i], h.lives[i]
		h.mu.Unlock()
		if n != nil {
			var err error
			switch random.IntN(5) {
			case 0:
				err = h.look(n, random)
			default:
				err = h.commits(n, random, [2]int{life, batch})
			}
			if err != nil {
				h.mu.Lock()
				h.bad = errors.Join(h.bad, err)
				h.mu.Unlock()
				return
			}
		}
		h.sleep(time.Duration(random.IntN(300)) * time.Millisecond)
	}
}

// look takes a shot of the retained messages.
func (h *history) look(n *node, random *rand.Rand) error {
	s := shot{part: random.IntN(n.limits.Partitions)}
	var err error
	s.all, err = h.retained(n, s.part, &s.at)
	if errors.Is(err, cluster.ErrClosed) {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shots = append(h.shots, s)
	return err
}

// entry makes a record, which sometimes is retained, and sometimes happens once.
func (h *history) entry(n *node, random *rand.Rand, of [2]int) *entry {
	r := h.record(random.IntN(n.limits.Partitions), fmt.Sprintf("topic/%d", random.IntN(4)))
	x := &entry{id: r.Message.ContentType(), at: n.at, life: of[0], batch: of[1]}
	if r.Retain = random.IntN(3) == 0; r.Retain && random.IntN(3) == 0 {
		r.Message.Payload = nil
	}
	switch random.IntN(6) {
	case 0: // as a Will, which several nodes publish
		r.Once = cluster.Key{Part: r.Part, Name: fmt.Sprint("will ", random.IntN(3))}
	case 1: // as a Packet Identifier, which is used again
		r.Once = cluster.Key{Part: r.Part, Name: fmt.Sprintf("id %d of %d", random.IntN(2), n.at)}
	}
	x.r, x.once = r, r.Once
	return x
}

// commits commits some records, and perhaps a Change.
func (h *history) commits(n *node, random *rand.Rand, of [2]int) error {
	b := &cluster.Batch{}
	var entries []*entry
	for range 1 + random.IntN(3) {
		x := h.entry(n, random, of)
		entries, b.Records = append(entries, x), append(b.Records, x.r)
		if strings.HasPrefix(x.r.Once.Name, "id") && random.IntN(2) == 0 {
			b.Forget = append(b.Forget, x.r.Once)
		}
	}
	claim, err := h.change(n, random, b)
	if errors.Is(err, cluster.ErrClosed) {
		return nil
	}
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.entries = append(h.entries, entries...)
	for _, k := range b.Forget {
		h.forgot[fmt.Sprint(k)]++
	}
	h.mu.Unlock()
	forgotten := b.Forget
	err = n.commit(h.ctx, b)
	h.mu.Lock()
	defer h.mu.Unlock()
	if errors.Is(err, cluster.ErrClosed) {
		if claim == counter {
			h.perhaps++
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := became(entries, forgotten); err != nil {
		return err
	}
	if claim == "" || b.Changes[0].Err != nil {
		return nil
	}
	if claim == counter {
		h.counted++
		return nil
	}
	if h.claims[claim] {
		return fmt.Errorf("two nodes have claimed %s", claim)
	}
	h.claims[claim] = true
	return nil
}

// became notes what Commit has said of the entries of a Batch.
func became(entries []*entry, forgotten []cluster.Key) error {
	for i, x := range entries {
		if x.r.Repeated && slices.Contains(forgotten, x.once) && !slices.ContainsFunc(entries[:i],
			func(y *entry) bool { return y.once == x.once }) {
			return fmt.Errorf("a record is Repeated, although its Batch forgets %v", x.once)
		}
		switch {
		case x.r.Repeated:
			x.became = outcomeRepeated
		case x.r.Err != nil:
			x.became = outcomeRefused
		default:
			x.became = outcomeAdded
		}
	}
	return nil
}

// change adds a Change to a Batch, or none: of the counter, or of the two keys of a Session, whose
// value is an epoch. It returns what it claims.
func (h *history) change(n *node, random *rand.Rand, b *cluster.Batch) (claim string, err error) {
	keys := []string{counter}
	switch session := random.IntN(sessions + 3); {
	case session < sessions:
		keys = []string{fmt.Sprint("s/", session), fmt.Sprint("p/", session)}
	case session > sessions:
		return "", nil
	}
	c := &cluster.Change{}
	var epochs []int
	for _, key := range keys {
		v, err := n.Get(h.ctx, key)
		if err != nil {
			return "", err
		}
		epoch, _ := strconv.Atoi(string(v.Value))
		epochs = append(epochs, epoch)
		c.Put = append(c.Put, cluster.Put{Key: key, Rev: v.Rev})
	}
	if len(keys) == 2 && epochs[0] != epochs[1] {
		return "", nil // two hints of different moments
	}
	if random.IntN(2) == 0 {
		slices.Reverse(c.Put)
	}
	for i := range c.Put {
		c.Put[i].Value = strconv.AppendInt(nil, int64(epochs[0]+1), 10)
	}
	b.Changes = []*cluster.Change{c}
	if keys[0] == counter {
		return counter, nil
	}
	return fmt.Sprintf("epoch %d of %s", epochs[0]+1, keys[0]), nil
}
