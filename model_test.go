package dunlin

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
	"github.com/stretchr/testify/require"
)

// This file is a model of the whole Broker over a store that is killed, slow and full. Clients and
// the program publish, subscribe, leave, take over and end at random, in virtual time. One
// goroutine drives everything, one step at a time, and what is random comes from a seed: a seed
// that fails fails again. What must hold is in modelcheck_test.go, the clients are in
// modelclient_test.go.

var (
	modelSeed  = flag.Uint64("model.seed", 0, "the one seed that TestModel plays; 0: new ones")
	modelFault = flag.String("model.fault", "", "what the store of TestModel does wrong: "+
		"early, its Commit returns before it has committed; unreleased, it forgets PUBRECs")
	modelSeeds = flag.Int("model.seeds", 0,
		"how many seeds TestModel plays; 0: 400, fewer with -race or -short")
	modelSteps = flag.Int("model.steps", 250, "how many steps of TestModel belong to a seed")
)

type modelWorld struct {
	t       *testing.T
	rnd     *rand.Rand
	store   *faultStore
	b       *Broker
	l       *listeners.Memory
	served  chan error
	clients []*modelClient
	locals  []*modelLocal
	inboxes []*inbox

	clock    int
	messages []*modelMessage
	wills    map[*modelWill]*modelClient // that must be published
	kills    int
	refusals int
	mode     atomic.Int32 // how full the store is
	wasFull  bool
	rested   int // when everything had come to rest
	failed   bool
	steps    []string

	mu      sync.Mutex
	answers []func() // what calls of the program have come to. Guarded by mu
}

// The ways in which a store is full.
const (
	notFull = iota
	fullForAdditions
	fullForMessages
	fullForAll
	fullNowAndThen
	fullModes
)

// adds says whether an operation needs more room.
func adds(op store.Op) bool {
	switch op.(type) {
	case *store.Publish, *store.Received, *store.PutSession, *store.PutSubscription:
		return true
	}
	return false
}

func (w *modelWorld) tick() int { w.clock++; return w.clock }

// say notes what happens, for a seed that fails.
func (w *modelWorld) say(format string, args ...any) {
	w.steps = append(w.steps, fmt.Sprintf(format, args...))
}

func (w *modelWorld) fail(format string, args ...any) {
	w.failed = true
	w.say("FAIL: "+format, args...)
	w.t.Errorf(format, args...)
}

func newModel(t *testing.T, rnd *rand.Rand) *modelWorld {
	w := &modelWorld{
		t: t, rnd: rnd, store: &faultStore{Store: new(memory.Store), planted: *modelFault},
		wills: map[*modelWill]*modelClient{},
	}
	w.messages = []*modelMessage{{}} // so that none has the number 0
	const v5, v3, long = packets.V5, packets.V311, 86400
	all := []*modelClient{
		{inbox: inbox{id: "s2", filter: "#", qos: 2}, version: v5, expiry: long},
		{inbox: inbox{id: "s3", filter: "#", qos: 2}, version: v3, expiry: long},
		{inbox: inbox{id: "s1", filter: "t/#", qos: 1}, version: v5, expiry: long},
		{inbox: inbox{id: "clean", filter: "#", qos: 2}, version: v5, clean: true, leaves: true},
		{inbox: inbox{id: "e5", filter: "#", qos: 2}, version: v5, expiry: 4, ends: true,
			leaves: true},
		{inbox: inbox{id: "e3", filter: "#", qos: 2}, version: v3, expiry: long, ends: true},
		{inbox: inbox{id: "m2", filter: "$share/g/t/#", qos: 2}, version: v5, expiry: 5,
			ends: true},
		{inbox: inbox{id: "m3", filter: "$share/g/t/#", qos: 2}, version: v5, clean: true},
		{inbox: inbox{id: "m4", filter: "$share/g/t/#", qos: 2}, version: v3, expiry: long,
			ends: true},
		{inbox: inbox{id: "p3"}, version: v3, expiry: long, leaves: true},
		{inbox: inbox{id: "p0"}, version: v5, clean: true, leaves: true},
	}
	rnd.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	all = append(all[:3+rnd.IntN(5)],
		&modelClient{inbox: inbox{id: "m1", filter: "$share/g/t/#", qos: 2}, version: v5,
			expiry: long},
		&modelClient{inbox: inbox{id: "p5"}, version: v5, expiry: long, leaves: true},
	)
	for _, c := range all {
		c.w, c.inbox.w, c.received, c.again = w, w, map[uint16]*modelMessage{},
			map[*modelMessage]bool{}
		w.clients = append(w.clients, c)
		w.inboxes = append(w.inboxes, &c.inbox)
	}
	for i := range rnd.IntN(3) {
		x := &modelLocal{ends: i == 1, manual: rnd.IntN(2) == 0}
		x.inbox = inbox{w: w, id: fmt.Sprint("local", i), filter: "#", qos: 2}
		x.here = func() bool { return x.sub != nil }
		w.locals = append(w.locals, x)
		w.inboxes = append(w.inboxes, &x.inbox)
	}
	w.setPace()
	w.start()
	return w
}

