package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// runMosquitto starts a real one with a config file until the test ends.
func runMosquitto(t *testing.T, conf string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t, "mosquitto"), "-c", conf)
	said, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.HasSuffix(lines.Text(), " running") {
		t.Log(lines.Text())
	}
	require.Contains(t, lines.Text(), " running", "mosquitto has not started")
	go io.Copy(io.Discard, said) // ends with the process
}

// settings in words: @0, @1 and so on are unix sockets, PASSWORDS and RULES are files.
var sameFiles = []struct{ name, conf string }{
	{"anonymous", "listener 0 @0\nallow_anonymous true\n"},
	{"nothing is said about who may connect", "listener 0 @0\n"},
	{"users", "listener 0 @0\npassword_file PASSWORDS\n"},
	{"users and others", "allow_anonymous true\npassword_file PASSWORDS\nlistener 0 @0\n"},
	{"rules for users and others", "allow_anonymous true\npassword_file PASSWORDS\nacl_file " +
		"RULES\nlistener 0 @0\n"},
	{"settings behind the last listener hold for all", "listener 0 @0\nlistener 0 " +
		"@1\npassword_file PASSWORDS\nacl_file RULES\n"},
	{"settings of each", "per_listener_settings true\nlistener 0 @0\npassword_file " +
		"PASSWORDS\nacl_file RULES\nlistener 0 @1\nallow_anonymous true\nlistener 0 @2\n"},
	{"rules of each", "per_listener_settings true\nlistener 0 @0\nallow_anonymous true\nacl_file " +
		"RULES\nlistener 0 @1\nallow_anonymous true\n"},
	{"per_listener_settings behind a listener", "listener 0 @0\nper_listener_settings " +
		"true\nallow_anonymous true\nlistener 0 @1\npassword_file PASSWORDS\n"},
	{"a mount point", "allow_anonymous true\nlistener 0 @0\nmount_point m/\nlistener 0 @1\n"},
	{"a mount point without slash",
		"allow_anonymous true\nlistener 0 @0\nmount_point m\nlistener " +
			"0 @1\n"},
	{"QoS 0 only", "allow_anonymous true\nlistener 0 @0\nmax_qos 0\nlistener 0 @1\nmax_qos 1\n"},
	{"no retained messages", "allow_anonymous true\nretain_available false\nlistener 0 @0\n"},
	{"names as identifiers", "allow_anonymous true\npassword_file PASSWORDS\nlistener 0 " +
		"@0\nuse_username_as_clientid true\nlistener 0 @1\n"},
	{"prefixes of identifiers", "allow_anonymous true\nclientid_prefixes se\nlistener 0 @0\n"},
	{"identifiers that are made up", "allow_anonymous true\nauto_id_prefix made-\nlistener 0 @0\n"},
	{"no empty identifiers", "allow_anonymous true\nallow_zero_length_clientid false\nlistener 0 " +
		"@0\n"},
	{"limits", "allow_anonymous true\nmax_packet_size 60\nmessage_size_limit " +
		"10\nmax_queued_messages 10\nmax_inflight_messages 1\nlistener 0 @0\nmax_topic_alias " +
		"0\nmax_connections 5\n"},
}

