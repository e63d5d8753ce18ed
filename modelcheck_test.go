package dunlin

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what must hold in the model, see model_test.go: what was acknowledged reaches who
// subscribed before it was published, at QoS 2 once, and in order; a Will likewise; what is
// retained is not older than something that was acknowledged.

// A modelMessage is one message that was published, or may be.
type modelMessage struct {
	n       int
	from    string
	topic   string
	payload string
	qos     packets.QoS
	retain  bool
	will    bool
	opened  int // when it was first sent; 0: it was not
	acked   int // when it was acknowledged; 0: it was not
	refused bool
	sends   int
}

// An inbox is what one receiver has got.
type inbox struct {
	w      *modelWorld
	id     string
	filter string // empty: it does not subscribe
	qos    packets.QoS
	here   func() bool

	life  *modelLife // nil: it is not certain that it subscribes
	all   []arrived
	again map[*modelMessage]bool // what may come again

	online   int   // the last time that the receiver was connected
	volatile bool  // it has had a Session that ends with its connection
	ended    []int // when its Session may have begun to end
}

// A modelLife is the time in which a receiver is known to subscribe.
type modelLife struct {
	from  int
	order map[string]int
	owed  []*modelMessage
}

type arrived struct {
	m     *modelMessage
	kills int // before it came
}

// group is the shared subscription that the inbox is a member of, empty for none.
func (x *inbox) group() string {
	if strings.HasPrefix(x.filter, "$share/") {
		return x.filter
	}
	return ""
}

// matches says whether m is for the inbox at QoS 1 or 2.
func (x *inbox) matches(m *modelMessage) bool {
	_, filter, _ := packets.SplitShared(x.filter)
	return min(m.qos, x.qos) > 0 && strings.HasPrefix(m.topic, strings.TrimSuffix(filter, "#"))
}

// begin is the acknowledgement of the subscription.
func (x *inbox) begin() {
	if x.life == nil {
		x.life = &modelLife{from: x.w.tick(), order: map[string]int{}}
		x.w.say("  %s subscribes", x.id)
	}
}

// online takes note that the receiver is connected.
func (c *modelClient) online() {
	if c.link != nil {
		c.inbox.online = c.w.tick()
	}
}

// endLife says that the subscription may end from now on.
func (x *inbox) endLife() {
	if x.life == nil {
		return
	}
	x.w.say("  %s may not subscribe any more", x.id)
	x.life = nil
}

// got takes a message that has come.
func (x *inbox) got(payload string) {
	m := x.w.messageOf([]byte(payload))
	n := m.n
	x.w.say("  %s got %d on %s", x.id, n, m.topic)
	again := slices.ContainsFunc(x.all, func(a arrived) bool { return a.m == m })
	x.all = append(x.all, arrived{m, x.w.kills})
	if m.refused && m.qos == packets.QoS2 {
		x.w.fail("%s got %d of QoS 2, which was refused", x.id, n)
	}
	if x.life == nil || again || m.will || x.group() != "" {
		return
	}
	key := m.topic + " " + m.from + " " + strconv.Itoa(int(m.qos))
	// What was sent again, as the client did not hear of the first time, may come behind others.
	excused := m.sends > 1 && (m.qos == packets.QoS1 || x.w.wasFull)
	if n < x.life.order[key] && !excused {
		x.w.fail("%s got %d after %d, on %s", x.id, n, x.life.order[key], m.topic)
	}
	x.life.order[key] = max(x.life.order[key], n)
}

// message returns a new message, which nobody has sent yet.
func (w *modelWorld) message(from, topic string, qos packets.QoS, retain bool) *modelMessage {
	m := &modelMessage{n: len(w.messages), from: from, topic: topic, qos: qos, retain: retain}
	m.payload = strconv.Itoa(m.n)
	w.messages = append(w.messages, m)
	return m
}

// messageOf returns the message with that payload.
func (w *modelWorld) messageOf(payload []byte) *modelMessage {
	n, err := strconv.Atoi(string(payload))
	if err != nil || n >= len(w.messages) {
		w.t.Fatalf("a message %q, which nobody has published", payload)
	}
	return w.messages[n]
}

func (w *modelWorld) opens(m *modelMessage) { m.opened = w.tick() }

// acknowledged notes that the broker has taken m over.
func (w *modelWorld) acknowledged(m *modelMessage) {
	if m.acked > 0 {
		return
	}
	m.acked = w.tick()
	w.owe(m)
}

func (w *modelWorld) refused(m *modelMessage) {
	w.say("  %d is refused", m.n)
	w.refusals++
	if m.qos == packets.QoS1 && m.sends > 1 {
		return // it may have been accepted the first time
	}
	m.refused = true
	for _, x := range w.inboxes {
		if m.qos == packets.QoS2 && slices.ContainsFunc(x.all,
			func(a arrived) bool { return a.m == m }) {
			w.fail("%s got %d of QoS 2, which was refused", x.id, m.n)
		}
	}
}

// owe notes for whom m is.
func (w *modelWorld) owe(m *modelMessage) {
	for _, x := range w.inboxes {
		if x.life != nil && x.life.from < m.opened && x.matches(m) &&
			(x.group() == "" || x.permanent()) {
			x.life.owed = append(x.life.owed, m)
		}
	}
}

