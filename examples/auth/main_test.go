package main

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestRun(t *testing.T) {
	addr := try.Start(t, run, "-listen", "127.0.0.1:0", "-secret", "s").Line("listening on ")
	come := func(name, password string) (*try.Client, packets.ReasonCode) {
		c, ack := try.Dial(t, addr, &packets.Connect{
			Version: packets.V5, CleanStart: true, ClientID: name, HasUsername: true,
			Username: name, HasPassword: true, Password: []byte(password),
		})
		return c, ack.Code
	}
	f := factory{[]byte("s")}
	for _, wrong := range [][2]string{{"d1", "x"}, {"d1", f.password("d2")}, {"", f.password("")},
		{"+", f.password("+")}, {"d1", factory{[]byte("t")}.password("d1")}} {
		if _, code := come(wrong[0], wrong[1]); code != packets.BadUserNameOrPassword {
			t.Errorf("%q was answered with %v", wrong, code)
		}
	}
	d1, code := come("d1", f.password("d1"))
	if code.Failed() {
		t.Fatalf("d1 was refused: %v", code)
	}
	for topic, allowed := range map[string]bool{"devices/d1/state": true, "devices/d2/state": false,
		"devices/d1": false, "devices/d11/x": false, "all/x": false} {
		if code := d1.Publish(topic, "on"); code.Failed() == allowed {
			t.Errorf("a publish to %s was answered with %v", topic, code)
		}
	}
	for filter, allowed := range map[string]bool{
		"devices/d1/#": true, "all/#": true, "$share/g/all/+": true, "devices/#": false,
		"devices/+/state": false, "$share/g/devices/#": false, "#": false,
	} {
		if code := d1.Subscribe(filter, 1); code.Failed() == allowed {
			t.Errorf("a subscription to %s was answered with %v", filter, code)
		}
	}
}
