package interop

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// A scenario is one story that a client must be able to live through. Play fails the stage's test
// if it cannot.
type scenario struct {
	name  string
	since version // 0 for all
	needs feature // "" for none
	own   bool    // only with our own broker
	play  func(*stage)
}

// scenarios are those that have nothing to do with what came with 5.0.
var scenarios = []scenario{
	{name: "connects and disconnects", play: playConnect},
	{name: "QoS 0 both ways", play: func(s *stage) { playBothWays(s, 0) }},
	{name: "QoS 1 both ways", play: func(s *stage) { playBothWays(s, 1) }},
	{name: "QoS 2 both ways", play: func(s *stage) { playBothWays(s, 2) }},
	{name: "receives at the lower QoS of the two", play: playLowerQoS},
	{name: "retained is set, replaced and cleared", play: playRetained},
	{name: "will is sent after a cut, not after DISCONNECT", play: playWill},
	{name: "wildcards + and #", play: playWildcards},
	{name: "shared subscription", play: playShared},
	{name: "unsubscribes", needs: canUnsubscribe, play: playUnsubscribe},
	{name: "refused subscription beside a granted one", own: true, play: playRefused},
	{name: "session keeps a queue while offline", play: playOffline},
	{name: "reconnects by itself into its session", needs: canReconnect, play: playReconnect},
	{name: "takeover of the Client Identifier", needs: canAwaitLoss, play: playTakeover},
	{name: "payload of 256 KiB", play: playLargePayload},
	{name: "Keep Alive of an idle connection", needs: canKeepAlive, play: playKeepAlive},
	{name: "request command and a responder", needs: canRequest, play: playRequestCommand},
}

func playConnect(s *stage) {
	for _, round := range []string{"first", "again"} {
		p := s.connect(round, as(s.run+"-c-"+s.version.String()+s.program.name()[:4]))
		p.subscribe(0, s.topic)
		connect := p.sees("a CONNECT", func(k packet) bool { return k.kind() == typeConnect })
		if level := connect.body[2+connect.body[1]]; version(level) != s.version {
			s.Fatalf("the client speaks protocol level %d, so this does not test %v", level,
				s.version)
		}
		connack := p.sees("a CONNACK", func(k packet) bool { return k.kind() == typeConnack })
		if connack.body[1] != 0 {
			s.Fatalf("CONNACK has code %d", connack.body[1])
		}
		p.expectSession(false)
		p.disconnect()
	}
}

func playBothWays(s *stage, qos byte) {
	a, b := s.connect("a"), s.connect("b")
	a.subscribe(qos, s.topic+"/to a")
	b.subscribe(qos, s.topic+"/to b")
	const n = 20
	a.publish(numbered(s.topic+"/to b", qos, n)...)
	b.publish(numbered(s.topic+"/to a", qos, n)...)
	b.expect("everything that a published, in order", numbered(s.topic+"/to b", qos, n)...)
	a.expect("everything that b published, in order", numbered(s.topic+"/to a", qos, n)...)
	a.expectSilence("each message comes once")
	b.expectSilence("each message comes once")
}

func playLowerQoS(s *stage) {
	var subs []*peer
	for qos := range byte(3) {
		p := s.connect(fmt.Sprintf("sub%d", qos))
		p.subscribe(qos, s.topic)
		subs = append(subs, p)
	}
	var ms []message
	for qos := range byte(3) {
		ms = append(ms, message{topic: s.topic, payload: fmt.Sprintf("published at %d", qos),
			qos: qos})
	}
	// One after the other, since messages of different QoS may overtake each other.
	pub := s.connect("pub")
	for _, m := range ms {
		pub.publish(m)
		for qos, p := range subs {
			p.expect("a message comes at the lower QoS of its own and the subscription's",
				m.at(min(m.qos, byte(qos))))
		}
	}
}

