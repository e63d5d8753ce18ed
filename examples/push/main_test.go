package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

type backend struct {
	t        *testing.T
	url, key string
}

// do calls the service and returns the status and what it said.
func (b backend) do(method, path, body string) (status int, answer map[string]any) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, b.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+b.key)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	json.NewDecoder(resp.Body).Decode(&answer) // a refusal is no JSON
	return resp.StatusCode, answer
}

func device(t *testing.T, addr, id, user, token string) (*try.Client, *packets.Connack) {
	t.Helper()
	return try.Dial(t, addr, &packets.Connect{Version: packets.V5, ClientID: id, HasUsername: true,
		Username: user, HasPassword: true, Password: []byte(token),
		Properties: packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 3600)})
}

func TestRun(t *testing.T) {
	p := try.Start(t, run, "-listen", "127.0.0.1:0", "-http", "127.0.0.1:0", "-key", "k", "-wait",
		"100ms")
	addr := p.Line("devices at ")
	b := backend{t, p.Line("backend at "), "k"}
	if status, _ := (backend{t, b.url, "guessed"}).do("PUT", "/users/eve",
		`{}`); status != http.StatusUnauthorized {
		t.Fatalf("a backend with the wrong key was answered with %d", status)
	}
	if status, _ := b.do("PUT", "/users/a+b", `{}`); status != http.StatusBadRequest {
		t.Fatalf("a user whose name is a filter was answered with %d", status)
	}
	_, a := b.do("PUT", "/users/ann", `{"groups":["birds"]}`)
	ann := a["token"].(string)
	b.do("PUT", "/users/bob", `{}`)

	if _, ack := device(t, addr, "x", "bob", ann); ack.Code != packets.BadUserNameOrPassword {
		t.Fatalf("the token of another user was answered with %v", ack.Code)
	}
	phone, ack := device(t, addr, "phone", "ann", ann)
	if ack.Code.Failed() {
		t.Fatalf("ann's telephone may not come in: %v", ack.Code)
	}
	for filter, want := range map[string]packets.ReasonCode{
		"users/ann": 1, "groups/birds": 1, "users/bob": packets.NotAuthorized,
		"groups/fish": packets.NotAuthorized, "#": packets.NotAuthorized,
		"groups/+": packets.NotAuthorized,
	} {
		if code := phone.Subscribe(filter, 1); code != want {
			t.Fatalf("the subscription to %s was answered with %v", filter, code)
		}
	}
	if code := phone.Publish("users/bob", "spoofed"); code != packets.NotAuthorized {
		t.Fatalf("a device could publish: %v", code)
	}

	done := make(chan map[string]any, 1)
	go func() {
		_, a := b.do("POST", "/users/ann/messages", "one")
		done <- a
	}()
	phone.Want("users/ann", "one")
	if a := <-done; a["sessions"] != 1.0 {
		t.Fatalf("the backend heard %v", a)
	}
	if _, a := b.do("POST", "/users/bob/messages", "nobody there"); a["sessions"] != 0.0 {
		t.Fatalf("the backend heard %v", a)
	}

	// What comes while the telephone is off waits.
	phone.Send(&packets.Disconnect{})
	phone.Gone()
	b.do("POST", "/groups/birds/messages", "two")
	phone, ack = device(t, addr, "phone", "ann", ann)
	if !ack.SessionPresent {
		t.Fatal("the Session of the telephone is gone")
	}
	phone.Want("groups/birds", "two")

	// A user who leaves a group hears nothing of it any more.
	b.do("PUT", "/users/ann", `{"groups":[]}`)
	for { // the rules change everywhere in a moment
		if _, a := b.do("POST", "/groups/birds/messages", "three"); a["sessions"] == 0.0 {
			break
		}
	}
	b.do("DELETE", "/users/ann", "")
	last := phone.Receive()
	for last.Type() == packets.TypePublish { // from before the rules had changed everywhere
		last = phone.Receive()
	}
	if d, ok := last.(*packets.Disconnect); !ok || d.Code != packets.AdministrativeAction {
		t.Fatal("a device of a deleted user stays")
	}
}