func (w *modelWorld) start() {
	b, err := New(Config{Authenticator: hooks.AllowAll, Logger: quiet, MaxInflight: 8,
		Store: w.store})
	if err != nil {
		w.t.Fatal(err)
	}
	w.b, w.l, w.served = b, listeners.NewMemory(), make(chan error, 1)
	l, served := w.l, w.served
	go func() { served <- b.Serve(l) }()
}

// kill drops everything that is not committed, and what is on its way to clients.
func (w *modelWorld) kill() {
	w.kills++
	w.say("kill")
	w.store = w.store.kill()
	w.setPace()
	for _, c := range w.clients {
		c.cut(killed)
		c.last = time.Now()
	}
	w.mu.Lock()
	w.answers = nil
	w.mu.Unlock()
	for _, x := range w.locals {
		x.cut()
	}
	for will := range w.wills {
		if !will.stays && will.opened > w.rested {
			delete(w.wills, will)
		}
		will.due = time.Now().Add(will.delay) // it may not be durable yet when it was left
	}
	w.b.Close()
	<-w.served
	w.start()
	synctest.Wait()
	for _, c := range w.clients {
		if _, there := w.b.Session(c.id); there && c.absent {
			w.fail("%s: a session that had ended is back after a crash", c.id)
		}
	}
	for _, x := range w.locals {
		if _, there := w.b.Session(localPrefix + x.id); there && x.absent {
			w.fail("%s: a session that was deleted is back after a crash", x.id)
		}
	}
}

// setPace makes the store take its time, before a commit is there and after it, and full as mode
// says.
func (w *modelWorld) setPace() {
	slow := time.Duration(w.rnd.IntN(20)) * time.Millisecond
	after := time.Duration(w.rnd.IntN(2)*w.rnd.IntN(10)) * time.Millisecond
	rnd := rand.New(rand.NewPCG(w.rnd.Uint64(), 0)) // of the committer's goroutine
	w.store.before = func(ops []store.Op) error {
		time.Sleep(slow)
		full := false
		switch w.mode.Load() {
		case fullForAdditions:
			full = slices.ContainsFunc(ops, adds)
		case fullForMessages:
			full = slices.ContainsFunc(ops, fullKinds["no room for the message"])
		case fullForAll:
			full = true
		case fullNowAndThen:
			full = rnd.IntN(2) == 0
		}
		if full {
			return fmt.Errorf("test: %w", store.ErrFull)
		}
		return nil
	}
	w.store.after = func() { time.Sleep(after) }
}

// step does one random thing.
func (w *modelWorld) step() {
	synctest.Wait()
	w.collect()
	for _, c := range w.clients {
		c.expire()
		c.online()
	}
	c := w.clients[w.rnd.IntN(len(w.clients))]
	switch n := w.rnd.IntN(100); {
	case n < 1:
		w.kill()
	case n < 4:
		w.fill()
	case n < 6:
		w.sleep(time.Duration(1+w.rnd.IntN(4)) * time.Second)
	case n < 14:
		w.say("%s is cut", c.id)
		c.cut(byClient)
	case n < 30 && c.link == nil:
		w.say("%s connects", c.id)
		c.connect()
	case n < 32 && c.link != nil:
		w.say("%s takes over", c.id)
		c.connect()
	case n < 38:
		w.end(c)
	case n < 43:
		w.program()
	case n < 68:
		c.more()
	case n < 76:
		w.sleep(time.Duration(w.rnd.IntN(30)) * time.Millisecond)
	default:
		w.say("%s handles packets", c.id)
		c.pump(1 + w.rnd.IntN(6))
	}
}

func (w *modelWorld) sleep(d time.Duration) {
	w.say("sleep %v", d)
	time.Sleep(d)
	if d > time.Second && w.mode.Load() == notFull {
		w.rested = w.tick()
	}
}

// fill makes the store full, or ends that.
func (w *modelWorld) fill() {
	mode := int32(notFull)
	if w.mode.Load() == notFull {
		mode = int32(1 + w.rnd.IntN(fullModes-1))
		w.wasFull = true
	}
	w.say("the store is full in way %d", mode)
	w.mode.Store(mode)
}