func playRetained(s *stage) {
	first := message{topic: s.topic + "/r", payload: "first", qos: 1, retain: true}
	second := message{topic: s.topic + "/r", payload: "second", qos: 1, retain: true}
	clearing := message{topic: s.topic + "/r", qos: 1, retain: true}

	live, pub := s.connect("live"), s.connect("pub")
	live.subscribe(1, s.topic+"/r")
	pub.publish(first)
	live.expect("who was subscribed gets RETAIN 0", first.live())

	late := s.connect("late")
	late.subscribe(1, s.topic+"/+")
	late.expect("a new subscriber gets the retained message with RETAIN 1", first.retained())
	pub.publish(second)
	live.expect("who was subscribed gets RETAIN 0", second.live())
	late.expect("who was subscribed gets RETAIN 0, even who has got the first one as retained",
		second.live())

	later := s.connect("later")
	later.subscribe(1, s.topic+"/r")
	later.expect("the second message has replaced the first", second.retained())
	pub.publish(clearing)
	live.expect("an empty payload is delivered too", clearing.live())

	last := s.connect("last")
	last.subscribe(1, s.topic+"/#")
	end := message{topic: s.topic + "/end", payload: "end", qos: 1}
	pub.publish(end)
	last.expect("an empty payload has removed the retained message", end)
	last.expectSilence("an empty payload has removed the retained message")
}

func playWill(s *stage) {
	will := func(of string) message {
		m := message{topic: s.topic + "/will", payload: "will of the " + of, qos: 1}
		if s.version == v5 {
			m.user = [][2]string{{"of", of}}
		}
		return m
	}
	watcher := s.connect("watch")
	watcher.subscribe(1, s.topic+"/will")

	polite := s.connect("polite", willing(will("polite")))
	polite.subscribe(1, s.topic+"/none")
	if d := polite.disconnect(); len(d.body) > 0 && d.body[0] == 0x04 {
		// mosquitto_sub says Disconnect with Will Message in 5.0.
		watcher.expect("the will of the client that asked for it in its DISCONNECT", will("polite"))
	}
	dying := s.connect("dying", willing(will("dying")))
	dying.subscribe(1, s.topic+"/none")
	dying.cut()
	watcher.expect("the will of the client whose connection was cut", will("dying"))
	watcher.expectSilence("DISCONNECT deletes the will")
}

func playWildcards(s *stage) {
	plus, hash := s.connect("plus"), s.connect("hash")
	plus.subscribe(1, s.topic+"/+/temperature")
	hash.subscribe(1, s.topic+"/#")
	var ms []message
	for _, tail := range []string{"/kitchen/temperature", "/kitchen/humidity", "/temperature",
		"//temperature", "/hall/temperature",
		"/hall/temperature/outside", ""} {
		ms = append(ms, message{topic: s.topic + tail, payload: "at " + tail, qos: 1})
	}
	pub := s.connect("pub")
	for _, m := range ms { // one by one: order is promised for each Topic Name alone
		pub.publish(m)
		hash.expect("# matches its parent and everything below", m)
	}
	plus.expect("+ matches exactly one level, an empty one too", ms[0], ms[3], ms[4])
	plus.expectSilence("+ matches nothing else")
}

func playShared(s *stage) {
	one, two, plain := s.connect("one"), s.connect("two"), s.connect("plain")
	one.subscribe(1, "$share/group/"+s.topic+"/+")
	two.subscribe(1, "$share/group/"+s.topic+"/+")
	plain.subscribe(1, s.topic+"/+")
	const n = 40
	want := numbered(s.topic+"/shared", 1, n)
	s.connect("pub").publish(want...)
	plain.expect("a subscription outside the group gets all", want...)

	var first, second []message
	for deadline := time.Now().Add(patience); len(first)+len(second) < n && time.Now().
		Before(deadline); {
		first = append(first, one.in.take(1, quiet/10)...)
		second = append(second, two.in.take(1, quiet/10)...)
	}
	s.Logf("the members got %d and %d messages", len(first), len(second))
	if len(first) == 0 || len(second) == 0 {
		s.Errorf("of %d messages the members of the group got %d and %d: the load is not shared", n,
			len(first), len(second))
	}
	published := func(a, b message) int { return indexOf(want, a) - indexOf(want, b) }
	if !slices.IsSortedFunc(first, published) || !slices.IsSortedFunc(second, published) {
		s.Error("a member got messages out of order")
	}
	together := slices.Concat(first, second)
	slices.SortFunc(together, published)
	if diff := compare(together, want); diff != "" {
		s.Errorf("each message must go to one member of the group\n%s", diff)
	}
	one.expectSilence("each message comes once")
	two.expectSilence("each message comes once")
}

