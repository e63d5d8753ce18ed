package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// mosquittoTools are the commands mosquitto_sub, mosquitto_pub and mosquitto_rr. A client of theirs
// is one mosquitto_sub, which connects when it subscribes, and a mosquitto_pub with a Client
// Identifier of its own for each call of publish.
type mosquittoTools struct{}

func (mosquittoTools) name() string        { return "mosquitto tools" }
func (mosquittoTools) versions() []version { return []version{v31, v311, v5} }
func (mosquittoTools) close()              {}

func (mosquittoTools) prepare() error {
	for _, tool := range []string{"mosquitto_sub", "mosquitto_pub", "mosquitto_rr"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed (Debian: mosquitto-clients)", tool)
		}
	}
	return nil
}

func (mosquittoTools) can(f feature, v version) bool {
	switch f {
	case canAwaitLoss, canReconnect, canRequest:
		return true
	case canSendAlias:
		return v == v5
	}
	return false // the least Keep Alive of the tools is 5 s
}

func (mosquittoTools) dial(_ context.Context, o options, in *inbox) (client, error) {
	return &mosquittoClient{o: o, in: in}, nil
}

// mosquittoFormat makes the tools print a message in one line. %x is the payload in hexadecimal. %P
// are the User Properties, with a colon between name and value and a space between pairs, so the
// scenarios use neither of them inside.
const mosquittoFormat = `message\t%q\t%r\t%t\t%x\t%E\t%C\t%R\t%D\t%P`

// parseMosquitto reads such a line. It is false for any other line.
func parseMosquitto(line string) (message, bool) {
	f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
	if len(f) != 10 || f[0] != "message" {
		return message{}, false
	}
	payload, err := hex.DecodeString(f[4])
	if err != nil {
		return message{}, false
	}
	m := message{topic: f[3], payload: string(payload), retain: f[2] == "1", contentType: f[6],
		response: f[7], correlation: f[8]}
	m.qos = f[1][0] - '0'
	expiry, _ := strconv.ParseUint(f[5], 10, 32)
	m.expiry = uint32(expiry)
	for _, pair := range strings.Fields(f[9]) {
		k, v, _ := strings.Cut(pair, ":")
		m.user = append(m.user, [2]string{k, v})
	}
	return m, true
}

type mosquittoClient struct {
	o    options
	in   *inbox
	pubs int // mosquitto_pub and mosquitto_rr that were started
	pub  *tap

	sub     *exec.Cmd      // nil until subscribe
	ended   chan struct{}  // closed when sub has ended
	workers sync.WaitGroup // the goroutines that watch sub; kill waits for them
}

// session is not told by the tools.
func (c *mosquittoClient) session() (present, known bool) { return false, false }

// arguments gives those that all tools need.
func (c *mosquittoClient) arguments(port int, clientID string) []string {
	v := map[version]string{v31: "31", v311: "311", v5: "5"}[c.o.version]
	return []string{"-h", "127.0.0.1", "-p", strconv.Itoa(port), "-V", v, "-i", clientID}
}

