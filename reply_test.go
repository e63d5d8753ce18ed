package dunlin

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// wordyAuth asks once, at length, and then accepts, at length.
type wordyAuth struct{ asked bool }

func (a *wordyAuth) Next(context.Context, []byte) ([]byte, bool, error) {
	done := a.asked
	a.asked = true
	return []byte(strings.Repeat("x", 30)), done, nil
}

// everyFilter is a SUBSCRIBE of forty filters, the last of which is refused, and an UNSUBSCRIBE of
// them.
func everyFilter() (*packets.Subscribe, *packets.Unsubscribe) {
	s, u := &packets.Subscribe{PacketID: 1}, &packets.Unsubscribe{PacketID: 2}
	for i := range 40 {
		f := fmt.Sprint("a/", i)
		if i == 39 {
			f = "secret"
		}
		s.Subscriptions = append(s.Subscriptions, packets.Subscription{Filter: f})
		u.Filters = append(u.Filters, f)
	}
	return s, u
}

// heard sends p to a Broker and returns the packets that come back until nothing more does.
func (r *guardRig) heard(ps ...packets.Packet) (all [][]byte) {
	nc := dial(r.t, r.l)
	defer nc.Close()
	var got []byte
	for _, p := range ps {
		b, err := p.Append(nil, packets.V5)
		require.NoError(r.t, err)
		nc.Write(b) // fails if the broker has closed the connection
		nc.SetReadDeadline(time.Now().Add(time.Millisecond))
		for err == nil {
			n := 0
			buf := make([]byte, 4096)
			n, err = nc.Read(buf)
			got = append(got, buf[:n]...)
		}
	}
	for len(got) > 0 {
		h, err := packets.ParseHeader(got, packets.V5)
		require.NoError(r.t, err)
		n := h.Len + h.Remaining
		all, got = append(all, got[:n]), got[n:]
	}
	return all
}

func TestNoPacketExceedsWhatTheClientAccepts(t *testing.T) { // [MQTT-3.1.2-24]
	sub, unsub := everyFilter()
	method := packets.Properties(nil).AppendText(packets.AuthenticationMethod, "wordy")
	again := &packets.Auth{Code: packets.ReAuthenticate, Properties: method}
	more := &packets.Auth{Code: packets.ContinueAuthentication, Properties: method}
	var many packets.Properties
	for range 9 {
		many = many.AppendUser("k", "v")
	}
	request := func(p packets.Packet) []packets.Packet { return []packets.Packet{p} }
	for _, tt := range []struct {
		name string
		set  packets.Properties // of the CONNECT
		then []packets.Packet
	}{
		{"SUBACK", nil, request(sub)},
		{"UNSUBACK", nil, request(unsub)},
		{"PUBACK with a reason", nil, request(&packets.Publish{QoS: 1, PacketID: 1,
			Topic: []byte("secret")})},
		{"PUBREC with a reason", nil, request(&packets.Publish{QoS: 2, PacketID: 1,
			Topic: []byte("secret")})},
		{"DISCONNECT with a reason", nil,
			request(&packets.Publish{Properties: packets.Properties(nil).AppendUint(packets.TopicAlias, 9999)})},
		{"PUBCOMP", nil, request(&packets.Ack{Kind: packets.TypePubrel, PacketID: 9})},
		{"PINGRESP", nil, request(&packets.Pingreq{})},
		{"AUTH", method, []packets.Packet{more, again, more}},
		{"CONNACK with a reason", many, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withRules(t, []string{"allow all #", "deny all secret"}, func(c *Config) {
				c.MaxUserProperties = 8
				c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"wordy": hooks.EnhancedAuthenticatorFunc(
					func(_ context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
						if r.Connect == nil {
							r.Grant.Identity.Roles = []string{"new"}
						}
						return &wordyAuth{}, nil
					})}
			}, func(r *guardRig) {
				largest := 0
				for most := 1; most < 130; most++ {
					p := connect(fmt.Sprint("c", most))
					p.Properties = slices.Clone(tt.set).AppendUint(packets.MaximumPacketSize,
						uint32(most))
					for _, b := range r.heard(append(request(p), tt.then...)...) {
						require.LessOrEqual(t, len(b), most, "% x", b)
						largest = max(largest, len(b))
					}
				}
				require.NotZero(t, largest)
			})
		})
	}
}

