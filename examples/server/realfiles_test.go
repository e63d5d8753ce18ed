package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// The files in mosquittoconf/testdata are such as people have. Here both brokers run them, and
// clients find out who may connect where, and what they may do there. Bridges are
// compared in TestConnectionsAsMosquitto.

// A placed file is one of them, with ports, paths and files of this test.
type placed struct {
	t     *testing.T
	site  *site
	dir   string
	ours  bool
	rules bool
	at    []*place
}

// A place is where a file listens.
type place struct {
	addr              string
	tls, web, mounted bool
	name              string // the same for both brokers
}

// put returns the name of a copy of a file.
func (p *placed) put(file string) string {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join("mosquittoconf", file))
	require.NoError(p.t, err)
	var lines []string
	if os.Geteuid() == 0 && !strings.Contains(string(text), "user root") &&
		filepath.Dir(file) == "testdata" {
		lines = append(lines, "user root")
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if !p.ours && line == "# and what this program has besides" {
			break
		}
		lines = append(lines, p.line(strings.Fields(line), line))
	}
	name := filepath.Join(p.dir, filepath.Base(file))
	require.NoError(p.t, os.WriteFile(name, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return name
}

// line returns a line as it is here.
func (p *placed) line(words []string, line string) string {
	if len(words) < 2 {
		return line
	}
	last := &place{}
	if len(p.at) > 0 {
		last = p.at[len(p.at)-1]
	}
	in := func(name string) string { return words[0] + " " + filepath.Join(p.dir, name) }
	switch name := words[0]; {
	case name == "listener" && words[1] == "0":
		p.at = append(p.at, &place{name: line, addr: filepath.Join(p.dir, "socket")})
		return "listener 0 " + p.at[len(p.at)-1].addr
	case name == "listener" && words[1] != "99999":
		port := freePort(p.t)
		p.at = append(p.at, &place{name: line, addr: "127.0.0.1:" + port})
		return "listener " + port + " 127.0.0.1"
	case name == "port":
		port := freePort(p.t)
		p.at = append(p.at, &place{name: line, addr: "127.0.0.1:" + port})
		return "port " + port
	case line == "protocol websockets":
		last.web = true
	case name == "mount_point":
		last.mounted = true
	case name == "certfile":
		last.tls = true
		return "certfile " + p.site.cert
	case name == "keyfile":
		return "keyfile " + p.site.key
	case name == "cafile":
		return "cafile " + p.site.clientCA
	case name == "crlfile":
		return "crlfile " + p.site.crl
	case name == "dhparamfile":
		return "" // Mosquitto wants to read one, and both have ECDHE
	case name == "password_file":
		return in("passwords")
	case name == "acl_file":
		p.rules = true
		return in("rules")
	case name == "persistence_location":
		return in("data") + "/"
	case name == "http_dir":
		return in("www")
	case name == "pid_file":
		return in("pid")
	case name == "include_dir":
		included, err := filepath.Glob("mosquittoconf/" + words[1] + "/*.conf")
		require.NoError(p.t, err)
		for _, file := range included {
			p.put(strings.TrimPrefix(file, "mosquittoconf/"))
			require.NoError(p.t, os.Rename(filepath.Join(p.dir, filepath.Base(file)),
				filepath.Join(p.dir, "conf.d", filepath.Base(file))))
		}
		return in("conf.d")
	case strings.HasPrefix(line, "log_dest file"):
		return "log_dest file " + filepath.Join(p.dir, "log")
	}
	return line
}

// newPlaced makes what the files name.
func newPlaced(t *testing.T, s *site, ours bool) *placed {
	dir, err := os.MkdirTemp("", "real") // a short name, for the sockets
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, name := range []string{"data", "www", "conf.d"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	passwords, err := os.ReadFile(users(t, "jane", "pencil"))
	require.NoError(t, err)
	for name, text := range map[string]string{
		"www/index.html": "a page", "passwords": string(passwords),
		"rules": "topic readwrite open/#\nuser jane\ntopic readwrite a/#\npattern readwrite " +
			"own/%c\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return &placed{t: t, site: s, dir: dir, ours: ours}
}

// runs starts a Mosquitto, and says whether it serves. end ends it.
func runs(t *testing.T, addr string, args ...string) (end func(), ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t, "mosquitto"), args...)
	require.NoError(t, cmd.Start())
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }() // the cleanup waits for it
	end = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		over <- <-over
	}
	t.Cleanup(end)
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	eventually(t, "it serves, or ends", func() bool {
		c, err := net.Dial(network, addr)
		if ok = err == nil; ok {
			c.Close()
		}
		return ok || len(over) > 0
	})
	return end, ok
}

// outcomes is what clients meet at a place, without and with a certificate. lost is one that is
// revoked.
func (x *place) outcomes(t *testing.T, s *site, lost *testcert.Certificate) (all []string) {
	configs := []*tls.Config{nil}
	if x.tls {
		old := s.client(nil)
		old.MaxVersion = tls.VersionTLS11
		configs = []*tls.Config{s.client(nil), s.client(s.clients.Issue("jane")), s.client(lost),
			old}
	}
	for i, config := range configs {
		for _, l := range []login{{"c1", "-", "-"}, {"c2", "jane", "pencil"}, {"c3", "jane", "x"},
			{"c4", "jack", "x"}, {"", "-", "-"}} {
			nc := x.dial(t, config)
			c := comesIn(t, nc, l)
			what := fmt.Sprintf("%s, TLS %d, %+v comes in: %v", x.name, i, l, c != nil)
			if c != nil {
				c.mounted = x.mounted
				what += c.finds()
			}
			nc.Close()
			all = append(all, what)
		}
	}
	return all
}

