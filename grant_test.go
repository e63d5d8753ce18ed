package dunlin

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// granted is what a 5.0 client finds that asked for a Keep Alive of 60,000 s and a Session that
// never ends.
type granted struct {
	refused        packets.ReasonCode
	ReceiveMaximum uint32
	PacketSize     uint32 // 0: not announced
	KeepAlive      uint32
	SessionExpiry  uint32
	QueuedMessages int
	QueuedBytes    int
	PublishRate    float64
	PublishBytes   float64
	Sessions       int // of the principal, as those that follow
	Connections    int
	Subscriptions  int
	Retained       int
	RetainedBytes  int
	AllQueuedBytes int
	KeptBytes      int
	MaxQoS         uint32
	TopicAliases   uint32
}

// What an Authenticator grants is held to what Config may say, at both edges of each field.
func TestWhatIsGrantedAtItsEdges(t *testing.T) {
	const second = time.Second
	nan, inf := math.NaN(), math.Inf(1)
	is := granted{ // as Config has it
		0, 1024, 1 << 20, 60_000, 604_800, 16_384, 16 << 20, 0, 0,
		750_000, 75_000, 1 << 19, 750_000, 3 << 28, 1 << 29, (1 << 30) / 100 * 37, 2, 32,
	}
	with := func(edit func(x *granted)) granted {
		x := is
		edit(&x)
		return x
	}
	refused := granted{refused: packets.NotAuthorized}
	tables := map[string][]struct {
		value any
		want  granted
	}{
		"ReceiveMaximum": {
			{uint16(0), is},
			{uint16(1), with(func(x *granted) { x.ReceiveMaximum = 1 })},
			{uint16(math.MaxUint16), is},
		},
		"PacketSize": {
			{0, is}, {-1, is}, {math.MinInt, is}, {math.MaxInt, is},
			{1, with(func(x *granted) { x.PacketSize = 1 })},
			{beyond32, is},
		},
		"KeepAlive": {
			{time.Duration(0), is}, {-1 * second, is}, {time.Duration(math.MinInt64), is},
			{time.Duration(1), with(func(x *granted) { x.KeepAlive = 1 })},
			{60 * second, with(func(x *granted) { x.KeepAlive = 60 })},
			{60_001 * second, is}, {65_535 * second, is}, {65_536 * second, is},
			{65_537 * second, is},
			{time.Duration(math.MaxInt64), is},
		},
		"SessionExpiry": {
			{time.Duration(0), is}, {-1 * second, is}, {time.Duration(math.MinInt64), is},
			{time.Duration(1), with(func(x *granted) { x.SessionExpiry = 1 })},
			{second, with(func(x *granted) { x.SessionExpiry = 1 })},
			{second + 1, with(func(x *granted) { x.SessionExpiry = 2 })},
			{(noExpiry - 1) * second, is}, {noExpiry * second, is}, {(noExpiry + 2) * second, is},
			{time.Duration(math.MaxInt64), is},
		},
		"QueuedMessages": {
			{0, is}, {-1, is}, {math.MinInt, is}, {math.MaxInt, is}, {beyond32, is},
			{1, with(func(x *granted) { x.QueuedMessages = 1 })},
		},
		"QueuedBytes": {
			{0, is}, {-1, is}, {math.MinInt, is}, {math.MaxInt, is},
			{1, with(func(x *granted) { x.QueuedBytes = 1 })},
		},
		"PublishRate": {
			{0.0, is}, {-1.0, is}, {-math.MaxFloat64, is}, {nan, refused}, {inf, refused},
			{-inf, refused},
			{math.SmallestNonzeroFloat64,
				with(func(x *granted) { x.PublishRate = math.SmallestNonzeroFloat64 })},
			{math.MaxFloat64, with(func(x *granted) { x.PublishRate = math.MaxFloat64 })},
		},
		"PublishBytes": {
			{0.0, is}, {-1.0, is}, {-math.MaxFloat64, is}, {nan, refused}, {inf, refused},
			{-inf, refused},
			{math.SmallestNonzeroFloat64,
				with(func(x *granted) { x.PublishBytes = math.SmallestNonzeroFloat64 })},
			{math.MaxFloat64, with(func(x *granted) { x.PublishBytes = math.MaxFloat64 })},
		},
		"MaxQoS": {
			{(*packets.QoS)(nil), is}, {new(packets.QoS2), is}, {new(packets.QoS(255)), is},
			{new(packets.QoS1), with(func(x *granted) { x.MaxQoS = 1 })},
			{new(packets.QoS0), with(func(x *granted) { x.MaxQoS = 0 })},
		},
		"TopicAliasMaximum": {
			{uint16(0), is}, {uint16(32), is}, {uint16(33), is}, {uint16(math.MaxUint16), is},
			{uint16(1), with(func(x *granted) { x.TopicAliases = 1 })},
		},
		"DisableTopicAlias": {
			{false, is},
			{true, with(func(x *granted) { x.TopicAliases = 0 })},
		},
	}
	type row = struct {
		value any
		want  granted
	}
	for name, edit := range map[string]func(x *granted){
		"Sessions":       func(x *granted) { x.Sessions = 1 },
		"Connections":    func(x *granted) { x.Connections = 1 },
		"Subscriptions":  func(x *granted) { x.Subscriptions = 1 },
		"Retained":       func(x *granted) { x.Retained = 1 },
		"RetainedBytes":  func(x *granted) { x.RetainedBytes = 1 },
		"AllQueuedBytes": func(x *granted) { x.AllQueuedBytes = 1 },
	} {
		tables[name] = []row{{0, is}, {-1, is}, {math.MinInt, is}, {math.MaxInt, is},
			{1, with(edit)}}
	}
	tables["KeptBytes"] = []row{{0, is}, {-1, is}, {math.MinInt, is}, {math.MaxInt, is},
		{1_000_000, with(func(x *granted) { x.KeptBytes = 1_000_000 })}}
	typ := reflect.TypeFor[hooks.Limits]()
	for i := range typ.NumField() {
		name := typ.Field(i).Name
		require.NotEmpty(t, tables[name], "Limits.%s is in no table", name)
		for _, tt := range tables[name] {
			t.Run(fmt.Sprint(name, " ", tt.value), func(t *testing.T) {
				withRules(t, everything, func(c *Config) { c.MaxMemory = 1 << 30 },
					func(r *guardRig) {
						r.grant = func(q *hooks.ConnectRequest) error {
							reflect.ValueOf(&q.Grant.Limits).Elem().Field(i).Set(reflect.ValueOf(tt.value))
							return nil
						}
						require.Equal(t, tt.want, r.ask())
					})
			})
		}
	}
}

