package interop

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
)

// A script is a program in another language. It runs once for the whole suite and hosts any number
// of clients; it reads commands as lines of JSON and writes replies and events in the same way.
// README.md describes these lines.
type script struct {
	title  string
	speaks []version
	offers func(f feature, v version) bool
	// command finds the interpreter and makes everything ready to run it.
	command func() (*exec.Cmd, error)

	stdin io.WriteCloser
	cmd   *exec.Cmd
	ended chan struct{} // closed when the reading goroutine has ended; close waits for it

	mu      sync.Mutex
	last    int                      // guarded by mu: number of the last command
	replies map[int]chan scriptReply // guarded by mu: by number of the command
	inboxes map[string]*inbox        // guarded by mu: by name of the client
	clients int                      // guarded by mu: how many there were
}

// scriptMessage is a message in JSON. Payload and correlation data are in base64, as encoding/json
// has it for []byte.
type scriptMessage struct {
	Topic       string      `json:"topic"`
	Payload     []byte      `json:"payload"`
	QoS         byte        `json:"qos"`
	Retain      bool        `json:"retain"`
	User        [][2]string `json:"user,omitempty"`
	ContentType string      `json:"contentType,omitempty"`
	Response    string      `json:"responseTopic,omitempty"`
	Correlation []byte      `json:"correlationData,omitempty"`
	Expiry      uint32      `json:"expiry,omitempty"`
	Alias       uint16      `json:"alias,omitempty"`
	Identifiers []int       `json:"subscriptionIdentifiers,omitempty"`
}

func toScript(m message) *scriptMessage {
	return &scriptMessage{m.topic, []byte(m.payload), m.qos, m.retain, m.user, m.contentType,
		m.response,
		[]byte(m.correlation), m.expiry, m.alias, nil}
}

func (m scriptMessage) message() message {
	return message{m.Topic, string(m.Payload), m.QoS, m.Retain, m.User, m.ContentType, m.Response,
		string(m.Correlation),
		m.Expiry, m.Alias, m.Identifiers}
}

// scriptCommand is one line to the script.
type scriptCommand struct {
	ID     int    `json:"id"`
	Client string `json:"client"`
	Op     string `json:"op"` // connect, subscribe, unsubscribe, publish, disconnect, kill

	// With connect.
	Port      int            `json:"port,omitempty"`
	Version   version        `json:"version,omitempty"`
	ClientID  string         `json:"clientId,omitempty"`
	Clean     bool           `json:"clean,omitempty"`
	Expiry    uint32         `json:"sessionExpiry,omitempty"`
	KeepAlive uint16         `json:"keepAlive,omitempty"`
	Will      *scriptMessage `json:"will,omitempty"`
	WillDelay uint32         `json:"willDelay,omitempty"`
	Reconnect bool           `json:"reconnect,omitempty"`
	Aliases   uint16         `json:"topicAliasMaximum,omitempty"`

	Subscriptions []scriptSubscription `json:"subscriptions,omitempty"` // with subscribe
	Identifier    int                  `json:"identifier,omitempty"`    // with subscribe
	Filters       []string             `json:"filters,omitempty"`       // with unsubscribe
	Messages      []*scriptMessage     `json:"messages,omitempty"`      // with publish
}

type scriptSubscription struct {
	Filter            string `json:"filter"`
	QoS               byte   `json:"qos"`
	NoLocal           bool   `json:"noLocal"`
	RetainAsPublished bool   `json:"retainAsPublished"`
	RetainHandling    byte   `json:"retainHandling"`
}

// scriptReply is one line from the script: the reply to a command, or an event.
type scriptReply struct {
	ID      int    `json:"id"`
	Error   string `json:"error"`
	Present bool   `json:"sessionPresent"`
	Codes   []int  `json:"codes"`

	Client  string        `json:"client"`
	Event   string        `json:"event"` // connected, message, disconnect, closed
	Message scriptMessage `json:"message"`
	Code    int           `json:"code"`
}

func (s *script) name() string                  { return s.title }
func (s *script) versions() []version           { return s.speaks }
func (s *script) can(f feature, v version) bool { return s.offers(f, v) }

func (s *script) prepare() error {
	cmd, err := s.command()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.ended = cmd, make(chan struct{})
	s.replies, s.inboxes = make(map[int]chan scriptReply), make(map[string]*inbox)
	go s.read(stdout)
	return nil
}

// read takes the script's lines until it ends. close waits for it.
func (s *script) read(stdout io.Reader) {
	defer close(s.ended)
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var r scriptReply
		if err := json.Unmarshal(line, &r); err != nil {
			fmt.Fprintf(os.Stderr, "%s wrote a line that is none of ours: %s", s.title, line)
			continue
		}
		s.mu.Lock()
		reply, in := s.replies[r.ID], s.inboxes[r.Client]
		delete(s.replies, r.ID)
		s.mu.Unlock()
		switch {
		case r.Event == "":
			if reply != nil {
				reply <- r
			}
		case in == nil: // the client has been killed
		case r.Event == "connected":
			in.connected()
		case r.Event == "message":
			in.received(r.Message.message())
		case r.Event == "disconnect":
			in.disconnected(r.Code)
		case r.Event == "closed":
			in.closed()
		}
	}
}

// call sends one command and awaits its reply.
func (s *script) call(ctx context.Context, c scriptCommand) (scriptReply, error) {
	reply := make(chan scriptReply, 1)
	s.mu.Lock()
	s.last++
	c.ID = s.last
	s.replies[c.ID] = reply
	line, err := json.Marshal(c)
	if err == nil {
		_, err = s.stdin.Write(append(line, '\n'))
	}
	s.mu.Unlock()
	if err != nil {
		return scriptReply{}, fmt.Errorf("cannot command %s: %w", s.title, err)
	}
	select {
	case r := <-reply:
		if r.Error != "" {
			return r, errors.New(r.Error)
		}
		return r, nil
	case <-s.ended:
		return scriptReply{}, fmt.Errorf("the process of %s has ended", s.title)
	case <-ctx.Done():
		return scriptReply{}, fmt.Errorf("%s has not finished %q: %w", s.title, c.Op, ctx.Err())
	}
}

