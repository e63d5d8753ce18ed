package interop

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// A mosquitto with a bridge to a Dunlin, both of which the test can restart.
type bridged struct {
	t                *testing.T
	mosquitto        string // the program
	dir, addr, there string // of the configuration, of the Dunlin, and of the mosquitto
	cmd              *exec.Cmd
	store            memory.Store
	b                *dunlin.Broker
	here             <-chan string
	up               chan struct{} // has a value when the bridge has subscribed
}

// Mosquitto bridges to Dunlin with its default settings. 1,000 messages each way and QoS, with a
// restart of each side in the middle of those of QoS 1 and 2: none is lost, and none comes twice.
func TestABridgeOfMosquitto(t *testing.T) {
	t.Parallel()
	if err := (mosquittoTools{}).prepare(); err != nil {
		missing(t, err)
	}
	x := &bridged{t: t, mosquitto: findMosquitto(t), dir: t.TempDir(), addr: freeAddr(t),
		there: freeAddr(t), up: make(chan struct{}, 1)}
	_, port, _ := net.SplitHostPort(x.there)
	conf := fmt.Sprintf(
		"user root\nlistener %s 127.0.0.1\nallow_anonymous true\npersistence "+
			"true\npersistence_location %s/\n"+
			"max_queued_messages 0\nconnection dunlin\naddress %s\ntopic to/# out 2\ntopic from/# in "+
			"2\n", port, x.dir, x.addr)
	if err := os.WriteFile(filepath.Join(x.dir, "conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	x.startDunlin()
	t.Cleanup(func() { x.b.Close() })
	x.startMosquitto()
	t.Cleanup(x.stopMosquitto)
	x.waitUp("the bridge connects with its default settings")

	const n = 1000
	there := x.listenThere()
	for qos := range 3 {
		x.publishThere(qos, 0, n)
		x.publishHere(qos, 0, n)
	}
	want := make(map[string]int)
	for qos := range 3 {
		for i := range n {
			want[fmt.Sprintf("%d/%d", qos, i)] = 1
		}
	}
	expect(t, "to Dunlin", x.here, want)
	expect(t, "to mosquitto", there, want)

	// While one side is away the other one keeps what is for it.
	more := make(map[string]int)
	for qos := 1; qos < 3; qos++ {
		for i := n; i < 2*n; i++ {
			more[fmt.Sprintf("%d/%d", qos, i)] = 1
		}
	}
	x.b.Close()
	for qos := 1; qos < 3; qos++ {
		x.publishThere(qos, n, 2*n)
	}
	x.startDunlin()
	x.waitUp("the bridge comes back to a new Dunlin")
	expect(t, "to Dunlin after its restart", x.here, more)

	x.stopMosquitto()
	for qos := 1; qos < 3; qos++ {
		x.publishHere(qos, n, 2*n)
	}
	x.startMosquitto()
	x.waitUp("the bridge comes back from a new mosquitto")
	expect(t, "to mosquitto after its restart", there, more)
}

func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startDunlin starts the Dunlin with what its Store holds.
func (x *bridged) startDunlin() {
	x.store.Open() // fails the first time, when it is open
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AllowAll, Store: &x.store,
		Observer: &hooks.Observer{Subscribed: func(e hooks.Subscribed) {
			if e.Filter == "from/#" {
				select {
				case x.up <- struct{}{}:
				default:
				}
			}
		}},
	})
	if err != nil {
		x.t.Fatal(err)
	}
	x.b = b
	x.here = x.listenHere() // before the bridge can come
	l, err := net.Listen("tcp", x.addr)
	if err != nil {
		x.t.Fatal(err)
	}
	go b.Serve(l) // ended by Close
}

func (x *bridged) startMosquitto() {
	x.cmd = exec.Command(x.mosquitto, "-c", filepath.Join(x.dir, "conf"))
	x.cmd.Stderr = &tail{}
	if err := x.cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(x.t.Context(), patience)
	defer cancel()
	if err := reach(ctx, x.there, nil); err != nil {
		x.t.Fatalf("mosquitto: %v\n%s", err, x.cmd.Stderr)
	}
}