// permanent says whether the inbox is the member of its group that never ends.
func (x *inbox) permanent() bool { return x.id == "m1" }

// fires takes note that the connection of c has ended.
func (w *modelWorld) fires(c *modelClient, how modelLoss) {
	will := c.will
	c.will = nil
	if will == nil || !c.ready || how == takenOver && will.delay > 0 || how == killed &&
		!will.stays {
		return // it may be published, or not
	}
	if how == byClient {
		will.opened = w.tick()
	}
	will.due = time.Now()
	if c.lasting() {
		will.due = will.due.Add(min(will.delay, time.Duration(c.expiry)*time.Second))
	}
	w.say("  %s leaves Will %d, due in %v", c.id, will.n, time.Until(will.due))
	w.wills[will] = c
}

// resumes takes note that c may resume its Session: a Will that is not due may not be published.
func (w *modelWorld) resumes(c *modelClient) {
	for will, of := range w.wills {
		if of == c && will.due.Add(time.Second).After(time.Now()) {
			delete(w.wills, will)
		}
	}
}

// check compares what there is with what must be.
func (w *modelWorld) check() {
	groups := map[string][]*inbox{}
	for will := range w.wills {
		if will.acked == 0 {
			will.acked = w.tick()
			w.owe(will.modelMessage)
		}
	}
	for _, x := range w.inboxes {
		if g := x.group(); g != "" {
			groups[g] = append(groups[g], x)
		} else if x.life != nil {
			w.checkOwed(x.id, x.life.owed, []*inbox{x})
		}
		w.checkOnce(x.id, []*inbox{x})
	}
	for g, members := range groups {
		w.checkOnce(g, members)
		for _, x := range members {
			if x.life != nil && x.permanent() {
				w.checkOwed(g, x.life.owed, members)
			}
		}
	}
	w.checkRetained()
}

// checkOwed fails if what was owed has not come to one of the receivers.
func (w *modelWorld) checkOwed(who string, owed []*modelMessage, to []*inbox) {
	for _, m := range owed {
		came := slices.ContainsFunc(to, func(x *inbox) bool {
			return slices.ContainsFunc(x.all, func(a arrived) bool { return a.m == m })
		})
		if !came && !(to[0].group() != "" && w.mayBeLost(m)) {
			w.fail("%s never got %d, on %s at QoS %d (a Will: %v)", who, m.n, m.topic, m.qos,
				m.will)
		}
	}
}

// pending is for how long the end of a Session may be under way.
const pending = 500

// mayBeLost says whether a member of a shared subscription may have had m and taken it along: what
// it was sent at QoS 2, and what a Session had that ends with its connection, when the process was
// killed.
func (w *modelWorld) mayBeLost(m *modelMessage) bool {
	return slices.ContainsFunc(w.inboxes, func(x *inbox) bool {
		ended := slices.ContainsFunc(x.ended, func(at int) bool { return at > m.opened-pending })
		loses := m.qos == packets.QoS2 || w.kills > 0 && x.volatile
		return x.group() != "" && x.online > m.opened && ended && loses
	})
}

// anotherLife says whether m, which came before a crash, may come again after it: what the program
// had read, and a Will that a Session without a place in the store got while the store was full.
func (x *inbox) anotherLife(m *modelMessage) bool {
	return x.here != nil || m.will && x.volatile && x.w.wasFull
}

// checkOnce fails if a message of QoS 2 has come twice.
func (w *modelWorld) checkOnce(who string, to []*inbox) {
	times := map[*modelMessage]int{}
	for _, x := range to {
		kills := map[*modelMessage]int{}
		for _, a := range x.all {
			if last, came := kills[a.m]; came && last != a.kills && x.anotherLife(a.m) {
				continue
			}
			kills[a.m] = a.kills
			if x.again[a.m] {
				continue
			}
			if min(a.m.qos, x.qos) == packets.QoS2 {
				times[a.m]++
			}
		}
	}
	for m, n := range times {
		if n > 1 {
			w.fail("%s got %d %d times, on %s", who, m.n, n, m.topic)
		}
	}
}

// checkRetained fails if a retained message is one that another one has replaced for certain.
func (w *modelWorld) checkRetained() {
	on := map[string][]*modelMessage{}
	for _, m := range w.messages {
		if m.retain && (m.opened > 0 || m.will) && !m.refused {
			on[m.topic] = append(on[m.topic], m)
		}
	}
	for topic, all := range on {
		is := &modelMessage{n: -1, acked: 1}
		if m := w.b.retained.Get(topic); m != nil {
			n, _ := strconv.Atoi(string(m.Payload))
			is = w.messages[n]
		}
		for _, m := range all {
			if is.acked > 0 && m.acked > 0 && m.opened > is.acked && !is.will {
				w.fail("retained on %s is %d, which %d has replaced", topic, is.n, m.n)
				break
			}
		}
		if is.refused {
			w.fail("retained on %s is %d, which was refused", topic, is.n)
		}
	}
}