func (s *script) dial(ctx context.Context, o options, in *inbox) (client, error) {
	s.mu.Lock()
	s.clients++
	c := &scriptClient{script: s, name: fmt.Sprint(s.clients)}
	s.inboxes[c.name] = in
	s.mu.Unlock()
	command := scriptCommand{Client: c.name, Op: "connect", Port: o.port, Version: o.version,
		ClientID: o.clientID,
		Clean:    !o.resume, Expiry: o.expiry, KeepAlive: o.keepAlive, WillDelay: o.willDelay,
		Reconnect: o.reconnect, Aliases: o.aliases}
	if o.will != nil {
		command.Will = toScript(*o.will)
	}
	r, err := s.call(ctx, command)
	if err != nil {
		c.kill()
		return nil, err
	}
	c.present = r.Present
	return c, nil
}

func (s *script) close() {
	if s.cmd == nil {
		return
	}
	s.stdin.Close() // tells the script to end
	<-s.ended
	_ = s.cmd.Wait()
}

type scriptClient struct {
	script  *script
	name    string
	present bool
}

func (c *scriptClient) session() (present, known bool) { return c.present, true }

func (c *scriptClient) subscribe(ctx context.Context, subs ...subscription) ([]byte, error) {
	command := scriptCommand{Client: c.name, Op: "subscribe"}
	for _, s := range subs {
		command.Identifier = s.identifier
		command.Subscriptions = append(command.Subscriptions,
			scriptSubscription{s.filter, s.qos, s.noLocal, s.retainAsPublished, s.retainHandling})
	}
	return c.codes(ctx, command)
}

func (c *scriptClient) unsubscribe(ctx context.Context, filters ...string) ([]byte, error) {
	return c.codes(ctx, scriptCommand{Client: c.name, Op: "unsubscribe", Filters: filters})
}

func (c *scriptClient) codes(ctx context.Context, command scriptCommand) ([]byte, error) {
	r, err := c.script.call(ctx, command)
	var codes []byte
	for _, code := range r.Codes {
		codes = append(codes, byte(code))
	}
	return codes, err
}

func (c *scriptClient) publish(ctx context.Context, ms ...message) error {
	command := scriptCommand{Client: c.name, Op: "publish"}
	for _, m := range ms {
		command.Messages = append(command.Messages, toScript(m))
	}
	_, err := c.script.call(ctx, command)
	return err
}

func (c *scriptClient) disconnect(ctx context.Context) error {
	_, err := c.script.call(ctx, scriptCommand{Client: c.name, Op: "disconnect"})
	return err
}

func (c *scriptClient) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, _ = c.script.call(ctx, scriptCommand{Client: c.name, Op: "kill"})
	c.script.mu.Lock()
	delete(c.script.inboxes, c.name)
	c.script.mu.Unlock()
}

// mqttJS is the npm package mqtt.
func mqttJS() *script {
	return &script{
		title:  "MQTT.js",
		speaks: []version{v31, v311, v5},
		offers: func(f feature, v version) bool {
			switch f {
			case canRequest:
				return false
			case canTellReason, canSendAlias, canReceiveAlias, canSubscribeWith, canSubscribeID:
				return v == v5
			}
			return true
		},
		command: func() (*exec.Cmd, error) {
			node, err := exec.LookPath("node")
			if err != nil {
				return nil, errors.New("node is not installed")
			}
			if err := installModules("mqttjs"); err != nil {
				return nil, err
			}
			return exec.Command(node, filepath.Join("mqttjs", "driver.js")), nil
		},
	}
}

// installModules lets npm install what folder/package-lock.json lists, unless that has been done.
func installModules(folder string) error {
	wanted, err := os.Stat(filepath.Join(folder, "package-lock.json"))
	if err != nil {
		return err
	}
	installed, err := os.Stat(filepath.Join(folder, "node_modules", ".package-lock.json"))
	if err == nil && !wanted.ModTime().After(installed.ModTime()) {
		return nil
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return errors.New("npm is not installed, and " + folder + "/node_modules is missing or old")
	}
	install := exec.Command(npm, "ci", "--no-audit", "--no-fund", "--loglevel=error")
	install.Dir = folder
	if out, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci in %s: %v\n%s", folder, err, out)
	}
	return nil
}

// pahoPython is the Python package paho-mqtt, as Debian has it.
func pahoPython() *script {
	return &script{
		title:  "paho-mqtt (Python)",
		speaks: []version{v31, v311, v5},
		offers: func(f feature, v version) bool {
			switch f {
			case canRequest, canTellReason, canReceiveAlias:
				return false
			case canSendAlias, canSubscribeWith, canSubscribeID:
				return v == v5
			}
			return true
		},
		command: func() (*exec.Cmd, error) {
			// Debian's package belongs to Debian's interpreter, which need not be the first in
			// PATH.
			pythons := []string{"/usr/bin/python3", "python3"}
			i := slices.IndexFunc(pythons, func(p string) bool {
				return exec.Command(p, "-c", "import paho.mqtt.client").Run() == nil
			})
			if i < 0 {
				return nil, errors.New(
					"no python3 with the package paho-mqtt (Debian: python3-paho-mqtt)")
			}
			return exec.Command(pythons[i], "-B", filepath.Join("pahopython", "driver.py")), nil
		},
	}
}
