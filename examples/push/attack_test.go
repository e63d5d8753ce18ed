package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A target is a service with a user, ann, whose inbox and groups nobody else may read or write, and
// with eve, who tries. They share no group. ann owns the device door.
type target struct {
	*bench
	ann, eve string // tokens
	name     string // of eve
	phone    *try.Client
}

func newTarget(t *testing.T) *target {
	b := start(t)
	x := &target{bench: b, ann: b.account("users/ann"), eve: b.account("users/eve"), name: "eve"}
	b.account("devices/door")
	b.account("users/bob")
	for _, path := range []string{"groups/birds/members/ann", "groups/birds/members/bob",
		"groups/fish/members/eve", "devices/door/owners/ann"} {
		b.must("PUT", "/v1/"+path, nil)
	}
	x.phone = b.phone("phone", "ann", x.ann)
	return x
}

// The topics of ann, and of others than eve.
var foreign = []string{"users/ann", "groups/birds", "devices/door", "devices/door/events",
	"users/bob", "service/changed", "users/ann/weather/9", "groups/birds/x/1", "service/auth"}

// attempts are ways to read or write what is ann's. Each one returns what happened if it was not
// refused. What it published is found by its payload.
var attempts = []struct {
	name string
	try  func(x *target, c *try.Client) string
}{
	{"a SUBSCRIBE with wildcards", subscribes("#", "+/#", "users/#", "users/+", "+/ann", "groups/#",
		"groups/+", "+/+", "+/birds/#", "users/ann/#", "users/ann/+/+", "devices/+/events", "/#")},
	{"a SUBSCRIBE to a topic", subscribes(foreign...)},
	{"a shared SUBSCRIBE", subscribes("$share/a/users/ann", "$share/a/#", "$share/users/ann",
		"$share/eve/groups/birds", "$share/a/users/eve")},
	{"a SUBSCRIBE to what the server keeps for itself", subscribes("$SYS/#", "$local/#",
		"$bridge/#", "$delayed/1/users/ann")},
	{"a SUBSCRIBE with tricks in the name", subscribes("users/ann/", "users//ann", "Users/ann",
		"users/eve/../ann", "users/eve/#/ann", "users/ANN", "/users/ann", "users/%61nn",
		"groups/birds\u200b", "users/eve+")},
	{"a PUBLISH", publishes(foreign...)},
	{"a PUBLISH to what the server keeps for itself", publishes("$SYS/x", "$share/a/users/ann",
		"$delayed/1/users/ann", "$local/x", "$bridge/peer")},
	{"a PUBLISH with tricks in the name", publishes("users/ann/", "users//ann", "users/eve/../ann",
		"/users/ann", "users/eve/weather/1", "groups/fish/weather/1", "users", "users/", "groups/")},
	{"a retained PUBLISH", func(x *target, c *try.Client) string {
		c.Send(&packets.Publish{Topic: []byte("users/ann"), Payload: []byte("evil"),
			QoS: packets.QoS1, PacketID: 9, Retain: true})
		return closedWith(c, packets.RetainNotSupported)
	}},
	{"a PUBLISH with a Topic Alias of a foreign topic", func(x *target, c *try.Client) string {
		alias := packets.Properties(nil).AppendUint(packets.TopicAlias, 1)
		for i, topic := range []string{"users/ann", ""} {
			c.Send(&packets.Publish{Topic: []byte(topic), Payload: []byte("evil"),
				QoS: packets.QoS1, PacketID: uint16(i + 20), Properties: alias})
			if ack := c.Receive().(*packets.Ack); ack.Code != packets.NotAuthorized {
				return ack.Code.String()
			}
		}
		return ""
	}},
	{"a PUBLISH that says it is from somebody else", func(x *target, c *try.Client) string {
		p := packets.Properties(nil).AppendUser("from", "users/ann").AppendUser("id", "1").
			AppendUser("priority", "high")
		c.Send(&packets.Publish{Topic: []byte("groups/fish"), Payload: []byte("x"), Properties: p})
		m := c.Message()
		if property(m, "from") != "users/"+x.name || property(m, "priority") != "" {
			return "it came from " + property(m, "from")
		}
		return ""
	}},
	{"a Response Topic", func(x *target, c *try.Client) string {
		p := packets.Properties(nil).AppendText(packets.ResponseTopic, "users/ann")
		c.Send(&packets.Publish{Topic: []byte("service/changed"), Payload: []byte("evil"),
			QoS: packets.QoS1, PacketID: 30, Properties: p})
		if ack := c.Receive().(*packets.Ack); ack.Code != packets.NotAuthorized {
			return ack.Code.String()
		}
		return ""
	}},
}