func (c *mosquittoClient) subscribe(ctx context.Context, subs ...subscription) ([]byte, error) {
	if c.sub != nil {
		return nil, errors.New("mosquitto_sub subscribes once")
	}
	args := append(c.arguments(c.o.port, c.o.clientID), "-F", mosquittoFormat)
	if c.o.resume {
		args = append(args, "-c")
	}
	if c.o.version == v5 {
		args = append(args, "-x", strconv.Itoa(int(c.o.expiry)))
	}
	if w := c.o.will; w != nil {
		args = append(args, "--will-topic", w.topic, "--will-payload", w.payload, "--will-qos",
			strconv.Itoa(int(w.qos)))
		if w.retain {
			args = append(args, "--will-retain")
		}
		for _, u := range w.user {
			args = append(args, "-D", "will", "user-property", u[0], u[1])
		}
		if c.o.willDelay > 0 {
			args = append(args, "-D", "will", "will-delay-interval",
				strconv.Itoa(int(c.o.willDelay)))
		}
	}
	for _, s := range subs {
		if s.qos != subs[0].qos || s.noLocal || s.retainAsPublished || s.retainHandling != 0 ||
			s.identifier != 0 {
			return nil, errNotOffered
		}
		args = append(args, "-t", s.filter)
	}
	args = append(args, "-q", strconv.Itoa(int(subs[0].qos)))
	if err := c.start(exec.Command("mosquitto_sub", args...)); err != nil {
		return nil, err
	}
	// mosquitto_sub does not say that it has subscribed, so the tap has to.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with ctx, which ends with this function
		select {
		case <-c.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	ack, ok := c.o.tap.wait(ctx.Done(), func(p packet) bool {
		return p.fromBroker && p.kind() == typeSuback
	})
	if !ok {
		return nil, errors.New("no SUBACK for mosquitto_sub")
	}
	return subackCodes(ack, c.o.version), nil
}

// start runs mosquitto_sub and watches what it prints and what happens to its connections.
func (c *mosquittoClient) start(cmd *exec.Cmd) error {
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	c.sub, c.ended = cmd, make(chan struct{})
	c.workers.Go(func() {
		defer close(c.ended)
		lines := bufio.NewReader(stdout)
		for {
			line, err := lines.ReadString('\n')
			if m, ok := parseMosquitto(line); ok {
				c.in.received(m)
			} else if line != "" {
				c.o.log("mosquitto_sub: ", line)
			}
			if err != nil {
				_ = cmd.Wait()
				return
			}
		}
	})
	c.workers.Go(func() {
		for n := 0; ; n++ {
			_, ok := c.o.tap.wait(c.ended, func(p packet) bool {
				return p.conn == n && p.fromBroker && p.kind() == typeConnack
			})
			if !ok {
				return
			}
			c.in.connected()
			lost := c.o.tap.waitLost(c.ended, n)
			c.in.closed()
			if !lost { // mosquitto_sub has ended, as it does when told DISCONNECT in 5.0
				return
			}
		}
	})
	return nil
}

func (c *mosquittoClient) unsubscribe(context.Context, ...string) ([]byte, error) {
	return nil, errNotOffered
}

// publish starts one mosquitto_pub for each run of messages that differ in nothing but their
// payload.
func (c *mosquittoClient) publish(ctx context.Context, ms ...message) error {
	for len(ms) > 0 {
		first := ms[0]
		first.payload = ""
		n := slices.IndexFunc(ms, func(m message) bool {
			m.payload = ""
			return fmt.Sprint(m) != fmt.Sprint(first) || m.expiry != first.expiry ||
				m.alias != first.alias
		})
		if n < 0 {
			n = len(ms)
		}
		if err := c.publishRun(ctx, ms[:n]); err != nil {
			return err
		}
		ms = ms[n:]
	}
	return nil
}

func (c *mosquittoClient) publishRun(ctx context.Context, ms []message) error {
	port, id := c.publisher()
	m := ms[0]
	args := append(c.arguments(port, id), "-q", strconv.Itoa(int(m.qos)), "-t", m.topic)
	if m.retain {
		args = append(args, "-r")
	}
	args = append(args, publishProperties(m)...)
	var stdin bytes.Buffer
	switch {
	case len(ms) > 1:
		args = append(args, "-l")
		for _, m := range ms {
			stdin.WriteString(m.payload + "\n")
		}
	case m.payload == "":
		args = append(args, "-n")
	default:
		args = append(args, "-s")
		stdin.WriteString(m.payload)
	}
	cmd := exec.CommandContext(ctx, "mosquitto_pub", args...)
	cmd.Stdin = &stdin
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mosquitto_pub %s: %v\n%s", args, err, out)
	}
	return nil
}

// publisher gives the port and the Client Identifier for one more tool that publishes.
func (c *mosquittoClient) publisher() (port int, clientID string) {
	if c.pub == nil {
		c.pub = c.o.extraTap()
	}
	c.pubs++
	return c.pub.port(), fmt.Sprintf("%sp%d", c.o.clientID, c.pubs)
}

func publishProperties(m message) (args []string) {
	property := func(name string, value ...string) {
		args = append(append(args, "-D", "publish", name), value...)
	}
	for _, u := range m.user {
		property("user-property", u[0], u[1])
	}
	if m.contentType != "" {
		property("content-type", m.contentType)
	}
	if m.response != "" {
		property("response-topic", m.response)
	}
	if m.correlation != "" {
		property("correlation-data", m.correlation)
	}
	if m.expiry > 0 {
		property("message-expiry-interval", strconv.Itoa(int(m.expiry)))
	}
	if m.alias > 0 {
		property("topic-alias", strconv.Itoa(int(m.alias)))
	}
	return args
}

// request runs mosquitto_rr.
func (c *mosquittoClient) request(ctx context.Context, request message) (message, error) {
	port, id := c.publisher()
	args := append(c.arguments(port, id), "-F", mosquittoFormat, "-q",
		strconv.Itoa(int(request.qos)),
		"-t", request.topic, "-e", request.response, "-m", request.payload)
	if c.o.version == v5 {
		response := request.response
		request.response = "" // -e sets the Response Topic
		args = append(args, publishProperties(request)...)
		request.response = response
	}
	out, err := exec.CommandContext(ctx, "mosquitto_rr", args...).CombinedOutput()
	if err != nil {
		return message{}, fmt.Errorf("mosquitto_rr %s: %v\n%s", args, err, out)
	}
	m, ok := parseMosquitto(string(out))
	if !ok {
		return message{}, fmt.Errorf("mosquitto_rr %s printed %q", args, out)
	}
	return m, nil
}

func (c *mosquittoClient) disconnect(ctx context.Context) error {
	if c.sub == nil {
		return nil
	}
	// Its signal handler takes a lock that it may hold already while it handles a packet, and then
	// it hangs.
	c.o.tap.waitIdle(100 * time.Millisecond)
	if err := c.sub.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return errors.New("mosquitto_sub does not end")
	}
}

func (c *mosquittoClient) kill() {
	if c.sub == nil {
		return
	}
	_ = c.sub.Process.Kill()
	c.workers.Wait()
}