// ask connects a client and returns what it finds.
func (r *guardRig) ask() (x granted) {
	p := connect("c")
	p.KeepAlive = 60_000
	p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, noExpiry)
	c, ack := newTestClient(r.t, dial(r.t, r.l), p)
	defer c.nc.Close()
	if x.refused = ack.Code; x.refused.Failed() {
		return x
	}
	number := func(id packets.Property, absent uint32) uint32 {
		if n, ok := ack.Properties.Uint(id); ok {
			return n
		}
		return absent
	}
	x.ReceiveMaximum = number(packets.ReceiveMaximum, 65_535)
	x.PacketSize = number(packets.MaximumPacketSize, 0)
	x.KeepAlive = number(packets.ServerKeepAlive, uint32(p.KeepAlive))
	x.SessionExpiry = number(packets.SessionExpiryInterval, noExpiry)
	x.MaxQoS, x.TopicAliases = number(packets.MaximumQoS, 2), number(packets.TopicAliasMaximum, 0)
	s := r.b.ofClient("c")[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	require.Equal(r.t, time.Duration(x.KeepAlive)*time.Second*3/2, s.conn.keepAlive)
	x.QueuedMessages, x.QueuedBytes = int(s.quota.messages), s.quota.bytes
	for k, n := range map[owners.Kind]*int{
		owners.Sessions: &x.Sessions, owners.Connections: &x.Connections,
		owners.Subscriptions: &x.Subscriptions,
		owners.Retained:      &x.Retained,
		owners.RetainedBytes: &x.RetainedBytes, owners.QueuedBytes: &x.AllQueuedBytes,
		owners.Kept: &x.KeptBytes,
	} {
		used := s.out.owner.Used(k)
		*n = int(used) + sort.Search(math.MaxInt32,
			func(n int) bool { return !s.out.owner.Room(k, int64(n)+1) })
	}
	if pace := s.conn.readExtra().pace; pace != nil {
		x.PublishRate, x.PublishBytes = pace.Rates()
	}
	return x
}

