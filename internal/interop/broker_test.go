package interop

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// brokerVariable names the environment variable with the address of a running broker to test
// instead of our own.
const brokerVariable = "DUNLIN_INTEROP_BROKER"

// forbidden is the root of the Topic Names that nobody may subscribe to at our own broker.
const forbidden = "forbidden"

// startBroker gives the address of the broker to test, and whether it is our own. Unless one was
// named it builds and starts the example server, and demands of it that it ends well at the end of
// the test.
func startBroker(t *testing.T) (address string, own bool) {
	t.Helper()
	if address = os.Getenv(brokerVariable); address != "" {
		if err := reach(t.Context(), address, nil); err != nil {
			t.Fatalf("the broker that %s names: %v", brokerVariable, err)
		}
		return address, false
	}
	program := filepath.Join(t.TempDir(), "server")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program)
	if raceEnabled {
		build.Args = append(build.Args, "-race")
	}
	build.Args = append(build.Args, "./examples/server")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}

	output := &tail{}
	server := exec.Command(program, "-listen", "127.0.0.1:0", "-deny-subscribe", forbidden+"/#")
	server.Stdout, server.Stderr = output, output
	if err := server.Start(); err != nil {
		t.Fatalf("%s: %v", server, err)
	}
	ended := make(chan struct{})
	var result error
	go func() { // the cleanup below waits for it
		result = server.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			if result != nil {
				t.Errorf("the broker did not end with status 0 after SIGTERM: %v", result)
			}
		case <-time.After(patience):
			t.Error("the broker still runs a while after SIGTERM")
			_ = server.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("the last that the broker printed:\n%s", output)
		}
	})
	if address = listens(t.Context(), output, ended); address == "" {
		t.Fatal("the broker does not say where it listens")
	}
	if err := reach(t.Context(), address, ended); err != nil {
		t.Fatalf("the broker does not come up: %v", err)
	}
	return address, true
}

// reach waits until something accepts connections at address.
func reach(ctx context.Context, address string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-again.C:
		case <-ended:
			return fmt.Errorf("the process has ended")
		case <-ctx.Done():
			return err
		}
	}
}

// listens waits until our own broker has said where it listens.
func listens(ctx context.Context, output *tail, ended <-chan struct{}) string {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		for line := range strings.Lines(output.String() + "\n") {
			if _, address, ok := strings.Cut(strings.TrimSpace(line), "msg=listening addr="); ok {
				address, _, _ = strings.Cut(address, " ")
				return address
			}
		}
		select {
		case <-again.C:
		case <-ended:
			return ""
		case <-ctx.Done():
			return ""
		}
	}
}

// A tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

func (w *tail) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, b...)
	if extra := len(w.text) - 64<<10; extra > 0 {
		w.text = append(w.text[:0], w.text[extra:]...)
	}
	return len(b), nil
}

// String gives the last lines.
func (w *tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(w.text)), "\n")
	return strings.Join(lines[max(0, len(lines)-200):], "\n")
}