// indexOf gives the place of m in ms, or -1.
func indexOf(ms []message, m message) int {
	return slices.IndexFunc(ms, func(n message) bool { return n.String() == m.String() })
}

func playUnsubscribe(s *stage) {
	sub, pub := s.connect("sub"), s.connect("pub")
	sub.subscribe(1, s.topic+"/keep", s.topic+"/drop")
	ms := []message{{topic: s.topic + "/drop", payload: "x", qos: 1},
		{topic: s.topic + "/keep", payload: "y", qos: 1}}
	pub.publish(ms[0])
	sub.expect("a message of the subscription", ms[0])

	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	codes, err := sub.unsubscribe(ctx, s.topic+"/drop", s.topic+"/never")
	if err != nil {
		s.Fatalf("cannot unsubscribe: %v", err)
	}
	if want := []byte{0x00, 0x11}; s.version == v5 && !slices.Equal(codes, want) {
		s.Errorf("UNSUBACK has Reason Codes % x, want % x: one filter was subscribed to and one "+
			"was not", codes, want)
	}
	pub.publish(ms...)
	sub.expect("only the subscription that is left", ms[1])
	sub.expectSilence("only the subscription that is left")
}

func playRefused(s *stage) {
	sub := s.connect("sub")
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	codes, err := sub.client.subscribe(ctx, subscription{filter: forbidden + "/" + s.topic, qos: 1},
		subscription{filter: s.topic, qos: 1})
	suback := subackCodes(sub.sees("a SUBACK", func(k packet) bool {
		return k.kind() == typeSuback
	}), s.version)
	want := []byte{1, 0x80}
	if s.version == v5 && slices.Contains(suback, 0x87) {
		want[1] = 0x87 // another broker gives a reason: Not authorized
	}
	slices.Sort(suback) // paho.mqtt.golang sends the filters in any order
	if !slices.Equal(suback, want) {
		s.Fatalf("SUBACK has Reason Codes % x, want % x in any order", suback, want)
	}
	// A client may tell of a refusal as of an error, but if it gives the codes they must be those.
	slices.Sort(codes)
	if err == nil && !slices.Equal(codes, want) {
		s.Errorf("the client tells of Reason Codes % x, but the packet has % x", codes, want)
	}
	m := message{topic: s.topic, payload: "granted", qos: 1}
	s.connect("pub").publish(message{topic: forbidden + "/" + s.topic, payload: "secret", qos: 1},
		m)
	sub.expect("only what it may hear", m)
	sub.expectSilence("only what it may hear")
}

func playOffline(s *stage) {
	sub := s.connect("sub", resuming)
	sub.subscribe(2, s.topic)
	sub.expectSession(false)
	sub.disconnect()

	pub := s.connect("pub")
	queued := append(numbered(s.topic, 1, 5),
		message{topic: s.topic, payload: "and one at QoS 2", qos: 2})
	pub.publish(queued[:5]...)
	pub.publish(queued[5])

	back := s.connect("back", resuming, as(sub.id))
	if _, known := back.session(); !known {
		back.subscribe(2, s.topic) // the one way to connect that mosquitto_sub has
	}
	back.expectSession(true)
	back.expect("what was published meanwhile", queued...)
	back.expectSilence("each message comes once")
	live := message{topic: s.topic, payload: "live", qos: 2}
	pub.publish(live)
	back.expect("the subscription is still there", live)
	back.disconnect()

	clean := s.connect("clean", as(sub.id))
	clean.subscribe(0, s.topic+"/other")
	clean.expectSession(false)
	pub.publish(live)
	clean.expectSilence("a clean start has removed the session")
}