// With no Keep Alive of its own, and none in Config, a client gets what was granted, as far as a
// packet can say it.
func TestAGrantedKeepAliveThatNoPacketCanSay(t *testing.T) {
	for granted, want := range map[time.Duration]uint32{
		65_535 * time.Second: 65_535, 65_536 * time.Second: 65_535, 65_537 * time.Second: 65_535,
		math.MaxInt64: 65_535, 1: 1,
	} {
		withRules(t, everything, nil, func(r *guardRig) {
			r.grant = func(q *hooks.ConnectRequest) error {
				q.Grant.Limits.KeepAlive = granted
				return nil
			}
			c, ack := newTestClient(t, dial(t, r.l), connect("c"))
			got, _ := ack.Properties.Uint(packets.ServerKeepAlive)
			require.Equal(t, want, got, "%v", granted)
			c.nc.Close()
		})
	}
}

// A short Session Expiry that was granted holds at DISCONNECT as well.
func TestAGrantedSessionExpiryOfLessThanASecond(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.Limits.SessionExpiry = time.Millisecond
			return nil
		}
		c := r.connect(as("c", "u"))
		c.send(&packets.Disconnect{Properties: packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 1000)})
		_, err := c.r.ReadPacket()
		require.Error(t, err)
		c.nc.Close()
		time.Sleep(1100 * time.Millisecond)
		_, ok := r.b.Session("c")
		require.False(t, ok)
	})
}

// The other fields of a Grant.
func TestGrantsThatMakeNoSense(t *testing.T) {
	long := strings.Repeat("x", 40_000)
	for _, tt := range []struct {
		name string
		g    hooks.Grant
		want packets.ReasonCode
	}{
		{"nothing", hooks.Grant{}, packets.Success},
		{"a mount point without slash", hooks.Grant{MountPoint: "m"}, packets.Success},
		{"a long mount point", hooks.Grant{MountPoint: long[:32_767]}, packets.Success},
		{"one that leaves too little", hooks.Grant{MountPoint: long[:32_768]},
			packets.NotAuthorized},
		{"one with a wildcard", hooks.Grant{MountPoint: "a/+/"}, packets.NotAuthorized},
		{"one of the server", hooks.Grant{MountPoint: "$SYS/"}, packets.NotAuthorized},
		{"one that is no text", hooks.Grant{MountPoint: "a\xff/"}, packets.NotAuthorized},
		{"a Client Identifier", hooks.Grant{ClientID: "another"}, packets.Success},
		{"a long Client Identifier", hooks.Grant{ClientID: long}, packets.Success},
		{"one that no packet can say", hooks.Grant{ClientID: long + long}, packets.NotAuthorized},
		{"one that is no text", hooks.Grant{ClientID: "a\x00"}, packets.NotAuthorized},
		{"one of the program", hooks.Grant{ClientID: "$local/1"}, packets.NotAuthorized},
		{"an end that is far away", hooks.Grant{Expires: time.Unix(math.MaxInt32*1000, 0)},
			packets.Success},
		{"a Principal of any bytes", hooks.Grant{Identity: hooks.Identity{Principal: long +
			"\x00\xff"}}, packets.Success},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, perPrincipal := range []bool{false, true} {
				withRules(t, everything, func(c *Config) { c.SessionPerPrincipal = perPrincipal },
					func(r *guardRig) {
						r.grant = func(q *hooks.ConnectRequest) error {
							*q.Grant = tt.g
							return nil
						}
						c, ack := newTestClient(t, dial(t, r.l), as("c", "u"))
						require.Equal(t, tt.want, ack.Code)
						if ack.Code == packets.Success {
							require.Equal(t, packets.Success, c.subscribe("a/#", 0))
							c.send(&packets.Publish{Topic: []byte("a/b")})
							c.message("a/b")
						}
						c.nc.Close()
					})
			}
		})
	}
}

