package main

import (
	"context"
	"io"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestRun(t *testing.T) {
	terminal, typed := io.Pipe()
	p := try.Start(t, func(ctx context.Context, args []string, out io.Writer) error {
		return run(ctx, args, out, terminal)
	}, "-listen", "127.0.0.1:0")
	defer typed.Close()
	addr := p.Line("listening on ")
	come := func(name string) *try.Client {
		c, ack := try.Dial(t, addr, &packets.Connect{Version: packets.V5, CleanStart: true,
			ClientID: name, HasUsername: true, Username: name,
			Will: &packets.Will{Topic: "chat/lobby/" + name, Payload: []byte("(has gone)")}})
		if ack.Code.Failed() {
			t.Fatalf("%s may not come in: %v", name, ack.Code)
		}
		return c
	}
	io.WriteString(typed, "welcome\n")
	ann, bob := come("ann"), come("bob")
	if code := bob.Publish("chat/lobby/ann", "in her name"); code != packets.NotAuthorized {
		t.Fatalf("bob could speak in the name of ann: %v", code)
	}
	if code := bob.Subscribe("#", 0); code != packets.NotAuthorized {
		t.Fatalf("bob could read everything: %v", code)
	}
	bob.Publish("chat/lobby/bob", "hello")
	if got := p.Line("bob: "); got != "hello" {
		t.Fatalf("the terminal shows %q", got)
	}
	io.WriteString(typed, "hello bob\n")
	ann.Subscribe("chat/lobby/+", 1)
	// perhaps retained, perhaps not yet
	for m := ann.Message(); string(m.Payload) != "hello bob"; m = ann.Message() {
		if string(m.Payload) != "welcome" {
			t.Fatalf("ann reads %q", m.Payload)
		}
	}
	bob.Send(&packets.Disconnect{Code: packets.DisconnectWithWill})
	ann.Want("chat/lobby/bob", "(has gone)")
	if _, ack := try.Dial(t, addr, &packets.Connect{Version: packets.V5, CleanStart: true,
		ClientID: "x"}); ack.Code != packets.BadUserNameOrPassword {
		t.Fatalf("somebody without a name was answered with %v", ack.Code)
	}
}
