package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// startMosquitto starts a real one with the same files until the test ends, and returns the path of
// its socket, and of another one where everybody may do everything.
func startMosquitto(t *testing.T, anonymous, passwords, rules string) (guarded, open string) {
	t.Helper()
	broker := program(t, "mosquitto")
	dir, err := os.MkdirTemp("", "acl") // a short name, for the sockets
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	guarded, open = filepath.Join(dir, "guarded"), filepath.Join(dir, "open")
	config := "per_listener_settings true\nlistener 0 " + guarded + "\nallow_anonymous " +
		anonymous + "\n"
	if os.Geteuid() == 0 {
		config = "user root\n" + config
	}
	if passwords != "" {
		config += "password_file " + passwords + "\n"
	}
	if rules != "" {
		config += "acl_file " + rules + "\n"
	}
	config += "listener 0 " + open + "\nallow_anonymous true\n"
	conf := filepath.Join(dir, "conf")
	require.NoError(t, os.WriteFile(conf, []byte(config), 0o600))
	cmd := exec.CommandContext(t.Context(), broker, "-c", conf)
	said, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.HasSuffix(lines.Text(), " running") {
	}
	require.Contains(t, lines.Text(), " running", "mosquitto has not started with\n%s", config)
	go io.Copy(io.Discard, said) // ends with the process
	return guarded, open
}

// TestLoginsAsMosquitto: both brokers accept and refuse the same clients.
func TestLoginsAsMosquitto(t *testing.T) {
	file := users(t, "jane", "pencil", "joe", "brush")
	n := 0
	for _, anonymous := range []string{"true", "false"} {
		for _, passwords := range []string{"", file} {
			guarded, _ := startMosquitto(t, anonymous, passwords, "")
			addrs, _ := start(t, "-listen", "127.0.0.1:0", "-allow-anonymous="+anonymous,
				"-password-file", passwords)
			for _, name := range []string{"-", "", "jane", "joe", "jack", "jane ", "Jane",
				"jane:x"} {
				for _, password := range []string{"-", "", "pencil", "brush", "pencil ", "penci"} {
					if name == "-" && password != "-" {
						continue // what a client must not send before 5.0
					}
					l := login{fmt.Sprint("c", n), name, password}
					_, theirs := connect(t, dial(t, guarded), l)
					_, ours := connect(t, dial(t, addrs[0]), l)
					require.Equal(t, theirs.Failed(), ours.Failed(),
						"-allow-anonymous=%s -password-file=%s %+v: mosquitto says %v, we %v",
						anonymous, passwords, l, theirs, ours)
					n++
				}
			}
		}
	}
	t.Logf("%d logins compared", n)
}

// questions are what clients are asked to do, at random.
type questions struct{ *rand.Rand }

func (r questions) pick(of ...string) string { return of[r.IntN(len(of))] }

// topic returns a Topic Name, or a filter where wild says so.
func (r questions) topic(wild bool, levels ...string) string {
	if wild {
		levels = append(levels, "+")
	}
	var of []string
	for range 1 + r.IntN(3) {
		of = append(of, r.pick(levels...))
	}
	if wild && r.IntN(4) == 0 {
		of[len(of)-1] = "#"
	}
	return strings.Join(of, "/")
}

// rules returns an acl_file.
func (r questions) rules() string {
	var b strings.Builder
	for range 3 + r.IntN(12) {
		access := r.pick("", "read ", "write ", "readwrite ", "deny ")
		switch r.IntN(4) {
		case 0:
			b.WriteString("user " + r.pick("jane", "joe") + "\n")
		case 1, 2:
			b.WriteString("topic " + access + r.topic(true, "a", "b", "jane") + "\n")
		default:
			b.WriteString("pattern " + access + r.topic(true, "a", "%u", "%c", "x%c") + "\n")
		}
	}
	return b.String()
}

// TestAccessAsMosquitto gives both brokers the same files, and compares what clients with and
// without names may publish and read: what a publish is answered, and what a subscription brings.
func TestAccessAsMosquitto(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := questions{rand.New(rand.NewPCG(seed, 0))}
	passwords := users(t, "jane", "pencil", "joe", "brush")
	logins := []login{{"c", "-", "-"}, {"jane", "jane", "pencil"}, {"a", "joe", "brush"}}
	published, read, wild := 0, 0, 0
	for range 8 {
		file := r.rules()
		rules := write(t, "rules", file)
		guarded, open := startMosquitto(t, "true", passwords, rules)
		addrs, _ := start(t, "-listen", "127.0.0.1:0", "-allow-anonymous", "-password-file",
			passwords, "-acl-file", rules)
		filtered, _ := start(t, "-listen", "127.0.0.1:0", "-allow-anonymous", "-password-file",
			passwords, "-acl-file", rules, "-acl-at-delivery",
			"-deny-subscribe", "not/this")
		everything := login{"everything", "-", "-"}.at(t, dial(t, open))
		for _, l := range logins {
			about := fmt.Sprintf("%s\n%+v", file, l)
			theirs, ours, third := l.at(t, dial(t, guarded)), l.at(t, dial(t, addrs[0])),
				l.at(t, dial(t, filtered[0]))
			topics := map[string]bool{}
			for range 12 {
				topics[r.topic(false, "a", "b", "c", "jane", "xc", "xa")] = true
			}
			theirs.subscribe("#")
			for topic := range topics {
				everything.publish(topic, "x")
			}
			theirs.ping()
			readable := maps.Clone(theirs.got)
			for topic := range topics {
				_, readable := readable[topic]
				require.Equal(t, readable, !ours.subscribe(topic).Failed(),
					"%s\nread %s: mosquitto says %v", about, topic, readable)
				want := theirs.publish(topic, "w")
				require.Equal(t, want.Failed(), ours.publish(topic, "w").Failed(),
					"%s\nwrite %s: mosquitto says %v", about, topic, want)
				published++
				read++
			}
			// a subscription with wildcards is granted only if mosquitto leaves nothing out of it
			for range 8 {
				filter := r.topic(true, "a", "b", "jane")
				if ours.subscribe(filter).Failed() {
					continue
				}
				for topic := range topics {
					if packets.MatchTopic(filter, topic) {
						require.Contains(t, readable, topic, "%s\nsubscribe to %s", about, filter)
						wild++
					}
				}
			}
			require.True(t, third.subscribe("not/this").Failed(), about)
			require.False(t, third.subscribe("#").Failed(), about)
			ours.ping()
			clear(ours.got)
			clear(theirs.got)
			// what they publish themselves comes back if they may read it
			for topic := range topics {
				if !third.publish(topic, "d").Failed() {
					theirs.publish(topic, "d")
				}
			}
			theirs.ping()
			for end := time.Now().Add(patience); len(third.got) < len(theirs.got) &&
				time.Now().Before(end); { // rules are asked about it first
				third.ping()
			}
			third.settle()
			require.Equal(t, slices.Sorted(maps.Keys(theirs.got)),
				slices.Sorted(maps.Keys(third.got)), "%s\nwith -acl-at-delivery", about)
		}
	}
	require.GreaterOrEqual(t, published+read, 300)
	t.Logf("%d publishes and %d subscriptions compared, %d topics of granted wildcards", published,
		read, wild)
}
