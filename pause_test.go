package dunlin

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is a process that was stopped for a while, as a laptop is or a virtual machine:
// deadlines are over when it goes on, and what clients have sent meanwhile is unread.

var inMemory = transport{"memory", func(t *testing.T, b *Broker) func() net.Conn {
	l := listeners.NewMemory()
	go b.Serve(l) // ends with b
	return func() net.Conn { return dial(t, l) }
}}

// What can be read is read before a client is held to have been silent.
func TestWhatHasComeIsReadBeforeKeepAliveIsJudged(t *testing.T) {
	for _, tr := range append(transports, inMemory) {
		t.Run(tr.name, func(t *testing.T) {
			stopped, goOn := make(chan struct{}), make(chan struct{})
			ended := make(chan packets.ReasonCode, 1)
			var b *Broker
			b = newTestBroker(t, func(c *Config) {
				c.Authorizer = hooks.AuthorizerFunc(func(_ context.Context,
					r *hooks.AccessRequest) error {
					close(stopped)
					<-goOn
					s := b.ofClient("c")[0]
					s.mu.Lock()
					nc := s.conn
					s.mu.Unlock()
					nc.keepAlive = time.Nanosecond // this is the goroutine of its reader
					nc.rouse()
					return nil
				})
				c.Observer = &hooks.Observer{Disconnected: func(e hooks.Disconnected) { ended <- e.Code }}
			})
			defer b.Close()
			p := connect("c")
			p.KeepAlive = 60
			c, _ := newTestClient(t, tr.open(t, b)(), p)
			c.send(&packets.Publish{Topic: []byte("t")})
			<-stopped
			pinged := make(chan struct{})
			go func() {
				defer close(pinged)
				c.nc.Write([]byte{0xc0, 0})
			}()
			if tr.name != "a pipe" { // whose Write waits for the Read
				<-pinged
			}
			close(goOn)
			require.IsType(t, &packets.Pingresp{}, c.recv())
			require.Equal(t, packets.KeepAliveTimeout, c.recv().(*packets.Disconnect).Code,
				"then nothing came")
			c.nc.Close()
			require.Equal(t, packets.KeepAliveTimeout, <-ended)
			<-pinged
		})
	}
}

// A CONNECT that has come before its time was over is read, however late the Broker is.
func TestAConnectThatHasComeIsReadBeforeItsTimeIsJudged(t *testing.T) {
	b := newTestBroker(t, func(c *Config) { c.ConnectTimeout = time.Nanosecond })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nc, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer nc.Close()
	wire, err := connect("c").Append(nil, packets.V5)
	require.NoError(t, err)
	_, err = nc.Write(wire)
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	r := packets.NewReader(nc, packets.Limits{})
	r.SetVersion(packets.V5)
	nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	ack, err := r.ReadPacket()
	require.NoError(t, err)
	require.Equal(t, packets.Success, ack.(*packets.Connack).Code)
	b.Close()
	<-served
}

// The broker waits for events, and never sleeps and looks again.
func TestTheBrokerDoesNotSleep(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
				t.Errorf("%s sleeps", fset.Position(n.Pos()))
			}
			return true
		})
	}
}