func playReconnect(s *stage) {
	sub, pub := s.connect("sub", resuming, reconnecting), s.connect("pub")
	sub.subscribe(1, s.topic)
	if !sub.in.await(patience, func() bool { return sub.in.up == 1 }) {
		s.Fatal("the client has not noticed that it is connected")
	}
	sub.cut()
	want := numbered(s.topic, 1, 5)
	pub.publish(want...)
	if !sub.in.await(patience, func() bool { return sub.in.up >= 2 }) {
		s.Fatal("the client has not come back")
	}
	sub.expect("what was published meanwhile", want...)
	sub.expectSilence("each message comes once")
	sub.disconnect()
	s.connect("clean", as(sub.id)).subscribe(0, s.topic+"/other")
}

func playTakeover(s *stage) {
	before := s.connect("old", resuming)
	before.subscribe(1, s.topic)
	after := s.connect("new", resuming, as(before.id))
	if _, known := after.session(); !known {
		after.subscribe(1, s.topic)
	}
	if !before.in.await(patience, func() bool { return before.in.lost > 0 }) {
		s.Fatal("the old connection is still open")
	}
	after.expectSession(true)
	if s.version == v5 {
		if code := before.taps[0].disconnectCode(0); code != 0x8e {
			s.Fatalf("DISCONNECT for the old connection has Reason Code %#x (-1: there was "+
				"none), want 0x8e, Session taken over", code)
		}
	}
	if s.program.can(canTellReason, s.version) && !before.in.await(patience, func() bool {
		return before.in.code == 0x8e
	}) {
		s.Error("the client does not tell of Reason Code 0x8e")
	}
	m := message{topic: s.topic, payload: "after the takeover", qos: 1}
	s.connect("pub").publish(m)
	after.expect("the session belongs to the new connection", m)
	before.expectSilence("the old connection is gone")
	after.disconnect()
	s.connect("clean", as(before.id)).subscribe(0, s.topic+"/other")
}

func playLargePayload(s *stage) {
	sub, pub := s.connect("sub"), s.connect("pub")
	sub.subscribe(2, s.topic)
	random := rand.NewChaCha8([32]byte{1})
	for qos := range byte(3) {
		payload := make([]byte, 256<<10)
		_, _ = random.Read(payload)
		m := message{topic: s.topic, payload: string(payload), qos: qos}
		pub.publish(m)
		sub.expect("the payload, unchanged", m)
	}
}

func playKeepAlive(s *stage) {
	// With 1 s there are clients that ping only just in time, and brokers that count in whole
	// seconds. A busy machine needs some time to spare.
	p := s.connect("idle", func(o *options) { o.keepAlive = 5 })
	p.subscribe(1, s.topic)
	p.sees("a PINGREQ", func(k packet) bool { return k.kind() == typePingreq })
	p.sees("a PINGRESP", func(k packet) bool { return k.kind() == typePingresp })
	m := message{topic: s.topic, payload: "still here", qos: 1}
	p.publish(m)
	p.expect("the connection is still good", m)
}

func playRequestCommand(s *stage) {
	responder := s.connect("answer")
	responder.subscribe(1, s.topic+"/request")
	request := message{topic: s.topic + "/request", payload: "how much?", qos: 1,
		response: s.topic + "/response"}
	if s.version == v5 {
		request.correlation = "42"
	}
	type result struct {
		message
		error
	}
	answered := make(chan result, 1)
	asker := s.connect("ask").client.(requester)
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	go func() { // the receive below waits for it
		m, err := asker.request(ctx, request)
		answered <- result{m, err}
	}()
	want := request
	if s.version != v5 {
		want.response = "" // both know it
	}
	responder.expect("the request", want)
	reply := message{topic: request.response, payload: "that much", qos: 1,
		correlation: request.correlation}
	responder.publish(reply)
	got := <-answered
	if got.error != nil {
		s.Fatal(got.error)
	}
	if diff := compare([]message{got.message}, []message{reply}); diff != "" {
		s.Errorf("the response\n%s", diff)
	}
}
