package trace

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A source is a Tap that shows what it is given.
type source struct {
	packets chan hooks.TapPacket
	stop    chan struct{}
}

func newSource() *source {
	return &source{packets: make(chan hooks.TapPacket, 10_000), stop: make(chan struct{})}
}

func (s *source) Tap(context.Context, hooks.TapOptions) (hooks.Tap, error) { return s, nil }

func (s *source) Packets() iter.Seq[hooks.TapPacket] {
	return func(yield func(hooks.TapPacket) bool) {
		for {
			select {
			case p := <-s.packets:
				if !yield(p) {
					return
				}
			default:
				select {
				case p := <-s.packets:
					if !yield(p) {
						return
					}
				case <-s.stop:
					return
				}
			}
		}
	}
}

func (s *source) Lost() uint64 { return 0 }

func (s *source) Stop() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
}

var begin = time.Date(2026, 1, 1, 12, 0, 0, 123456789, time.UTC)

// shown is a packet that a Tap has shown.
func shown(t *testing.T, conn uint64, c *hooks.Client, incoming bool,
	p packets.Packet) hooks.TapPacket {
	b, err := p.Append(nil, c.Version)
	require.NoError(t, err)
	return hooks.TapPacket{
		Time: begin, Conn: conn, Client: c, Incoming: incoming, Version: c.Version, Data: b,
	}
}

func client(id string, v packets.Version, addr string) *hooks.Client {
	c := &hooks.Client{ID: id, Version: v, CleanStart: true}
	if addr != "" {
		c.RemoteAddr, _ = net.ResolveTCPAddr("tcp", addr)
		c.LocalAddr, _ = net.ResolveTCPAddr("tcp", "127.0.0.1:8883")
	}
	return c
}

// conversation has each packet of each version: a connection that is seen from its beginning, one
// that was there before, large packets, IPv6, addresses that are none, and a number that is used
// again.
func conversation(t *testing.T) (all []hooks.TapPacket) {
	a := client("a", packets.V5, "192.0.2.1:50001")
	b := client("b", packets.V311, "[2001:db8::1]:50002")
	c := client("c", packets.V31, "")
	d := client("dä\n", packets.V5, "192.0.2.4:443")
	add := func(conn uint64, c *hooks.Client, in bool, ps ...packets.Packet) {
		for _, p := range ps {
			all = append(all, shown(t, conn, c, in, p))
		}
	}
	props := packets.Properties(nil).AppendUser("k", "v")
	connect := func(c *hooks.Client) *packets.Connect {
		return &packets.Connect{Version: c.Version, ClientID: c.ID, CleanStart: true, KeepAlive: 60,
			HasUsername: true, Username: "u", HasPassword: true, Password: []byte("***"),
			Will: &packets.Will{Topic: "w", Payload: []byte("gone"), QoS: 1}}
	}
	for i, x := range []*hooks.Client{a, b, c, d} {
		conn := uint64(i)
		if x != b && x != d { // those were there before
			add(conn, x, true, connect(x))
			add(conn, x, false, &packets.Connack{})
		}
		publish := &packets.Publish{QoS: 2, PacketID: 7, Topic: []byte("t/é"), Payload: []byte("x")}
		if x.Version == packets.V5 {
			publish.Properties = props.AppendUint(packets.MessageExpiryInterval, 9)
		}
		add(conn, x, true,
			&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "t/#",
				QoS: 2}}},
			publish, &packets.Ack{Kind: packets.TypePubrel, PacketID: 7}, new(packets.Pingreq))
		add(conn, x, false,
			&packets.Suback{PacketID: 1, Codes: []packets.ReasonCode{2}},
			&packets.Ack{Kind: packets.TypePubrec, PacketID: 7},
			&packets.Ack{Kind: packets.TypePubcomp, PacketID: 7}, new(packets.Pingresp),
			&packets.Publish{QoS: 1, PacketID: 9, Topic: []byte("large"), Payload: make([]byte,
				200_000)})
		add(conn, x, true, &packets.Ack{Kind: packets.TypePuback, PacketID: 9},
			&packets.Unsubscribe{PacketID: 2, Filters: []string{"t/#"}})
		unsuback := &packets.Unsuback{PacketID: 2}
		if x.Version == packets.V5 {
			unsuback.Codes = []packets.ReasonCode{0}
		}
		add(conn, x, false, unsuback)
		if x.Version == packets.V5 {
			method := packets.Properties(nil).AppendText(packets.AuthenticationMethod, "M")
			add(conn, x, true, &packets.Auth{Code: packets.ReAuthenticate, Properties: method})
			add(conn, x, false, &packets.Auth{Properties: method},
				&packets.Disconnect{Code: packets.ServerShuttingDown})
		}
		add(conn, x, true, new(packets.Disconnect))
	}
	add(0, a, true, connect(a)) // another connection with the number and the address
	for i := range all {
		all[i].Time = begin.Add(time.Duration(i) * time.Millisecond)
	}
	return all
}