func subscribes(filters ...string) func(*target, *try.Client) string {
	return func(x *target, _ *try.Client) string {
		for _, f := range filters { // some end the connection
			c := x.client()
			c.Send(&packets.Subscribe{PacketID: 1,
				Subscriptions: []packets.Subscription{{Filter: f, QoS: 1}}})
			if ack, ok := c.Receive().(*packets.Suback); ok && !ack.Codes[0].Failed() {
				return "it was granted for " + f
			}
			c.Close()
		}
		return ""
	}
}

func publishes(topics ...string) func(*target, *try.Client) string {
	return func(x *target, _ *try.Client) string {
		for _, topic := range topics {
			for qos := range packets.QoS(3) {
				c := x.client()
				c.Send(&packets.Publish{Topic: []byte(topic), Payload: []byte("evil"), QoS: qos,
					PacketID: uint16(min(qos, 1))})
				if ack, ok := answer(c, qos).(*packets.Ack); ok && !ack.Code.Failed() && qos > 0 {
					return "it was accepted for " + topic
				}
				c.Close()
			}
		}
		return ""
	}
}

// answer returns the answer to a PUBLISH, and at QoS 0 that of a PINGREQ behind it.
func answer(c *try.Client, qos packets.QoS) packets.Packet {
	if qos == 0 {
		c.Send(&packets.Pingreq{})
	}
	return c.Receive()
}

// client is a new client of eve's.
func (x *target) client() *try.Client {
	x.t.Helper()
	p := connect("", x.name, x.eve)
	p.CleanStart, p.Properties = true, nil
	c, ack := try.Dial(x.t, x.devices, p)
	if ack.Code.Failed() {
		x.t.Fatalf("eve was refused: %v", ack.Code)
	}
	return c
}

// closedWith says what was not as it should: the connection ends with a code.
func closedWith(c *try.Client, code packets.ReasonCode) string {
	if d, ok := c.Receive().(*packets.Disconnect); !ok || d.Code != code {
		return "the connection does not end"
	}
	return ""
}

func TestNobodyGetsAtForeignTopics(t *testing.T) {
	x := newTarget(t)
	for i, a := range attempts {
		t.Run(a.name, func(t *testing.T) {
			x.name = fmt.Sprint("eve", i) // each with a rate of her own
			x.eve = x.account("users/" + x.name)
			x.must("PUT", "/v1/groups/fish/members/"+x.name, nil)
			if what := a.try(x, x.client()); what != "" {
				t.Error(what)
			}
		})
	}
	x.unharmed()
}

// unharmed checks that ann's phone has got nothing of what eve has tried, and still gets what it
// should.
func (x *target) unharmed() {
	x.t.Helper()
	for _, to := range []string{"users/ann", "groups/birds"} {
		x.push(to, "mark")
		if p := x.phone.Message(); string(p.Payload) != "mark" {
			x.t.Errorf("ann's phone got %s %q", p.Topic, p.Payload)
		}
	}
}

// refused are CONNECTs that must not succeed.
func refused(x *target) map[string]*packets.Connect {
	old := x.must("POST", "/v1/users/ann/sessions", nil)
	x.must("DELETE", "/v1/sessions/"+old["id"].(string), nil)
	short := strings.ToLower(x.ann)
	bridge := connect("x", "service", "not the key")
	will := func(topic string) *packets.Connect {
		p := connect("w", "eve", x.eve)
		p.Will = &packets.Will{Topic: topic, Payload: []byte("evil")}
		return p
	}
	retained := will("groups/fish")
	retained.Will.Retain = true
	utf := connect("x", "ann", "")
	utf.HasPassword, utf.Password = true, []byte{0xff, 0xfe, 0}
	long := connect("x", "ann", strings.Repeat("A", 5000))
	return map[string]*packets.Connect{
		"no token":                       connect("x", "ann", ""),
		"the token of another user":      connect("phone", "ann", x.eve),
		"the account of another user":    connect("phone", "users/ann", x.eve),
		"a revoked token":                connect("phone", "ann", old["token"].(string)),
		"a token in other letters":       connect("phone", "ann", short),
		"a part of a token":              connect("phone", "ann", x.ann[:25]),
		"a token with more behind":       connect("phone", "ann", x.ann+" "),
		"a token that is not UTF-8":      utf,
		"a token that is too long":       long,
		"the key of the backend as ann":  connect("x", "ann", testKey),
		"the key without a name":         connect("x", "", testKey),
		"the peer without the key":       bridge,
		"the link of a bridge":           connect("$bridge/peer", "$bridge", "x"),
		"SQL in the token":               connect("x", "", "' OR '1'='1"),
		"SQL in the name":                connect("x", "' OR 1=1 --", x.eve),
		"a Will for another user":        will("users/ann"),
		"a Will for another group":       will("groups/birds"),
		"a Will for a device":            will("devices/door/events"),
		"a Will for the other instances": will("service/changed"),
		"a retained Will":                retained,
	}
}

