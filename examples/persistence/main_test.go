package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestMain(m *testing.M) {
	if args := os.Getenv("PERSISTENCE_ARGS"); args != "" { // this is the broker that will be killed
		if err := run(context.Background(), strings.Split(args, "\n"), os.Stdout); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

// home connects with a session that stays.
func home(t *testing.T, addr string) (*try.Client, *packets.Connack) {
	t.Helper()
	return try.Dial(t, addr, &packets.Connect{
		Version: packets.V5, ClientID: "home",
		Properties: packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 3600)})
}

// TestMessageOutlivesTheBroker kills a broker, and looks into its directory and into a backup with
// two others.
func TestMessageOutlivesTheBroker(t *testing.T) {
	data, backup := t.TempDir(), filepath.Join(t.TempDir(), "backup")
	p := try.Start(t, run, "-listen", "127.0.0.1:0", "-data", data)
	c, _ := home(t, p.Line("listening on "))
	c.Subscribe("hello/#", 1)
	c.Send(&packets.Disconnect{})
	p.Stop()

	killed := exec.Command(os.Args[0])
	killed.Env = append(os.Environ(), "PERSISTENCE_ARGS=-listen\n127.0.0.1:0\n-data\n"+data)
	out, err := killed.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimSpace(strings.TrimPrefix(line, "listening on "))
	if code := try.Connect(t, addr, "writer").Publish("hello/world",
		"you were away"); code.Failed() {
		t.Fatalf("the publish was refused: %v", code)
	}
	killed.Process.Kill()
	killed.Wait() // it says that it was killed

	p = try.Start(t, run, "-listen", "127.0.0.1:0", "-data", data, "-backup", backup)
	addr = p.Line("listening on ")
	p.Line("copied to ")
	comesBack(t, addr)
	p.Stop()
	p = try.Start(t, run, "-listen", "127.0.0.1:0", "-data", backup)
	comesBack(t, p.Line("listening on "))
	p.Stop()
}

func comesBack(t *testing.T, addr string) {
	t.Helper()
	c, ack := home(t, addr)
	if !ack.SessionPresent {
		t.Fatal("the session is gone")
	}
	c.Want("hello/world", "you were away")
}