// What cannot be answered has no effect.
func TestARequestWhoseAnswerIsTooLargeHasNoEffect(t *testing.T) {
	sub, unsub := everyFilter()
	withRules(t, everything, nil, func(r *guardRig) {
		for _, tt := range []struct {
			most   int // the SUBACK has 45 bytes, as the UNSUBACK
			answer packets.Type
			subs   int
		}{{44, packets.TypeDisconnect, 0}, {45, packets.TypeSuback, 40}} {
			p := as("c", "u")
			p.CleanStart = true
			p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, uint32(tt.most))
			c := r.connect(p)
			c.send(sub)
			got := c.recv()
			require.Equal(t, tt.answer, got.Type())
			if d, ok := got.(*packets.Disconnect); ok {
				require.Equal(t, packets.PacketTooLarge, d.Code)
			}
			c.close()
			info, _ := r.b.Session("c")
			require.Len(t, info.Subscriptions, tt.subs)
		}
		p := as("c", "u")
		p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, 44)
		c := r.connect(p)
		c.send(unsub)
		require.Equal(t, packets.PacketTooLarge, c.recv().(*packets.Disconnect).Code)
		c.close()
		info, _ := r.b.Session("c")
		require.Len(t, info.Subscriptions, 40)
	})
}

func TestAReauthenticationThatCannotBeAnsweredHasNoEffect(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"x": hooks.EnhancedAuthenticatorFunc(
			func(_ context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
				if r.Connect == nil {
					r.Grant.Identity.Tenant = "another"
					return &wordyAuth{asked: true}, nil
				}
				return doneAtOnce{}, nil
			})}
	}, func(r *guardRig) {
		method := packets.Properties(nil).AppendText(packets.AuthenticationMethod, "x")
		p := as("c", "u")
		p.Properties = append(p.Properties.AppendUint(packets.MaximumPacketSize, 40), method...)
		c := r.connect(p)
		s := r.b.ofClient("c")[0]
		c.send(&packets.Auth{Code: packets.ReAuthenticate, Properties: method})
		require.Equal(t, packets.PacketTooLarge, c.recv().(*packets.Disconnect).Code)
		s.mu.Lock()
		require.Empty(t, s.client.Identity.Tenant)
		s.mu.Unlock()
		c.close()
	})
}

// What is written to a client goes through the functions that know its Maximum Packet Size.
func TestEveryPacketGoesOutThroughOneFunction(t *testing.T) {
	allowed := map[string][]string{
		"Reserve":  {"room"},
		"WriteBy":  {"writeEarly"},
		"TryWrite": {"flushed"},
		"WriteAll": {"writeRest"},
	}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	found := map[string]int{}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, text, 0)
		require.NoError(t, err)
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || allowed[sel.Sel.Name] == nil {
					return true
				}
				found[sel.Sel.Name]++
				if !slices.Contains(allowed[sel.Sel.Name], fn.Name.Name) {
					t.Errorf("%s: %s calls %s: packets go out through conn.room, conn.append, "+
						"conn.reply and conn.writeEarly",
						fset.Position(call.Pos()), fn.Name.Name, sel.Sel.Name)
				}
				return true
			})
		}
	}
	require.Len(t, found, len(allowed), "%v", found)
}

// There are client libraries that end the connection on a Maximum Packet Size above 268,435,455.
func TestAMaximumPacketSizeIsAnnouncedUpToTheLargestRemainingLength(t *testing.T) {
	const most = 268_435_455
	for _, tt := range []struct {
		config, grant int
		want          uint32 // 0: not announced
	}{
		{0, 0, 1 << 20}, {1, 0, 1}, {most, 0, most}, {most + 1, 0, 0}, {most + 5, 0, 0}, {-1, 0, 0},
		{-1, 1, 1}, {-1, most, most}, {-1, most + 1, 0}, {-1, most + 5, 0}, {-1, most + 6, 0},
		{most + 2, most + 1, 0}, {-1, -1, 0}, {100, most, 100},
	} {
		withRules(t, everything, func(c *Config) { c.MaxPacketSize = tt.config },
			func(r *guardRig) {
				r.grant = func(q *hooks.ConnectRequest) error {
					q.Grant.Limits.PacketSize = tt.grant
					return nil
				}
				p := connect("c")
				if tt.config == 1 || tt.config == 100 { // which no CONNECT fits into
					r.b.cfg().MaxConnectSize = 1000
				}
				c, ack := newTestClient(t, dial(t, r.l), p)
				n, ok := ack.Properties.Uint(packets.MaximumPacketSize)
				require.Equal(t, tt.want != 0, ok, "%+v: %d", tt, n)
				require.Equal(t, tt.want, n, "%+v", tt)
				s := r.b.ofClient("c")[0]
				s.mu.Lock()
				if tt.want == 0 {
					require.EqualValues(t, maxPacketSize, s.conn.packetSize,
						"%+v: what is not announced is no limit", tt)
				}
				s.mu.Unlock()
				c.nc.Close()
			})
	}
}