// TestFilesAsMosquitto gives both brokers the same files, and compares what clients meet.
func TestFilesAsMosquitto(t *testing.T) {
	passwords := users(t, "jane", "pencil")
	rules := write(t, "rules", "topic read open/#", "topic write open/#", "user jane",
		"topic readwrite a/#", "pattern readwrite own/%c")
	program(t, "mosquitto")
	n := 0
	for _, tt := range sameFiles {
		t.Run(tt.name, func(t *testing.T) {
			var sockets [2][]string
			for i := range sockets {
				dir, err := os.MkdirTemp("", "both") // a short name, for the sockets
				require.NoError(t, err)
				t.Cleanup(func() { os.RemoveAll(dir) })
				text := strings.NewReplacer("PASSWORDS", passwords, "RULES", rules, "@",
					dir+"/").Replace(tt.conf)
				for k := range strings.Count(tt.conf, "@") {
					sockets[i] = append(sockets[i], filepath.Join(dir, fmt.Sprint(k)))
				}
				if i == 1 {
					start(t, "-acl-at-delivery="+fmt.Sprint(strings.Contains(tt.conf, "RULES")),
						"-config", write(t, "c", text))
					continue
				}
				if os.Geteuid() == 0 {
					text = "user root\n" + text
				}
				runMosquitto(t, write(t, "c", text))
			}
			mounted := strings.Contains(tt.conf, "mount_point")
			for k := range sockets[0] {
				theirs, ours := met(t, sockets[0][k], mounted && k == 0), met(t, sockets[1][k],
					mounted && k == 0)
				require.Equal(t, theirs, ours, "listener %d: mosquitto, then we", k)
				n += len(theirs)
			}
			theirs, ours := across(t, sockets[0], mounted), across(t, sockets[1], mounted)
			require.Equal(t, theirs, ours, "from one listener to another: mosquitto, then we")
		})
	}
	t.Logf("%d outcomes compared", n)
}

// met is what clients meet at a listener.
func met(t *testing.T, addr string, mounted bool) (all []string) {
	for _, l := range []login{
		{"c1", "-", "-"}, {"c2", "jane", "pencil"}, {"c3", "jane", "x"}, {"c4", "jack", "x"}, {"c5",
			"", "-"}, {"second", "-", "-"}, {"", "-", "-"},
	} {
		nc := dial(t, addr)
		c, code := connect(t, nc, l)
		what := fmt.Sprintf("%+v comes in: %v", l, !code.Failed())
		if c != nil {
			c.mounted = mounted
			what += c.finds()
		}
		nc.Close()
		all = append(all, what)
	}
	return all
}

// finds is what a client may do.
func (c *client) finds() (what string) {
	for _, filter := range []string{"a/b", "open/x", "#"} {
		code := c.subscribe(filter)
		what += fmt.Sprintf(", %s: %v", filter, code.Failed())
	}
	for _, topic := range []string{"a/b", "open/x", "own/c2", "other"} {
		c.send(&packets.Publish{Topic: []byte(topic), Payload: []byte("hi")})
	}
	c.settle()
	return what + fmt.Sprint(", gets ", c.sees())
}

// settle waits for what is delivered a moment later, when rules are asked about it: until nothing
// has come for a while. On a machine that is busy the answers to pings take longer, too.
func (c *client) settle() {
	const while, pings = 25 * time.Millisecond, 20
	n, since, answered := len(c.got), time.Now(), 0
	for time.Since(since) < while || answered < pings {
		c.ping()
		if answered++; len(c.got) > n {
			n, since, answered = len(c.got), time.Now(), 0
		}
	}
}

// sees is what has come, without mount points: Mosquitto 2.0.11 leaves them in what it sends,
// although its manual says otherwise.
func (c *client) sees() map[string]string {
	seen := map[string]string{}
	for topic, payload := range c.got {
		for _, own := range []string{"a/b", "open/", "own/", "other", "from/"} {
			if i := strings.Index(topic, own); i > 0 && c.mounted {
				topic = topic[i:]
			}
		}
		seen[topic] = payload
	}
	return seen
}

// across is what comes from each listener to clients of the others.
func across(t *testing.T, sockets []string, mounted bool) (all []string) {
	var clients []*client
	for k, addr := range sockets {
		c, code := connect(t, dial(t, addr), login{fmt.Sprint("second", k), "-", "-"})
		if code.Failed() {
			c, _ = connect(t, dial(t, addr), login{fmt.Sprint("second", k), "jane", "pencil"})
		}
		if c != nil {
			c.mounted = mounted && k == 0
			c.subscribe("#")
			clients = append(clients, c)
		}
	}
	for k, c := range clients {
		c.send(&packets.Publish{Topic: fmt.Append(nil, "from/", k), Payload: []byte("hi")})
		c.send(&packets.Publish{Topic: fmt.Append(nil, "open/", k), Payload: []byte("hi")})
		c.ping()
	}
	for _, c := range clients {
		c.settle()
		all = append(all, fmt.Sprint(c.sees()))
	}
	return all
}
