package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
)

// Paho's C library, and with it the C++ one, reads one packet out of a WebSocket frame and then
// waits for the socket: with two packets in a frame it hangs. So each packet has a frame of its
// own.
func TestPahoCOverWebSocket(t *testing.T) {
	program, err := buildPahoC(t)
	if err != nil {
		missing(t, err)
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	web := websocket.New(websocket.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: web}
	t.Cleanup(func() { server.Close() })
	go b.Serve(web)    // ended by Close of the Broker
	go server.Serve(l) // ended by Close of the server
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go b.Serve(tcp) // ended by Close of the Broker
	for _, uri := range []string{
		"ws://" + l.Addr().String() + "/mqtt", "tcp://" + tcp.Addr().String(),
	} {
		for _, v := range []version{v31, v311} {
			t.Run(fmt.Sprintf("%.3s, %v", uri, v), func(t *testing.T) {
				t.Parallel() // the library takes ten seconds to end
				ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
				defer cancel()
				id := fmt.Sprintf("paho-c-%.3s-%d", uri, v)
				cmd := exec.CommandContext(ctx, program, uri, id, fmt.Sprint(int(v)), "50")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v: %v\n%s", cmd.Args[1:], err, out)
				}
			})
		}
	}
}

// buildPahoC compiles the program. The error says what this machine lacks.
func buildPahoC(t *testing.T) (program string, err error) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		return "", errors.New("no C compiler (cc); Debian's package gcc has one")
	}
	program = filepath.Join(t.TempDir(), "echo")
	source, err := os.ReadFile(filepath.Join("pahoc", "echo.c"))
	if err != nil {
		return "", err
	}
	build := exec.CommandContext(t.Context(), cc, "-Wall", "-Werror", "-o", program, "-x", "c", "-",
		"-lpaho-mqtt3c")
	build.Stdin = bytes.NewReader(source)
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("Paho's C library (Debian's package libpaho-mqtt-dev): %w\n%s", err,
			out)
	}
	return program, nil
}