func TestNobodyConnectsAsSomebodyElse(t *testing.T) {
	x := newTarget(t)
	for name, p := range refused(x) {
		if _, ack := try.Dial(t, x.devices, p); !ack.Code.Failed() {
			t.Errorf("%s: the CONNECT was accepted", name)
		}
	}
	x.unharmed()
}

// A Client Identifier belongs to an account, or to those who show their token in-band.
func TestNobodyTakesASessionOver(t *testing.T) {
	x := newTarget(t)
	for _, id := range []string{"phone", "users/ann/phone", "inband/phone", "ann/phone"} {
		c, ack := try.Dial(t, x.devices, connect(id, x.name, x.eve))
		if ack.Code.Failed() || ack.SessionPresent {
			t.Errorf("%s: %v, Session Present %v", id, ack.Code, ack.SessionPresent)
		}
		c.Close()
	}
	x.unharmed() // nobody has taken it over

	mine, _ := x.inbandPhone("tablet", x.ann)
	x.push("users/ann", "to both")
	mine.Want("users/ann", "to both")
	x.phone.Want("users/ann", "to both")
	mine.Send(&packets.Disconnect{})
	mine.Gone()
	x.push("users/ann", "waits")
	x.phone.Want("users/ann", "waits")
	for name, token := range map[string]string{"eve's token": x.eve, "no token": "",
		"a wrong token": "x"} {
		c, ack := try.Dial(t, x.inband, connect("tablet", "", ""))
		if !ack.SessionPresent {
			t.Errorf("%s: the Session is not there", name)
		}
		c.Send(&packets.Publish{Topic: []byte(authTopic), Payload: []byte(token)})
		if what := closedWith(c, packets.NotAuthorized); what != "" {
			t.Errorf("%s: %s", name, what)
		}
	}
	mine, ack := x.inbandPhone("tablet", x.ann)
	if !ack.SessionPresent {
		t.Error("ann has lost her Session")
	}
	mine.Want("users/ann", "waits")
}

// A client in-band gets and does nothing before it has shown its token.
func TestInbandBeforeTheToken(t *testing.T) {
	x := newTarget(t)
	packet := func(p packets.Packet) func(*try.Client) { return func(c *try.Client) { c.Send(p) } }
	for name, send := range map[string]func(*try.Client){
		"SUBSCRIBE": packet(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "#"}}}),
		"PUBLISH": packet(&packets.Publish{Topic: []byte("users/ann"), Payload: []byte("evil")}),
		"a retained token": packet(&packets.Publish{Topic: []byte(authTopic), Retain: true,
			Payload: []byte(x.eve)}),
		"PINGREQ": packet(&packets.Pingreq{}),
		"a token and more": packet(&packets.Publish{Topic: []byte(authTopic),
			Payload: []byte(x.ann + "\n")}),
		"a long token": packet(&packets.Publish{Topic: []byte(authTopic),
			Payload: make([]byte, maxConnect)}),
	} {
		p := connect("early", "", "")
		p.Will = &packets.Will{Topic: "users/ann", Payload: []byte("evil")}
		c, _ := try.Dial(t, x.inband, p)
		send(c)
		c.Gone()
		if t.Failed() {
			t.Fatal(name)
		}
	}
	x.unharmed()
}

