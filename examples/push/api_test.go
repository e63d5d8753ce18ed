package main

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// openapi.json has each route and no other one, and its schemas have the fields of the types.
func TestOpenAPIDescribesTheRoutes(t *testing.T) {
	var doc struct {
		Paths      map[string]map[string]any
		Components struct {
			Schemas map[string]struct{ Properties map[string]any }
		}
	}
	if err := json.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	var described, served []string
	for path, methods := range doc.Paths {
		for method := range methods {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	for _, r := range routes {
		served = append(served, r.pattern)
	}
	slices.Sort(described)
	slices.Sort(served)
	if !slices.Equal(described, served) {
		t.Errorf("openapi.json describes\n%s\nand the routes are\n%s",
			strings.Join(described, "\n"), strings.Join(served, "\n"))
	}
	for name, v := range map[string]any{"Session": session{}, "Account": account{},
		"Member": member{}, "Group": group{}, "Me": me{}, "Push": push{}, "Device": device{},
		"Result": result{}, "AskSession": askSession{}} {
		fields := map[string]bool{}
		for i := range reflect.TypeOf(v).NumField() {
			tag, _, _ := strings.Cut(reflect.TypeOf(v).Field(i).Tag.Get("json"), ",")
			fields[tag] = true
		}
		have := doc.Components.Schemas[name].Properties
		for f := range have {
			if !fields[f] {
				t.Errorf("%s of openapi.json has %s, which the type has not", name, f)
			}
		}
		if len(have) != len(fields) {
			t.Errorf("%s has %d fields, and %d in openapi.json", name, len(fields), len(have))
		}
	}
}

// A session ends alone: by its time, by a refresh, when it is revoked, and when its owner signs
// out. Its connections end with it.
func TestSessionsEndOneByOne(t *testing.T) {
	b := start(t)
	first := b.account("users/ann")
	second := b.must("POST", "/v1/users/ann/sessions", object{"label": "tablet"})
	token := second["token"].(string)
	phone, tablet := b.phone("phone", "ann", first), b.phone("tablet", "ann", token)

	b.must("DELETE", "/v1/sessions/"+second["id"].(string), nil)
	if d, ok := tablet.Receive().(*packets.Disconnect); !ok || d.Code != packets.NotAuthorized {
		t.Fatal("a client stays whose session is revoked")
	}
	if _, ack := try.Dial(t, b.devices, connect("tablet", "ann", token)); ack.Code !=
		packets.BadUserNameOrPassword {
		t.Fatalf("a revoked token was answered with %v", ack.Code)
	}
	if status, _ := b.ask(token, "GET", "/v1/me", nil); status != http.StatusUnauthorized {
		t.Fatalf("a revoked token was answered with %d", status)
	}
	b.push("users/ann", "still there")
	phone.Want("users/ann", "still there")

	status, next := b.ask(first, "POST", "/v1/me/refresh", nil)
	if status != http.StatusCreated {
		t.Fatalf("refresh was answered with %d", status)
	}
	b.phone("phone", "ann", next["token"].(string)) // takes over
	if status, _ := b.ask(next["token"].(string), "DELETE", "/v1/me/session",
		nil); status != http.StatusNoContent {
		t.Fatalf("signing out was answered with %d", status)
	}
	left := b.must("GET", "/v1/users/ann", nil)["sessions"].([]any)
	if len(left) != 1 { // the first one, for a minute
		t.Fatalf("ann has the sessions %v", left)
	}
	short := b.must("POST", "/v1/users/ann/sessions", object{"ttl": 2})
	brief := b.phone("brief", "ann", short["token"].(string))
	if d, ok := brief.Receive().(*packets.Disconnect); !ok ||
		d.Code != packets.MaximumConnectTime {
		t.Fatal("a client stays whose session has expired")
	}
}

// A push with a collapse key takes the place of those that were not delivered.
func TestCollapse(t *testing.T) {
	b := start(t)
	token := b.account("users/ann")
	b.must("PUT", "/v1/groups/birds/members/ann", nil)
	phone := b.phone("phone", "ann", token)
	weather := func(to, body string) {
		b.must("POST", "/v1/push", object{"to": to, "body": body, "collapse": "weather"})
	}
	weather("users/ann", "rain")
	phone.Want("users/ann/weather/1", "rain")
	phone.Send(&packets.Disconnect{})
	phone.Gone()
	weather("users/ann", "snow")
	weather("groups/birds", "hail")
	b.restart()
	b.push("users/ann", "news")
	weather("groups/birds", "fog")
	weather("users/ann", "sun")
	phone = b.phone("phone", "ann", token)
	phone.Want("users/ann", "news")
	phone.Want("groups/birds/weather/2", "fog")
	phone.Want("users/ann/weather/3", "sun")
}

// What a push asks for comes with the message, and an expired one does not come.
func TestWhatAPushSays(t *testing.T) {
	b := start(t)
	token := b.account("users/ann")
	phone := b.phone("phone", "ann", token)
	for qos := range 3 {
		b.must("POST", "/v1/push", object{"to": "users/ann", "body": "ü", "qos": qos,
			"ttl": 60, "priority": "high", "content_type": "text/plain"})
		p := phone.Message()
		expiry, _ := p.Properties.Uint(packets.MessageExpiryInterval)
		kind, _ := p.Properties.Text(packets.ContentType)
		if int(p.QoS) != qos || string(p.Payload) != "ü" || expiry != 60 ||
			kind != "text/plain" || property(p, "priority") != "high" ||
			property(p, "from") != "service" || len(property(p, "id")) != 16 {
			t.Fatalf("QoS %d came as %+v", qos, p)
		}
	}
	status, text := b.send(testKey, "POST", "/v1/push", []object{{"to": "users/ann", "body": "1"},
		{"to": "users/nobody"}, {"to": "users/ann", "body": "2"}})
	if status != http.StatusOK || strings.Count(text, "no such account") != 1 {
		t.Fatalf("a list was answered with %d %s", status, text)
	}
	phone.Want("users/ann", "1")
	phone.Want("users/ann", "2")
}

// The result of a push says what became of it at each client, later too.
func TestResultOfEachDevice(t *testing.T) {
	b := start(t)
	token := b.account("users/ann")
	tablet := b.phone("tablet", "ann", token)
	tablet.Send(&packets.Disconnect{})
	tablet.Gone()
	phone := b.phone("phone", "ann", token)
	phone.Subscribe("users/ann", 1) // besides the subscription that the server has made
	done := make(chan object, 1)
	go func() {
		done <- b.must("POST", "/v1/push?wait=200ms", object{"to": "users/ann", "body": "x"})
	}()
	phone.Want("users/ann", "x")
	r := <-done
	want := func(r object, phone, tablet string) {
		t.Helper()
		got := map[string]string{}
		for _, d := range r["devices"].([]any) {
			got[d.(object)["client_id"].(string)] = d.(object)["state"].(string)
		}
		if len(got) != 2 || got["phone"] != phone || got["tablet"] != tablet {
			t.Fatalf("the phone %s and the tablet %s it, got %v", phone, tablet, got)
		}
	}
	want(r, "acknowledged", "queued")
	if r["matched"] != 2.0 || r["acknowledged"] != 1.0 {
		t.Fatalf("the result is %v", r)
	}
	tablet = b.phone("tablet", "ann", token)
	tablet.Want("users/ann", "x")
	tablet.Send(&packets.Pingreq{})
	tablet.Receive() // the acknowledgement was handled
	want(b.must("GET", "/v1/push/"+r["id"].(string), nil), "acknowledged", "acknowledged")

	// It knows why a message is lost, which the broker finds out when the client comes back.
	tablet.Send(&packets.Disconnect{})
	tablet.Gone()
	r = b.must("POST", "/v1/push?wait=0s", object{"to": "users/ann", "body": "y", "ttl": 1})
	phone.Want("users/ann", "y")
	b.must("POST", "/v1/push?wait=2s", object{"to": "users/ann", "body": "z"}) // nobody acknowledges
	phone.Want("users/ann", "z")
	tablet = b.phone("tablet", "ann", token)
	tablet.Want("users/ann", "z")
	tablet.Send(&packets.Disconnect{})
	tablet.Gone()
	want(b.must("GET", "/v1/push/"+r["id"].(string), nil), "acknowledged", "lost")

	// It waits no longer than it has to.
	began := time.Now()
	r = b.must("POST", "/v1/push?wait=30s", object{"to": "users/ann", "body": "z", "qos": 0})
	if r["lost"] != 1.0 || time.Since(began) > 25*time.Second {
		t.Fatalf("after %v: %v", time.Since(began), r)
	}
	if status, _ := b.ask(testKey, "GET", "/v1/push/unknown", nil); status != 404 {
		t.Fatalf("an unknown push was answered with %d", status)
	}
}

// Joining and leaving change what a client gets at once.
func TestJoinAndLeaveAtOnce(t *testing.T) {
	b := start(t)
	phone := b.phone("phone", "ann", b.account("users/ann"))
	slowest := time.Duration(0)
	for range 20 {
		began := time.Now()
		b.must("PUT", "/v1/groups/birds/members/ann", nil)
		slowest = max(slowest, time.Since(began))
		b.push("groups/birds", "in")
		phone.Want("groups/birds", "in")
		began = time.Now()
		b.must("DELETE", "/v1/groups/birds/members/ann", nil)
		slowest = max(slowest, time.Since(began))
		b.push("groups/birds", "out")
		b.push("users/ann", "mark")
		phone.Want("users/ann", "mark")
	}
	t.Logf("the slowest of 40 changes took %v", slowest)
}

// The account goes with all that it had.
func TestDeleteAccount(t *testing.T) {
	b := start(t)
	token := b.account("users/ann")
	b.account("devices/door")
	b.must("PUT", "/v1/groups/birds/members/ann", nil)
	b.must("PUT", "/v1/devices/door/owners/ann", nil)
	phone := b.phone("phone", "ann", token)
	b.must("DELETE", "/v1/devices/door", nil)
	if a := b.must("GET", "/v1/users/ann", nil); len(a["devices"].([]any)) != 0 {
		t.Fatalf("ann still owns %v", a["devices"])
	}
	b.must("DELETE", "/v1/users/ann", nil)
	if d, ok := phone.Receive().(*packets.Disconnect); !ok ||
		d.Code != packets.AdministrativeAction {
		t.Fatal("a client of a deleted user stays")
	}
	phone, ack := try.Dial(t, b.devices, connect("phone", "ann", b.account("users/ann")))
	if ack.SessionPresent {
		t.Fatal("the Session of a deleted user is there")
	}
	b.push("groups/birds", "not for the new ann")
	b.push("users/ann", "mark")
	phone.Want("users/ann", "mark")
}
