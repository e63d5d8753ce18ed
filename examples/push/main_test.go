package main

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// The way of a message through the service, in eight steps, for clients that connect with a
// password and for clients that publish their token.
func TestEightSteps(t *testing.T) {
	dial := map[string]func(*bench, string) (*try.Client, *packets.Connack){
		"by password": func(b *bench, token string) (*try.Client, *packets.Connack) {
			return try.Dial(b.t, b.devices, connect("phone", "", token))
		},
		"in-band": func(b *bench, token string) (*try.Client, *packets.Connack) {
			return b.inbandPhone("phone", token)
		},
	}
	for name, dial := range dial {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eightSteps(start(t), dial)
		})
	}
}

func eightSteps(b *bench, dial func(*bench, string) (*try.Client, *packets.Connack)) {
	t := b.t
	// 1. The API issues a session for a user.
	token := b.account("users/ann")
	other := b.phone("phone", "bob", b.account("users/bob"))

	// 2. The user's phone connects, 3. and shows the session, which the service checks.
	phone, ack := dial(b, token)
	if ack.Code.Failed() || ack.SessionPresent {
		t.Fatalf("the first CONNACK is %v, Session Present %v", ack.Code, ack.SessionPresent)
	}

	// 4. The phone has its private topic, and no other one.
	for filter, want := range map[string]packets.ReasonCode{
		"users/ann": 1, "users/bob": packets.NotAuthorized, "groups/birds": packets.NotAuthorized,
		"#": packets.NotAuthorized, "users/+": packets.NotAuthorized,
	} {
		if code := phone.Subscribe(filter, 1); code != want {
			t.Fatalf("the subscription to %s was answered with %v", filter, code)
		}
	}

	// 5. HTTP comes in, MQTT goes out.
	b.push("users/ann", "one")
	phone.Want("users/ann", "one")
	b.push("users/bob", "for bob")
	other.Want("users/bob", "for bob")

	// 6. The user joins a group, and gets its messages without another SUBSCRIBE.
	b.must("PUT", "/v1/groups/birds/members/ann", nil)
	b.must("PUT", "/v1/groups/birds/members/bob", nil)
	b.push("groups/birds", "two")
	phone.Want("groups/birds", "two")
	other.Want("groups/birds", "two")

	// 7. A device publishes, and its owner gets it; a member of the group writes to another one.
	door, _ := try.Dial(t, b.devices, connect("esp32", "door", b.account("devices/door")))
	b.must("PUT", "/v1/devices/door/owners/ann", nil)
	if code := door.Publish("devices/door/events", "opened"); code.Failed() {
		t.Fatalf("the event of the device was refused: %v", code)
	}
	phone.Want("devices/door/events", "opened")
	other.Send(&packets.Publish{Topic: []byte("users/ann"), Payload: []byte("hi")})
	p := phone.Message()
	if string(p.Payload) != "hi" || property(p, "from") != "users/bob" {
		t.Fatalf("%q came from %q", p.Payload, property(p, "from"))
	}

	// 8. What comes while the phone is away waits for it. The user leaves, and gets no more.
	phone.Send(&packets.Disconnect{})
	phone.Gone()
	b.push("groups/birds", "three")
	b.must("DELETE", "/v1/groups/birds/members/ann", nil)
	b.push("groups/birds", "four")
	b.push("users/ann", "five")
	b.restart()
	phone, ack = dial(b, token)
	if !ack.SessionPresent {
		t.Fatal("the Session of the phone is gone")
	}
	phone.Want("groups/birds", "three")
	phone.Want("users/ann", "five")
}