func (x *place) dial(t *testing.T, config *tls.Config) net.Conn {
	if x.web {
		nc, status := overWS(t, x.addr, "")
		require.Equal(t, 101, status)
		return nc
	}
	if config != nil {
		return dialTLS(t, x.addr, config)
	}
	return dial(t, x.addr)
}

// comesIn is connect where the handshake of TLS may fail; nil: the client was refused.
func comesIn(t *testing.T, nc net.Conn, l login) *client {
	if c, ok := nc.(*tls.Conn); ok && c.Handshake() != nil {
		return nil
	}
	p := &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: l.id}
	if p.HasUsername = l.name != "-"; p.HasUsername {
		p.Username, p.HasPassword, p.Password = l.name, true, []byte(l.password)
	}
	wire, err := p.Append(nil, packets.V5)
	require.NoError(t, err)
	if _, err := nc.Write(wire); err != nil {
		return nil
	}
	c := &client{t: t, conn: nc, in: packets.NewReader(nc, packets.Limits{}),
		got: map[string]string{}}
	c.in.SetVersion(packets.V5)
	if ack, err := c.in.ReadPacket(); err != nil || ack.(*packets.Connack).Code.Failed() {
		return nil
	}
	return c
}

// made says which files are there.
func (p *placed) made() string {
	return fmt.Sprint("log: ", exists(filepath.Join(p.dir, "log")))
}

// kept says whether anything is in persistence_location.
func (p *placed) kept() bool {
	files, err := os.ReadDir(filepath.Join(p.dir, "data"))
	require.NoError(p.t, err)
	return len(files) > 0
}

func TestFilesAsPeopleHaveThemBesideMosquitto(t *testing.T) {
	program(t, "mosquitto")
	for _, file := range []string{"debian-default", "docker-default", "limits", "mutual-tls",
		"per-listener", "tls", "websockets", "errors", "home-automation"} {
		t.Run(file, func(t *testing.T) {
			s := newSite(t)
			lost := s.clients.Issue("lost")
			testcert.Write(t, s.crl, s.clients.CRL(time.Now().Add(time.Hour), lost))
			theirs, ours := newPlaced(t, s, false), newPlaced(t, s, true)
			name := filepath.Join("testdata", file+".conf")
			args := []string{"-c", theirs.put(name)}
			own := []string{"-config", ours.put(name), "-acl-at-delivery=" + fmt.Sprint(ours.rules)}
			for _, p := range []*placed{theirs, ours} {
				if len(p.at) == 0 { // on 127.0.0.1 alone
					port := freePort(t)
					p.at = append(p.at, &place{name: "-p", addr: "127.0.0.1:" + port})
					if p.ours {
						own = append(own, "-p", port)
					} else {
						args = append(args, "-p", port)
					}
				}
			}
			end, ok := runs(t, theirs.at[0].addr, args...)
			_, err := parse(own)
			require.Equal(t, ok, err == nil, "mosquitto starts, and we: %v", err)
			if !ok {
				return
			}
			start(t, own...)
			n := 0
			for i := range theirs.at {
				want, got := theirs.at[i].outcomes(t, s, lost), ours.at[i].outcomes(t, s, lost)
				require.Equal(t, want, got, "mosquitto, then we")
				n += len(want)
				if theirs.at[i].web {
					require.Equal(t, get(t, "http://"+theirs.at[i].addr+"/"),
						get(t, "http://"+ours.at[i].addr+"/"))
				}
			}
			require.Equal(t, theirs.made(), ours.made())
			kept := ours.kept()
			end()
			require.Equal(t, theirs.kept(), kept, "something is in persistence_location")
			t.Logf("%d outcomes compared", n)
		})
	}
}

// A file in include_dir that allows anonymous clients does not mean the listener of another file.
func TestIncludedFilesAsMosquitto(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
	in := func(broker string) (name string, guarded, open string) {
		guarded, open = freePort(t), freePort(t)
		for file, text := range map[string]string{
			"d/a.conf": "listener " + guarded + " 127.0.0.1\n",
			"d/b.conf": "port " + open + "\nbind_address 127.0.0.1\nallow_anonymous true\n",
			broker:     "per_listener_settings true\ninclude_dir " + dir + "/d\n",
		} {
			if os.Geteuid() == 0 && file == broker {
				text = "user root\n" + text
			}
			require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
		}
		return filepath.Join(dir, broker), "127.0.0.1:" + guarded, "127.0.0.1:" + open
	}
	compare := func(guarded, open string) {
		nobody := login{"c", "-", "-"}
		require.Nil(t, comesIn(t, dial(t, guarded), nobody))
		require.NotNil(t, comesIn(t, dial(t, open), nobody))
	}
	name, guarded, open := in("theirs")
	_, ok := runs(t, guarded, "-c", name)
	require.True(t, ok)
	compare(guarded, open)
	name, guarded, open = in("ours")
	start(t, "-config", name)
	compare(guarded, open)
}
