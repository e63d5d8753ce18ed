package endtoend

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

var doorsFlag = flag.Duration("doors", 4*time.Second, "how long TestEveryDoorAtOnce attacks")

// What the broker of TestEveryDoorAtOnce may take. What counts in MaxMemory is bounded by it. The
// constant is for what is not: the runtime, buffers of readers that are at work, a pool of them,
// and stacks that have grown.
const (
	doorsMemory   = 64 << 20
	doorsConstant = 24 << 20
	// A process that embeds the broker gives it half of its own limit. The collector lets garbage
	// gather up to that.
	doorsLimit = 2 * doorsMemory
)

// doorsChild says, in the environment, that the process is the broker of TestEveryDoorAtOnce.
const doorsChild = "DUNLIN_DOORS"

func TestMain(m *testing.M) {
	if os.Getenv(doorsChild) != "" {
		serveDoors()
		return
	}
	os.Exit(m.Run())
}

// A usage is what the broker takes.
type usage struct {
	Live     int64 // bytes of the heap that are in use after a collection, and stacks
	Counted  int64 // bytes that count in MaxMemory
	Resident int64 // the most that was resident; 0: the system does not say
	Sessions int
	Conns    int
	Retained int
	Subs     int
}

// serveDoors is a broker with default limits in 64 MiB. Each line that it reads is answered with
// what it takes.
func serveDoors() {
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			if strings.HasPrefix(r.Client.Username, "bad") {
				return hooks.ErrAbstain
			}
			return nil
		}),
		EnhancedAuth: map[string]hooks.EnhancedAuthenticator{"ask": asker{}},
		Logger:       slog.New(slog.DiscardHandler),
		SysInterval:  time.Second,
	})
	if err != nil {
		panic(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go b.Serve(l) // ends with the process
	secret, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	// no handshake comes as far as to need a certificate
	go b.Serve(listeners.NewTLS(secret, new(tls.Config)))
	fmt.Println(l.Addr(), secret.Addr())
	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		runtime.GC()
		if in.Text() == "last" { // pools need two
			runtime.GC()
		}
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"},
			{Name: "/memory/classes/heap/stacks:bytes"}}
		metrics.Read(sample)
		st := b.Stats()
		out.Encode(usage{
			Live:    int64(sample[0].Value.Uint64() + sample[1].Value.Uint64()),
			Counted: st.Memory, Resident: peakResident(), Sessions: st.Sessions,
			Conns: st.Connections, Retained: st.Retained, Subs: st.Subscriptions,
		})
	}
}

// asker never has enough of Authentication Data.
type asker struct{}

func (asker) Start(context.Context, *hooks.ConnectRequest) (hooks.Exchange, error) {
	return asker{}, nil
}

func (asker) Next(_ context.Context, data []byte) (reply []byte, done bool, err error) {
	return data, false, nil
}

// peakResident is the most that has been resident of this process, 0 if the system does not say.
func peakResident() int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// A doorsBroker is the process of serveDoors.
type doorsBroker struct {
	t       *testing.T
	addr    string
	overTLS string
	in      io.Writer
	out     *bufio.Scanner
}

func startDoors(t *testing.T) *doorsBroker {
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), doorsChild+"=1", fmt.Sprint("GOMEMLIMIT=", doorsLimit))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		require.NoError(t, cmd.Wait(), "the broker")
	})
	b := &doorsBroker{t: t, in: in, out: bufio.NewScanner(out)}
	require.True(t, b.out.Scan(), "it says where it listens")
	b.addr, b.overTLS, _ = strings.Cut(b.out.Text(), " ")
	return b
}

// usage asks the broker what it takes.
func (b *doorsBroker) usage(what string) (u usage) {
	fmt.Fprintln(b.in, what)
	require.True(b.t, b.out.Scan(), "the broker is not there any more")
	require.NoError(b.t, json.Unmarshal(b.out.Bytes(), &u))
	return u
}

// Clients without special rights open, all at once, whatever can be made to grow. The broker has
// the defaults, and 64 MiB.
func TestEveryDoorAtOnce(t *testing.T) {
	b := startDoors(t)
	begun := b.usage("begin")
	stop := make(chan struct{})
	var running sync.WaitGroup
	var opened [64]atomic.Int64
	for i, door := range doors {
		for n := range 2 {
			running.Go(func() {
				for round := 0; ; round++ {
					select {
					case <-stop:
						return
					default:
					}
					x := &intruder{addr: b.addr, name: fmt.Sprint(i, "-", n, "-", round),
						overTLS: b.overTLS, stop: stop}
					door.open(x)
					opened[i].Add(int64(x.sent))
					x.leave()
				}
			})
		}
	}
	var most usage
	end := time.Now().Add(*doorsFlag)
	for time.Now().Before(end) {
		time.Sleep(300 * time.Millisecond)
		u := b.usage("now")
		if u.Live > most.Live {
			most = u
		}
		t.Logf("live %d KiB, counted %d KiB, resident %d KiB, %d sessions, %d connections, %d "+
			"retained, %d subscriptions",
			u.Live>>10, u.Counted>>10, u.Resident>>10, u.Sessions, u.Conns, u.Retained, u.Subs)
	}
	close(stop)
	running.Wait()
	for i, door := range doors {
		t.Logf("%8d KiB through %s", opened[i].Load()>>10, door.name)
		require.Positive(t, opened[i].Load(), door.name)
	}
	require.LessOrEqual(t, most.Live, begun.Live+doorsMemory+doorsConstant, "bytes in use")
	last := b.usage("last")
	if last.Resident > 0 && !raced() {
		require.LessOrEqual(t, last.Resident, int64(doorsLimit+doorsConstant),
			"bytes that were resident")
	}
	good := &intruder{addr: b.addr, name: "good", stop: make(chan struct{})}
	defer good.leave()
	c := good.connect(func(p *packets.Connect) { p.Properties = nil })
	require.NotNil(t, c, "there is room for a client")
	c.send(&packets.Publish{Topic: []byte("new"), QoS: packets.QoS1, PacketID: 1,
		Payload: []byte("x")})
	require.Equal(t, packets.TypePuback, c.want(packets.TypePuback), "which gets answers")
}

// raced says whether the race detector takes memory, too.
func raced() bool {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}
