package interop

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// scenarios5 are those of what came with 5.0.
var scenarios5 = []scenario{
	{name: "request and response", since: v5, play: playRequest},
	{name: "properties of a message", since: v5, play: playProperties},
	{name: "Message Expiry Interval", since: v5, play: playExpiry},
	{name: "Will Delay Interval", since: v5, play: playWillDelay},
	{name: "Topic Alias from the client", since: v5, needs: canSendAlias, play: playSendAlias},
	{name: "Topic Alias Maximum of the client", since: v5, needs: canReceiveAlias,
		play: playReceiveAlias},
	{name: "No Local and the retain options", since: v5, needs: canSubscribeWith,
		play: playSubscribeOptions},
	{name: "Subscription Identifier", since: v5, needs: canSubscribeID,
		play: playSubscriptionIdentifier},
}

func playRequest(s *stage) {
	asker, responder := s.connect("ask"), s.connect("answer")
	asker.subscribe(1, s.topic+"/response/to me")
	responder.subscribe(1, s.topic+"/request")
	for i := range 3 {
		request := message{topic: s.topic + "/request", payload: "how much?", qos: 1,
			response:    s.topic + "/response/to me",
			correlation: fmt.Sprintf("request %d", i)}
		asker.publish(request)
		got := responder.expect("the request with its Response Topic and Correlation Data",
			request)[0]
		reply := message{topic: got.response, payload: "that much", qos: 1,
			correlation: got.correlation}
		responder.publish(reply)
		asker.expect("the response with the Correlation Data of the request", reply)
	}
}

func playProperties(s *stage) {
	sub, pub := s.connect("sub"), s.connect("pub")
	sub.subscribe(1, s.topic)
	m := message{topic: s.topic, payload: `{"t":21}`, qos: 1,
		user:        [][2]string{{"a", "1"}, {"a", "2"}, {"b", "3"}},
		contentType: "application/json", response: s.topic + "/answers", correlation: "c0rr"}
	pub.publish(m)
	sub.expect("all properties, the User Properties in their order", m)
	m.retain = true
	pub.publish(m)
	sub.expect("all properties again", m.live())
	late := s.connect("late")
	late.subscribe(1, s.topic)
	late.expect("a retained message keeps its properties", m)
	pub.publish(message{topic: s.topic, qos: 1, retain: true})
}

func playExpiry(s *stage) {
	sub, pub := s.connect("sub", resuming), s.connect("pub")
	sub.subscribe(1, s.topic+"/queue")
	long := message{topic: s.topic + "/queue", payload: "lasts a minute", qos: 1, expiry: 60}
	short := message{topic: s.topic + "/queue", payload: "lasts a second", qos: 1, expiry: 1}
	pub.publish(long)
	if got := sub.expect("a message with much time left", long)[0]; got.expiry == 0 ||
		got.expiry > 60 {
		s.Errorf("the message came with Message Expiry Interval %d, want 60 or a little less",
			got.expiry)
	}
	sub.disconnect()

	pub.publish(short, long)
	// The retained one expires last, so once it is gone the one in the queue must be, however a
	// broker rounds.
	marker := message{topic: s.topic + "/a marker", payload: "lasts two seconds", qos: 1, expiry: 2,
		retain: true}
	constant := message{topic: s.topic + "/constant", payload: "lasts", qos: 1, retain: true}
	pub.publish(constant, marker)
	awaitExpiry(s, marker, constant)

	back := s.connect("back", resuming, as(sub.id))
	if _, known := back.session(); !known {
		back.subscribe(1, s.topic+"/queue")
	}
	back.expectSession(true)
	if got := back.expect("only the message that has not expired", long)[0]; got.expiry == 0 ||
		got.expiry >= 60 {
		s.Errorf("the message came with Message Expiry Interval %d, want 60 less the seconds "+
			"that it waited", got.expiry)
	}
	back.expectSilence("the expired message is not delivered")
	pub.publish(message{topic: constant.topic, qos: 1, retain: true})
	back.disconnect()
	s.connect("clean", as(sub.id)).subscribe(0, s.topic+"/other")
}

// awaitExpiry subscribes again and again until only one of two retained messages comes.
func awaitExpiry(s *stage, marker, constant message) {
	again := time.NewTicker(quiet)
	defer again.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-again.C {
		p := s.connect("look")
		p.subscribe(1, marker.topic, constant.topic)
		var got []message
		for indexOf(got, constant) < 0 {
			one := p.in.take(1, patience)
			if len(one) == 0 {
				break
			}
			got = append(got, one...)
		}
		got = append(got, p.in.take(1, quiet)...)
		p.disconnect()
		if indexOf(got, constant) < 0 {
			s.Fatalf("the retained message %v does not come", constant)
		}
		if indexOf(got, marker) < 0 {
			return
		}
	}
	s.Fatalf("the retained message %v with Message Expiry Interval %d does not expire", marker,
		marker.expiry)
}

func playWillDelay(s *stage) {
	for delay := time.Second; !playWillDelayOf(s, delay); delay *= 2 {
		if delay > 10*time.Second {
			s.Fatalf("to come back takes longer than %v", delay)
		}
	}
}