// A client of 3.1.1 that can only publish at QoS 0, as many on microcontrollers.
func TestInbandOfAnOldClient(t *testing.T) {
	x := newTarget(t)
	nc, err := net.Dial("tcp", x.inband)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	r := packets.NewReader(nc, packets.Limits{})
	for _, p := range []packets.Packet{
		&packets.Connect{Version: packets.V311, ClientID: "esp32", KeepAlive: 15},
		&packets.Publish{Topic: []byte(authTopic), Payload: []byte(x.ann)},
		&packets.Pingreq{},
	} {
		wire, err := p.Append(nil, packets.V311)
		if err == nil {
			_, err = nc.Write(wire)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []packets.Type{packets.TypeConnack, packets.TypePingresp,
		packets.TypePublish} {
		p, err := r.ReadPacket()
		if err != nil || p.Type() != want {
			t.Fatalf("%v, %v came, want %v", p, err, want)
		}
		if want == packets.TypePingresp {
			x.push("users/ann", "hello")
			x.phone.Want("users/ann", "hello")
		}
	}
}

// requests are over HTTP, as eve if no token is given.
func TestNobodyGetsInOverHTTP(t *testing.T) {
	x := newTarget(t)
	type request struct {
		token, method, path string
		body                any
		want                int
	}
	list := []request{
		{"", "GET", "/v1/me", nil, 401},
		{"wrong", "GET", "/v1/me", nil, 401},
		{strings.Repeat("x", 10000), "GET", "/v1/me", nil, 401},
		{x.eve, "GET", "/v1/users/ann", nil, 403},
		{x.eve, "GET", "/v1/groups/birds", nil, 403},
		{x.eve, "PUT", "/v1/groups/birds/members/eve", nil, 403},
		{x.eve, "DELETE", "/v1/groups/birds/members/ann", nil, 403},
		{x.eve, "PUT", "/v1/devices/door/owners/eve", nil, 403},
		{x.eve, "POST", "/v1/users/ann/sessions", nil, 403},
		{x.eve, "DELETE", "/v1/users/ann", nil, 403},
		{x.eve, "DELETE", "/v1/sessions/1", nil, 403},
		{x.eve, "POST", "/v1/push", object{"to": "users/ann", "body": "evil"}, 403},
		{x.eve, "POST", "/v1/push", object{"to": "groups/birds", "body": "evil"}, 403},
		{x.eve, "POST", "/v1/push", object{"to": "devices/door", "body": "evil"}, 403},
		{x.eve, "POST", "/v1/push", object{"to": "users/nobody", "body": "evil"}, 403},
		{x.eve, "POST", "/v1/push", object{"to": "groups/fish", "collapse": "a"}, 403},
		{x.eve, "POST", "/v1/push", object{"to": "service/changed", "body": "users/ann"}, 400},
		{x.eve, "POST", "/v1/push", object{"to": "users/eve/../ann", "body": "evil"}, 400},
		{testKey, "GET", "/v1/me", nil, 403},
		{x.eve, "GET", "/gateway/retained?filter=%23", nil, 403},
		{x.eve, "GET", "/gateway/poll?filter=users/ann", nil, 403},
		{x.eve, "GET", "/gateway/poll?filter=%23", nil, 403},
		{x.eve, "GET", "/gateway/poll?filter=groups/birds", nil, 403},
		{x.eve, "GET", "/gateway/events?filter=users/%2B", nil, 403},
		{x.eve, "GET", "/gateway/events?filter=$share/a/users/ann", nil, 400},
		{x.eve, "POST", "/gateway/topics/users/ann", "evil", 403},
		{x.eve, "POST", "/gateway/topics/users/ann?retain=1", "evil", 400},
		{x.eve, "POST", "/gateway/topics?topic=users/ann", "evil", 403},
		{x.eve, "POST", "/gateway/topics/service/changed", "users/ann", 403},
		{testKey, "GET", "/gateway/poll?filter=users/ann", nil, 401},
	}
	for _, q := range list {
		status, text := x.send(q.token, q.method, q.path, q.body)
		if status != q.want {
			t.Errorf("%s %s %v: %d %s, want %d", q.method, q.path, q.body, status, text, q.want)
		}
	}
	x.unharmed()
}

// A reader of the gateway loses a stream with the right to it.
func TestGatewayForgetsWhoIsRevoked(t *testing.T) {
	x := newTarget(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	reader := ""
	for _, tt := range []struct {
		name string
		end  func()
	}{
		{"groups/birds", func() { x.must("DELETE", "/v1/groups/birds/members/ann", nil) }},
		{"users/ann", func() { // last, as the phone goes on with its own session
			if status, _ := x.ask(reader, "DELETE", "/v1/me/session", nil); status != 204 {
				t.Fatal(status)
			}
		}},
	} {
		name := tt.name
		q, err := http.NewRequestWithContext(ctx, "GET", x.url+"/gateway/events?filter="+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		reader = x.must("POST", "/v1/users/ann/sessions", nil)["token"].(string)
		q.Header.Set("Authorization", "Bearer "+reader)
		resp, err := http.DefaultClient.Do(q)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v %v", name, resp, err)
		}
		x.push(name, "for ann")
		x.phone.Want(name, "for ann")
		tt.end()
		x.push(name, "a secret")
		all, _ := io.ReadAll(resp.Body) // it may be cut
		resp.Body.Close()
		if ctx.Err() != nil || strings.Count(string(all), "data:") != 1 {
			t.Errorf("%s: %v, the stream has %s", name, ctx.Err(), all)
		}
	}
}

// What is too long, not UTF-8, HTML or a path is refused with a reason.
func TestBadInput(t *testing.T) {
	x := newTarget(t)
	long := strings.Repeat("a", 65)
	for _, name := range []string{long, "a/b", "..", "%2e%2e%2fann", "a+b", "a%23", "%3Cb%3E",
		"%ff%fe", "a%00b", "a%20b", "-", "%E2%80%8B", "a%0Ab", "$SYS"} {
		for _, path := range []string{"/v1/users/" + name, "/v1/groups/" + name + "/members/ann",
			"/v1/groups/birds/members/" + name, "/v1/devices/" + name} {
			status, text := x.send(testKey, "PUT", path, nil)
			if status != 400 && status != 404 && status != 405 {
				t.Errorf("PUT %s was answered with %d %s", path, status, text)
			}
		}
	}
	for body, want := range map[string]int{
		`{"to":"users/ann","body":"` + strings.Repeat("x", maxPayload+1) + `"}`: 400,
		`"` + strings.Repeat("x", maxBody) + `"`:                                413,
		"{\"to\":\"users/ann\",\"body\":\"\xff\"}":                              400,
		`{"to":"users/ann","bodi":"x"}`:                                         400,
		`{"to":"users/ann"} x`:                                                  400,
		`{"to":"users/ann"`:                                                     400,
		`{"to":"users/ann","qos":3}`:                                            400,
		`{"to":"users/ann","qos":-1}`:                                           400,
		`{"to":"users/ann","ttl":-1}`:                                           400,
		`{"to":"users/ann","ttl":99999999}`:                                     400,
		`{"to":"users/ann","ttl":1e99}`:                                         400,
		`{"to":"users/ann","priority":"<b>"}`:                                   400,
		`{"to":"users/ann","collapse":"a/b"}`:                                   400,
		`{"to":"users/ann","content_type":"\u0000"}`:                            400,
		`{"to":"users/+"}`:                                                      400,
		`{"to":"#"}`:                                                            400,
		`{"to":"users/ann/x"}`:                                                  400,
		`{"to":""}`:                                                             400,
		`{}`:                                                                    400,
		``:                                                                      400,
		`null`:                                                                  400,
		`[1]`:                                                                   400,
		`{"to":"users/nobody"}`:                                                 404,
		`[` + strings.Repeat(`{},`, maxPushes) + `{}]`:                          400,
		strings.Repeat("[", 100000):                                             400,
	} {
		status, answer := x.ask(testKey, "POST", "/v1/push", body)
		if text, _ := answer["error"].(string); status != want || text == "" || len(text) > 500 {
			t.Errorf("%.60q was answered with %d %v, want %d", body, status, answer, want)
		}
	}
	for body, want := range map[string]int{`{"ttl":-1}`: 400, `{"ttl":99999999}`: 400,
		`{"label":"` + strings.Repeat("x", 101) + `"}`: 400, `{"label":1}`: 400} {
		if status, text := x.send(testKey, "POST", "/v1/users/ann/sessions", body); status != want {
			t.Errorf("%.60q was answered with %d %s, want %d", body, status, text, want)
		}
	}
	x.unharmed()
}