// A Grant whose end is past ends the connection at once.
func TestAGrantThatHasEnded(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			q.Grant.Expires = time.Unix(1, 0)
			return nil
		}
		c := r.connect(as("c", "u"))
		require.Equal(t, packets.MaximumConnectTime, c.recv().(*packets.Disconnect).Code)
		c.close()
	})
}

// What a program asks for is checked before anything is done, at both edges of each field.
func TestSubscribeOptionsAtTheirEdges(t *testing.T) {
	const most = math.MaxInt64
	tables := map[string][]struct {
		value any
		ok    bool
	}{
		"QoS":               {{QoS(0), true}, {QoS(2), true}, {QoS(3), false}, {QoS(255), false}},
		"NoLocal":           {{true, true}},
		"RetainAsPublished": {{true, true}},
		"RetainHandling": {{RetainHandlingSkip, true}, {RetainHandling(3), false},
			{RetainHandling(255), false}},
		"ID": {{uint32(1), true}, {uint32(268_435_455), true},
			{uint32(268_435_456), false}, {uint32(math.MaxUint32), false}},
		"Name": {
			{"n", true}, {strings.Repeat("x", 65_528), true}, {strings.Repeat("x", 65_529), false},
			{"\xff", false}, {"\x00", false},
		},
		"Expiry": {{time.Duration(1), true}, {time.Duration(most), true},
			{time.Duration(-1), false}, {time.Duration(-most), false}},
		"Buffer": {{1, true}, {math.MaxInt, true}, {-1, false}, {math.MinInt, false}},
		"Overflow": {{OverflowDropNewest, true}, {OverflowDisconnect, false},
			{OverflowBlock, true}, {OverflowBlock + 1, false}, {Overflow(255), false}},
		"BlockTimeout": {{time.Duration(1), true}, {time.Duration(most), true},
			{time.Duration(-1), false}, {time.Duration(-most), false}},
		"ManualAck": {{true, true}},
	}
	typ := reflect.TypeFor[SubscribeOptions]()
	for i := range typ.NumField() {
		name := typ.Field(i).Name
		require.NotEmpty(t, tables[name], "SubscribeOptions.%s is in no table", name)
		for _, tt := range tables[name] {
			inProcess(t, nil, func(t *testing.T, b *Broker) {
				o := &SubscribeOptions{QoS: 1, Name: "named"}
				reflect.ValueOf(o).Elem().Field(i).Set(reflect.ValueOf(tt.value))
				sub, err := b.Subscribe(context.Background(), "a", o)
				if !tt.ok {
					require.Error(t, err, "%s %v", name, tt.value)
					return
				}
				require.NoError(t, err, "%s %v", name, tt.value)
				mustPublish(t, b, "a", "x", 1)
				require.Equal(t, []string{"x"}, unread(sub), "%s %v", name, tt.value)
				sub.Close()
			})
		}
	}
}

// beyond32 is more than 32 bits hold, where an int can be that large.
const beyond32 = int(min(1<<32+1, math.MaxInt))
