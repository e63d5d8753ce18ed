package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
)

// The test runs itself as the program: the process that is started sets LISTEN_PID, which only it
// can know, and goes on as main.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_AS_PROGRAM") != "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		main()
		return
	}
	os.Exit(m.Run())
}

func TestRunWithSocketsOfAnotherProcess(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RUN_AS_PROGRAM=1", "LISTEN_FDS=2", "LISTEN_FDNAMES=one:two")
	var addrs []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		addrs = append(addrs, l.Addr().String())
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	// The socket is there before the program: this connection waits for it.
	early, err := net.Dial("tcp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	early.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	sub, pub := try.Connect(t, addrs[0], "sub"), try.Connect(t, addrs[1], "pub")
	sub.Subscribe("a", 0)
	pub.Publish("a", "from one socket to the other")
	sub.Want("a", "from one socket to the other")
	lines := bufio.NewScanner(out)
	for _, addr := range addrs {
		if !lines.Scan() || lines.Text() != "serving "+addr {
			t.Fatalf("it said %q, not that it serves %s", lines.Text(), addr)
		}
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestWithoutSockets(t *testing.T) {
	for _, tt := range []struct {
		name, pid, fds, want string
	}{
		{"nobody handed anything over", "", "", "LISTEN_PID"},
		{"it was meant for another process", "1", "1", "LISTEN_PID"},
		{"not a number", "7", "many", "LISTEN_FDS"},
		{"not a socket", "7", "1", "not a listening stream socket"},
	} {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		env := func(k string) string {
			return map[string]string{"LISTEN_PID": tt.pid, "LISTEN_FDS": tt.fds}[k]
		}
		_, err = inherited(env, 7, int(f.Fd()))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: the error is %v", tt.name, err)
		}
	}
}