// playWillDelayOf returns false if the machine was too slow to come back within the delay, so that
// nothing was seen.
func playWillDelayOf(s *stage, delay time.Duration) bool {
	topic := fmt.Sprintf("%s/will/%v", s.topic, delay)
	will := func(of string) message {
		return message{topic: topic, payload: "will of " + of, qos: 1}
	}
	delayed := func(o *options) { o.willDelay, o.expiry = uint32(delay/time.Second), 60 }
	watcher := s.connect("watch")
	watcher.subscribe(1, topic)
	back := s.connect("back", willing(will("who comes back")), delayed)
	back.subscribe(1, s.topic+"/none")
	dying := s.connect("dying", willing(will("who does not")), delayed)
	dying.subscribe(1, s.topic+"/none")

	start := time.Now()
	back.cut()
	again := s.connect("again", resuming, as(back.id))
	again.subscribe(1, s.topic+"/none")
	if time.Since(start) >= delay {
		return false
	}
	start = time.Now()
	dying.cut()
	watcher.expect("the will after its delay", will("who does not"))
	if took := time.Since(start); took < delay-100*time.Millisecond {
		s.Errorf("the will came after %v, and its Will Delay Interval is %v", took, delay)
	}
	watcher.expectSilence("the will of who came back in time is not sent")
	return true
}

func playSendAlias(s *stage) {
	sub, pub := s.connect("sub"), s.connect("pub")
	sub.subscribe(1, s.topic)
	ms := numbered(s.topic, 1, 3)
	for i := range ms {
		ms[i].alias = 1
	}
	pub.publish(ms...)
	sub.expect("messages whose topic came as an alias", numbered(s.topic, 1, 3)...)
	for _, tap := range pub.taps {
		if slices.ContainsFunc(tap.passed(), func(k packet) bool {
			return !k.fromBroker && k.kind() == typePublish && publishTopicLength(k) == 0
		}) {
			return
		}
	}
	s.Error("the client has sent no PUBLISH without Topic Name, so this tests nothing")
}

func playReceiveAlias(s *stage) {
	sub, pub := s.connect("sub", func(o *options) { o.aliases = 2 }), s.connect("pub")
	sub.subscribe(1, s.topic+"/#")
	var want []message
	for range 3 {
		for _, tail := range []string{"/a", "/b", "/c"} {
			want = append(want, message{topic: s.topic + tail, payload: "at " + tail, qos: 1})
		}
	}
	for _, m := range want {
		pub.publish(m)
		sub.expect("the message under its full Topic Name", m)
	}
	aliased := 0
	for _, k := range sub.taps[0].passed() {
		if k.fromBroker && k.kind() == typePublish && publishTopicLength(k) == 0 {
			aliased++
		}
	}
	s.Logf("the broker used an alias instead of the topic in %d of %d messages", aliased, len(want))
}

func playSubscribeOptions(s *stage) {
	self, other := s.connect("self"), s.connect("other")
	self.subscribeWith(subscription{filter: s.topic + "/local", qos: 1, noLocal: true})
	other.subscribe(1, s.topic+"/local")
	m := message{topic: s.topic + "/local", payload: "to the others", qos: 1}
	self.publish(m)
	other.expect("what someone else published", m)
	self.expectSilence("No Local keeps one's own messages away")
	other.publish(m)
	self.expect("what someone else published", m)
	other.expect("what it published itself, without No Local", m)

	r := message{topic: s.topic + "/retained", payload: "kept", qos: 1, retain: true}
	self.subscribeWith(subscription{filter: r.topic, qos: 1, retainAsPublished: true})
	other.publish(r)
	self.expect("Retain As Published keeps RETAIN 1", r)
	other.subscribeWith(subscription{filter: r.topic, qos: 1, retainHandling: 2})
	other.expectSilence("Retain Handling 2 sends no retained message")

	late := s.connect("late")
	once := subscription{filter: r.topic, qos: 1, retainHandling: 1}
	late.subscribeWith(once)
	late.expect("Retain Handling 1 sends the retained message for a new subscription", r)
	// which sends no SUBSCRIBE for what it knows to be subscribed
	if s.program.name() != mqttJS().name() {
		late.subscribeWith(once)
		late.expectSilence("Retain Handling 1 sends nothing for a subscription that exists")
	}
	other.publish(message{topic: r.topic, qos: 1, retain: true})
}

func playSubscriptionIdentifier(s *stage) {
	sub, pub := s.connect("sub"), s.connect("pub")
	sub.subscribeWith(subscription{filter: s.topic + "/+", qos: 1, identifier: 268435455})
	m := message{topic: s.topic + "/a", payload: "x", qos: 1}
	pub.publish(m)
	m.identifiers = []int{268435455}
	sub.expect("the Subscription Identifier of the subscription", m)
}

// playCrossing lets every client publish to all others, so that messages cross programs and
// versions. It needs a stage for each of them, and has one subtest for each publisher.
func playCrossing(t *testing.T, programs []program, broker, run string) {
	topic := run + "/crossing"
	var peers []*peer
	for _, p := range programs {
		for _, v := range p.versions() {
			s := &stage{T: t, program: p, version: v, broker: broker, topic: topic, run: run}
			c := s.connect("x")
			c.role = p.name() + " " + v.String()
			c.subscribe(2, topic+"/#")
			peers = append(peers, c)
		}
	}
	for _, from := range peers {
		t.Run(from.role, func(t *testing.T) {
			var ms []message
			for qos := range byte(3) {
				m := message{topic: topic + "/" + from.role,
					payload: fmt.Sprintf("from %s at %d", from.role, qos), qos: qos}
				if from.version == v5 {
					m.user = [][2]string{{"from", strings.ReplaceAll(from.role, " ", "-")}}
				}
				ms = append(ms, m)
			}
			for _, m := range ms {
				from.publish(m)
				var deaf []string
				for _, to := range peers {
					want := m
					if to.version != v5 {
						want.user = nil // earlier versions have no properties
					}
					if diff := compare(to.in.take(1, patience), []message{want}); diff != "" {
						deaf = append(deaf, to.role+":\n"+diff)
					}
				}
				if len(deaf) > 0 {
					t.Fatalf("at QoS %d\n%s", m.qos, strings.Join(deaf, "\n"))
				}
			}
		})
	}
}