// write makes a trace of packets and returns the files, the oldest first.
func write(t *testing.T, f Format, o Options, all []hooks.TapPacket) []string {
	src := newSource()
	o.Dir = t.TempDir()
	r := New(src, o)
	x, err := r.Start(t.Context(), "trace", f, hooks.TapOptions{})
	require.NoError(t, err)
	for _, p := range all {
		src.packets <- p
	}
	r.Close()
	require.EqualValues(t, len(all), x.Packets())
	require.NoError(t, x.Err())
	files := x.Files()
	slices.Reverse(files)
	return slices.DeleteFunc(files, func(name string) bool {
		_,
			err := os.Stat(name)
		return err != nil
	})
}

// readAll returns what is in files, with what a trace keeps of it.
func readAll(t *testing.T, files []string) (all []string) {
	for _, name := range files {
		f, err := os.Open(name)
		require.NoError(t, err)
		defer f.Close()
		for p, err := range Read(f) {
			require.NoError(t, err)
			all = append(all, inShort(&p))
		}
	}
	return all
}

func inShort(p *hooks.TapPacket) string {
	return fmt.Sprintf("%v %q %v %v %d %x", p.Time.UTC(), p.Client.ID, p.Incoming, p.Version,
		len(p.Data),
		p.Data[:min(len(p.Data), 100)])
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	all := conversation(t)
	var want []string
	for i := range all {
		want = append(want, inShort(&all[i]))
	}
	for _, f := range []Format{FormatJSON, FormatPCAPNG} {
		t.Run(f.String(), func(t *testing.T) {
			require.Equal(t, want, readAll(t, write(t, f, Options{}, all)), "one file")
			files := write(t, f, Options{FileBytes: 300_000, Files: 100}, all)
			require.Greater(t, len(files), 3)
			require.Equal(t, want, readAll(t, files), "each file can be read by itself")
			for _, name := range files {
				st, err := os.Stat(name)
				require.NoError(t, err)
				require.Less(t, st.Size(), int64(900_000))
				require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
			}
		})
	}
}

// The checksums and the sequence numbers are right, which Read does not look at.
func TestTheSegmentsAreSound(t *testing.T) {
	files := write(t, FormatPCAPNG, Options{}, conversation(t))
	b, err := os.ReadFile(files[0])
	require.NoError(t, err)
	next := map[string]uint32{}
	segments := 0
	for len(b) > 0 {
		kind, n := le.Uint32(b), le.Uint32(b[4:])
		require.Zero(t, n%4)
		require.Equal(t, n, le.Uint32(b[n-4:]), "a block ends with its length")
		body := b[8 : n-4]
		b = b[n:]
		if kind != blockPacket {
			continue
		}
		segments++
		ip := body[20 : 20+le.Uint32(body[12:])]
		sum, hosts := uint32(0), ip[8:40]
		tcp := ip[min(len(ip), 40):]
		if ip[0]>>4 == 4 {
			require.Zero(t, checksum(0, ip[:20]), "the checksum of IP")
			hosts, tcp = ip[12:20], ip[20:]
		}
		for i := 0; i < len(hosts); i += 2 {
			sum += uint32(hosts[i])<<8 | uint32(hosts[i+1])
		}
		require.Zero(t, checksum(sum+6+uint32(len(tcp)), tcp), "the checksum of TCP")
		flow := string(hosts) + string(tcp[:4])
		seq := uint32(tcp[4])<<24 | uint32(tcp[5])<<16 | uint32(tcp[6])<<8 | uint32(tcp[7])
		if tcp[13]&tcpSYN == 0 {
			require.Equal(t, next[flow], seq, "nothing is missing")
		}
		next[flow] = seq + uint32(len(tcp)-20)
		if tcp[13]&(tcpSYN|tcpFIN) != 0 {
			next[flow]++
		}
	}
	require.Greater(t, segments, 60)
}