// end lets a client leave, or its Session end.
func (w *modelWorld) end(c *modelClient) {
	switch n := w.rnd.IntN(5); {
	case n == 0:
		w.say("%s disconnects", c.id)
		c.disconnect(false)
	case !c.ends:
		c.subscribe()
	case n == 1:
		w.say("%s disconnects and ends", c.id)
		c.disconnect(true)
	case n == 2:
		w.say("%s unsubscribes", c.id)
		c.unsubscribe()
	case n == 3:
		c.subscribe()
	default:
		w.deleteSession(c)
	}
}

// deleteSession has the program end the Session of c.
func (w *modelWorld) deleteSession(c *modelClient) {
	w.say("%s is deleted", c.id)
	c.forget()
	b, dials := w.b, c.dials
	c.deleted = true
	go func() {
		_, err := b.DeleteSession(context.Background(), c.id)
		w.answer(func() {
			if err == nil && c.dials == dials {
				c.cut(byBroker)
				c.absent = true
			}
		})
	}()
}

// answer has f called between two steps.
func (w *modelWorld) answer(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers = append(w.answers, f)
}

// collect takes what calls of the program have come to.
func (w *modelWorld) collect() {
	w.mu.Lock()
	answers := w.answers
	w.answers = nil
	w.mu.Unlock()
	for _, f := range answers {
		f()
	}
}

// program does something that the program which runs the Broker does.
func (w *modelWorld) program() {
	if len(w.locals) > 0 && w.rnd.IntN(2) == 0 {
		w.locals[w.rnd.IntN(len(w.locals))].step()
		return
	}
	qos := packets.QoS(1 + w.rnd.IntN(2))
	topic, retain := fmt.Sprint("t/b/q", qos), false
	if w.rnd.IntN(4) == 0 {
		topic, retain = "r/x", true
	}
	m := w.message("", topic, qos, retain)
	w.opens(m)
	m.sends = 1
	w.say("the program publishes %d to %s", m.n, m.topic)
	b := w.b
	go func() {
		pub := &Message{Topic: m.topic, QoS: qos, Retain: retain, Payload: []byte(m.payload)}
		err := b.Publish(context.Background(), pub)
		w.answer(func() {
			if err == nil {
				w.acknowledged(m)
			} else {
				w.refused(m)
			}
		})
	}()
}

// calm lets everything come to its end.
func (w *modelWorld) calm() {
	w.say("calm")
	w.mode.Store(notFull)
	time.Sleep(8 * time.Second)
	for quiet := 0; quiet < 8; {
		quiet++
		synctest.Wait()
		w.collect()
		for _, x := range w.locals {
			x.subscribe()
		}
		for _, c := range w.clients {
			c.expire()
			if c.link == nil {
				c.connect()
				quiet = 0
			}
			c.subscribe()
			time.Sleep(5 * time.Millisecond)
			synctest.Wait()
			if c.pump(1000) > 0 || len(c.flight) > 0 {
				quiet = 0
			}
		}
	}
	w.collect()
}

func (w *modelWorld) close() {
	for _, c := range w.clients {
		c.cut(byClient)
	}
	w.b.Close()
	<-w.served
}

// play is what one seed does.
func (w *modelWorld) play() {
	w.calm() // everybody is there once, before the first message
	for range *modelSteps {
		w.step()
	}
	w.calm()
	w.check()
	w.kill() // and all that is durable
	w.calm()
	w.check()
}

func TestModel(t *testing.T) {
	seed, seeds := rand.Uint64(), 400
	switch {
	case *modelSeeds > 0:
		seeds = *modelSeeds
	case *modelSeed != 0:
		seeds = 1
	case testing.Short():
		seeds = 40
	case raceDetector:
		seeds = 80
	}
	if *modelSeed != 0 {
		seed = *modelSeed
	}
	var kills, messages, refused atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d seeds from %d: %d kills, %d messages, %d refusals",
			seeds, seed, kills.Load(), messages.Load(), refused.Load())
	})
	for i := range seeds {
		s := seed + uint64(i)
		t.Run(strconv.FormatUint(s, 10), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newModel(t, rand.New(rand.NewPCG(s, 0)))
				defer w.close()
				w.play()
				if w.failed {
					t.Logf("%s\nplay it again with -run 'TestModel$' -model.seed=%d",
						strings.Join(w.steps, "\n"), s)
				}
				kills.Add(int64(w.kills))
				messages.Add(int64(len(w.messages)))
				refused.Add(int64(w.refusals))
			})
		})
	}
}

// A test that cannot fail proves nothing: TestModel finds a store that does less than it says.
func TestTheModelFindsPlantedFaults(t *testing.T) {
	for _, fault := range []string{"early", "unreleased"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestModel$", "-test.count=1",
				"-test.failfast", "-model.seeds=400", "-model.fault="+fault)
			out, err := cmd.CombinedOutput()
			require.Error(t, err, "nothing was found:\n%s", out)
			require.Regexp(t, "never got| times", string(out), "it failed for another reason")
		})
	}
}