// stopMosquitto ends it as its user would, so that it writes its database.
func (x *bridged) stopMosquitto() {
	if x.cmd == nil {
		return
	}
	x.cmd.Process.Signal(os.Interrupt)
	x.cmd.Wait()
	x.cmd = nil
}

func (x *bridged) waitUp(why string) {
	x.t.Helper()
	select {
	case <-x.up:
	case <-time.After(90 * time.Second): // mosquitto pauses for up to 30 s between two attempts
		x.t.Fatalf("it is not so that %s; mosquitto says\n%s", why, x.cmd.Stderr)
	}
}

// publishHere publishes from/QOS with numbers as payloads at Dunlin.
func (x *bridged) publishHere(qos, first, end int) {
	for i := first; i < end; i++ {
		m := &dunlin.Message{Topic: fmt.Sprintf("from/%d", qos), Payload: fmt.Append(nil, i),
			QoS: packets.QoS(qos)}
		if err := x.b.Publish(x.t.Context(), m); err != nil {
			x.t.Fatal(err)
		}
	}
}

// publishThere publishes to/QOS with numbers as payloads at the mosquitto.
func (x *bridged) publishThere(qos, first, end int) {
	_, port, _ := net.SplitHostPort(x.there)
	var lines bytes.Buffer
	for i := first; i < end; i++ {
		fmt.Fprintln(&lines, i)
	}
	cmd := exec.CommandContext(x.t.Context(), "mosquitto_pub", "-p", port, "-q", fmt.Sprint(qos),
		"-t", fmt.Sprintf("to/%d", qos), "-l")
	cmd.Stdin = &lines
	if out, err := cmd.CombinedOutput(); err != nil {
		x.t.Fatalf("mosquitto_pub: %v\n%s", err, out)
	}
}

// listenHere returns "QOS/NUMBER" for each message that comes to Dunlin.
func (x *bridged) listenHere() <-chan string {
	sub, err := x.b.Subscribe(x.t.Context(), "to/#",
		&dunlin.SubscribeOptions{QoS: 2, Buffer: 10_000})
	if err != nil {
		x.t.Fatal(err)
	}
	got := make(chan string, 10_000)
	go func() { // ends with the Broker
		for m := range sub.Messages() {
			got <- strings.TrimPrefix(m.Topic, "to/") + "/" + string(m.Payload)
		}
	}()
	return got
}

// listenThere returns "QOS/NUMBER" for each message that comes to the mosquitto.
func (x *bridged) listenThere() <-chan string {
	got := make(chan string, 10_000)
	took := func(_ mqtt.Client, m mqtt.Message) {
		got <- strings.TrimPrefix(m.Topic(), "from/") + "/" + string(m.Payload())
	}
	o := mqtt.NewClientOptions().AddBroker("tcp://" + x.there).SetClientID("there").
		SetOrderMatters(true).
		SetCleanSession(false). // it stays subscribed while mosquitto restarts
		SetMaxReconnectInterval(time.Second).
		SetDefaultPublishHandler(took) // for what comes before it has subscribed again
	c := mqtt.NewClient(o)
	steps := []func() mqtt.Token{c.Connect, func() mqtt.Token {
		return c.Subscribe("from/#", 2, took)
	}}
	for _, step := range steps {
		if token := step(); !token.WaitTimeout(patience) || token.Error() != nil {
			x.t.Fatalf("no client at mosquitto: %v", token.Error())
		}
	}
	x.t.Cleanup(func() { c.Disconnect(0) })
	return got
}

// expect reads messages until all of want have come, and fails if one is missing or comes twice.
func expect(t *testing.T, where string, got <-chan string, want map[string]int) {
	t.Helper()
	seen := make(map[string]int)
	for len(seen) < len(want) {
		select {
		case m := <-got:
			if seen[m]++; seen[m] > want[m] {
				t.Fatalf("%s: %s came %d times", where, m, seen[m])
			}
		case <-time.After(2 * patience):
			missing := make(map[string]int) // by QoS
			for m := range want {
				if seen[m] == 0 {
					missing[m[:1]]++
				}
			}
			t.Fatalf("%s: %d of %d messages have come, missing of each QoS: %v", where, len(seen),
				len(want), missing)
		}
	}
	select {
	case m := <-got:
		t.Fatalf("%s: %s came once more", where, m)
	case <-time.After(200 * time.Millisecond):
	}
}