// tshark decodes each packet. It is not everywhere; the tests above hold what it relies on.
func TestTsharkReadsIt(t *testing.T) {
	path, err := exec.LookPath("tshark")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("tshark is not installed: see .ci/setup.sh")
		}
		t.Skip("tshark is not installed")
	}
	all := conversation(t)
	for _, o := range []Options{{}, {FileBytes: 1_000_000, Files: 100}} {
		mqtt := 0
		for _, name := range write(t, FormatPCAPNG, o, all) {
			cmd := exec.Command(path, "-r", name, "-o", "tcp.check_checksum:TRUE",
				"-o", "ip.check_checksum:TRUE", "-T", "fields", "-e", "mqtt.msgtype",
				"-e", "_ws.malformed", "-e", "tcp.analysis.lost_segment",
				"-e", "tcp.checksum.status", "-e", "ip.checksum.status")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			require.NoError(t, err, "%s", stderr.String())
			for line := range strings.Lines(string(out)) {
				f := strings.Split(strings.TrimRight(line, "\n"), "\t")
				require.Len(t, f, 5)
				if f[0] != "" {
					mqtt += 1 + strings.Count(f[0], ",")
				}
				require.Empty(t, f[1]+f[2], "malformed, or not complete: %q", line)
				require.NotEqual(t, "0", f[3], "the checksum of TCP: %q", line)
				require.NotEqual(t, "0", f[4], "the checksum of IP: %q", line)
			}
		}
		require.GreaterOrEqual(t, mqtt, len(all), "each packet was recognized")
	}
}

func TestTextIsForPeople(t *testing.T) {
	all := conversation(t)[:3]
	all[1].Lost = 5
	all[2].Data, all[2].Withheld = []byte{0x10, 5, 0}, true
	b, err := os.ReadFile(write(t, FormatText, Options{}, all)[0])
	require.NoError(t, err)
	lines := strings.Split(string(b), "\n")
	require.Equal(t, `2026-01-01T12:00:00.123456Z "a" 192.0.2.1:50001 > CONNECT `+
		"v=5 client=a clean k",
		lines[0][:78])
	require.Equal(t, "... 5 packets are missing here", lines[1])
	require.Equal(t, `2026-01-01T12:00:00.124456Z "a" 192.0.2.1:50001 < CONNACK code=0x00`,
		lines[2])
	require.Contains(t, lines[3], "3 bytes that are not a packet")
}

func TestATraceIsBounded(t *testing.T) {
	all := conversation(t)
	files := write(t, FormatText, Options{FileBytes: 300, Files: 3}, slices.Repeat(all[:20], 20))
	require.Len(t, files, 3)
	src := newSource()
	r := New(src, Options{Dir: t.TempDir()})
	for i := range maxTraces {
		_, err := r.Start(t.Context(), fmt.Sprint("t", i), FormatText, hooks.TapOptions{})
		require.NoError(t, err)
	}
	_, err := r.Start(t.Context(), "more", FormatText, hooks.TapOptions{})
	require.ErrorContains(t, err, "10 traces are running")
	require.Len(t, r.Traces(), maxTraces)
	r.Close()
	require.Empty(t, r.Traces())
	_, err = r.Start(t.Context(), "more", FormatText, hooks.TapOptions{})
	require.ErrorIs(t, err, ErrClosed)
}

func TestNamesAreChecked(t *testing.T) {
	dir := t.TempDir()
	r := New(newSource(), Options{Dir: filepath.Join(dir, "x")})
	for _, name := range []string{"", "../x", "a/b", ".hidden", "a..b", "a b", strings.Repeat("x",
		65), "a\x00"} {
		_, err := r.Start(t.Context(), name, FormatText, hooks.TapOptions{})
		require.ErrorContains(t, err, "expected a name", "%q", name)
	}
	_, err := r.Start(t.Context(), "a", Format(9), hooks.TapOptions{})
	require.ErrorContains(t, err, "format")
	_, err = r.Start(t.Context(), "a", FormatText, hooks.TapOptions{})
	require.ErrorIs(t, err, os.ErrNotExist, "the folder must be there")
	for _, f := range []Format{FormatText, FormatJSON, FormatPCAPNG} {
		parsed, err := ParseFormat(f.String())
		require.NoError(t, err)
		require.Equal(t, f, parsed)
	}
	_, err = ParseFormat("pcap")
	require.ErrorContains(t, err, `got "pcap"`)
}

// A file that is cut or damaged gives an error and no panic.
func TestDamagedFiles(t *testing.T) {
	all := conversation(t)[:6]
	for _, f := range []Format{FormatJSON, FormatPCAPNG} {
		b, err := os.ReadFile(write(t, f, Options{}, all)[0])
		require.NoError(t, err)
		for i := range b {
			broken := bytes.Clone(b[:min(len(b), 4000)])
			if i < len(broken) {
				broken[i] ^= 0xFF
			}
			for range Read(bytes.NewReader(broken)) {
			}
			for range Read(bytes.NewReader(b[:i])) {
			}
			if i > 4000 {
				break
			}
		}
	}
	for _, err := range Read(strings.NewReader("something else")) {
		require.ErrorContains(t, err, "expected")
	}
}
