package dunlin

import (
	"go/parser"
	"go/token"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// effects returns what the comment of Reconfigure says about each field, by the beginning of the
// paragraph that names it.
func effects(t *testing.T) map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "reconfigure.go", nil, parser.ParseComments)
	require.NoError(t, err)
	said := map[string]string{}
	for _, c := range file.Comments {
		if !strings.HasPrefix(c.Text(), "Reconfigure gives") {
			continue
		}
		for paragraph := range strings.SplitSeq(c.Text(), "\n\n") {
			effect, fields, ok := strings.Cut(strings.Join(strings.Fields(paragraph), " "), ": ")
			if !ok {
				continue
			}
			fields, _, _ = strings.Cut(fields, ". ")
			for _, name := range regexp.MustCompile(`[A-Z]\w+`).FindAllString(fields, -1) {
				require.Empty(t, said[name], "%s is named twice", name)
				said[name] = effect
			}
		}
	}
	return said
}

const (
	atOnce         = "At once"
	newConnections = "For new connections and their Sessions"
	needsRestart   = "With another Broker only"
	notLookedAt    = "Not looked at, since functions cannot be compared"
)

// other sets a field to a value that is valid and not the one that it has.
func other(t *testing.T, f reflect.Value) {
	switch f.Kind() {
	case reflect.Bool:
		f.SetBool(!f.Bool())
	case reflect.Int, reflect.Uint8:
		f.Set(reflect.ValueOf(5).Convert(f.Type()))
		if f.Kind() == reflect.Uint8 {
			f.SetUint(1)
		}
	case reflect.Int64:
		f.SetInt(int64(7 * time.Second))
	case reflect.Float64:
		f.SetFloat(3)
	case reflect.String:
		f.SetString("answers/")
	case reflect.Slice:
		if f.Type().Elem().Kind() == reflect.String {
			f.Set(reflect.ValueOf([]string{"$aws/"}))
		} else {
			f.Set(reflect.ValueOf([]packets.Version{packets.V5}))
		}
	case reflect.Pointer:
		f.Set(reflect.ValueOf(new(packets.QoS1)))
	default:
		t.Fatalf("a field of the kind %v", f.Kind())
	}
}

// The comment of Reconfigure names each field of Config once, and Reconfigure does what it says.
func TestReconfigureSaysOfEachFieldWhenItTakesEffect(t *testing.T) {
	said := effects(t)
	for i := range reflect.TypeFor[Config]().NumField() {
		name := reflect.TypeFor[Config]().Field(i).Name
		t.Run(name, func(t *testing.T) {
			effect := said[name]
			delete(said, name)
			require.Equal(t, effect == notLookedAt, slices.Contains(unseen, name))
			require.Equal(t, effect == needsRestart, slices.Contains(fixed, name))
			b := newTestBroker(t, func(c *Config) { c.Authenticator = new(caller) })
			defer b.Close()
			get := func() any { return reflect.ValueOf(b.cfg().Config).Field(i).Interface() }
			cfg, was := Config{}, get()
			if effect == notLookedAt {
				kept, err := b.Reconfigure(cfg)
				require.NoError(t, err)
				require.Empty(t, kept)
				require.True(t, reflect.DeepEqual(was, get()), "it stays")
				return
			}
			other(t, reflect.ValueOf(&cfg).Elem().Field(i))
			kept, err := b.Reconfigure(cfg)
			require.NoError(t, err)
			switch effect {
			case needsRestart:
				require.Equal(t, []string{name}, kept)
				require.Equal(t, was, get())
			case atOnce, newConnections:
				require.Empty(t, kept)
				require.NotEqual(t, was, get())
			default:
				t.Errorf("the comment of Reconfigure does not name %s", name)
			}
			kept, err = b.Reconfigure(Config{})
			require.NoError(t, err)
			require.Empty(t, kept)
			require.Equal(t, was, get(), "its default again")
		})
	}
	require.Empty(t, said, "named, and no fields")
}

// A Config that is the same changes nothing, whatever is in it.
func TestReconfigureWithTheSame(t *testing.T) {
	for name, number := range map[string]int64{"zero": 0, "none": -1, "small": 1000} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Authenticator: hooks.AllowAll, Logger: quiet}
			v := reflect.ValueOf(&cfg).Elem()
			for i := range v.NumField() {
				switch f := v.Field(i); {
				case f.Kind() == reflect.Int:
					f.SetInt(number)
				case f.Kind() == reflect.Int64:
					f.SetInt(number * int64(time.Second))
				case f.Kind() == reflect.Float64:
					f.SetFloat(float64(number))
				}
			}
			b, err := New(cfg)
			require.NoError(t, err)
			defer b.Close()
			was := b.cfg()
			kept, err := b.Reconfigure(cfg)
			require.NoError(t, err)
			require.Empty(t, kept)
			require.Equal(t, was.strict, b.cfg().strict)
			is := reflect.ValueOf(b.cfg().Config)
			for i := range is.NumField() {
				if f := is.Field(i); f.Comparable() {
					require.True(t, f.Equal(reflect.ValueOf(was.Config).Field(i)),
						"%s", is.Type().Field(i).Name)
				}
			}
		})
	}
}

func TestAConfigThatMakesNoSenseChangesNothing(t *testing.T) {
	b := newTestBroker(t, func(c *Config) { c.ResponseInformation = strings.Repeat("a", 100) })
	was := b.cfg()
	_, err := b.Reconfigure(Config{MaxConnections: 5, MaxKeepAlive: time.Millisecond})
	require.ErrorContains(t, err, "Config.MaxKeepAlive")
	_, err = b.Reconfigure(Config{MaxTopicLength: 50})
	require.ErrorContains(t, err, "Config.ResponseInformation", "which stays")
	require.Same(t, was, b.cfg())
	require.NoError(t, b.Close())
	_, err = b.Reconfigure(Config{})
	require.ErrorIs(t, err, ErrBrokerClosed)
}

func TestWhereNobodyIsCountedLimitsOfPrincipalsNeedAnotherBroker(t *testing.T) {
	b := newTestBroker(t, nil)
	defer b.Close()
	kept, err := b.Reconfigure(Config{MaxSessionsPerPrincipal: 5})
	require.NoError(t, err)
	require.Equal(t, []string{"MaxSessionsPerPrincipal"}, kept)
}

// reconfigure changes the Config of a rig.
func (r *guardRig) reconfigure(cfg Config) {
	r.t.Helper()
	kept, err := r.b.Reconfigure(cfg)
	require.NoError(r.t, err)
	require.Empty(r.t, kept)
}

func TestReconfiguredLimitsOfAddresses(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		from := func(want int, why string) {
			t.Helper()
			c, code := r.connectFrom("192.0.2.1", as("c", "u"))
			require.Equal(t, want, code, why)
			c.nc.Close()
			synctest.Wait()
		}
		stays, _ := r.connectFrom("127.0.0.1", as("local", "u"))
		r.reconfigure(Config{MaxConnectionsPerIP: 1})
		_, code := r.connectFrom("127.0.0.1", as("another", "u"))
		require.Equal(t, -1, code, "a limit that is set holds for loopback as well")
		stays.send(&packets.Pingreq{})
		require.IsType(t, &packets.Pingresp{}, stays.recv(), "who is there stays")
		r.reconfigure(Config{ConnectRatePerIP: 1})
		from(0, "")
		from(-1, "one in a second")
		r.reconfigure(Config{})
		time.Sleep(10 * time.Millisecond)
		from(0, "the default again")

		r.grant = func(*hooks.ConnectRequest) error { return hooks.ErrAbstain }
		r.reconfigure(Config{MaxAuthFailures: 2})
		from(int(packets.NotAuthorized), "")
		from(int(packets.NotAuthorized), "")
		from(int(packets.ConnectionRateExceeded), "two in a minute")
		r.reconfigure(Config{MaxAuthFailures: -1})
		from(int(packets.NotAuthorized), "no limit")
		stays.nc.Close()
	})
}

func TestReconfiguredLimitsOfConnections(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		old := r.connect(as("old", "u"))
		r.reconfigure(Config{MaxPacketSize: 100, MaxKeepAlive: time.Minute, PublishRate: 1,
			OverRate: OverRateRefusePublish})
		c, ack := newTestClient(t, dial(t, r.l), as("new", "v"))
		size, _ := ack.Properties.Uint(packets.MaximumPacketSize)
		keepAlive, _ := ack.Properties.Uint(packets.ServerKeepAlive)
		require.EqualValues(t, []uint32{100, 60}, []uint32{size, keepAlive})
		require.Less(t, c.publish("t", "1", false), packets.UnspecifiedError)
		require.Equal(t, packets.QuotaExceeded, c.publish("t", "2", false))
		for range 2 {
			require.Less(t, old.publish("t", strings.Repeat("x", 200), false),
				packets.UnspecifiedError, "what was told at CONNECT holds")
		}
		r.reconfigure(Config{MinWildcardLevel: 1})
		require.Equal(t, packets.NotAuthorized, old.subscribe("#", 0), "at once")
		r.reconfigure(Config{MaxRetained: 1})
		require.Less(t, old.publish("a", "1", true), packets.UnspecifiedError)
		require.Equal(t, packets.QuotaExceeded, old.publish("b", "1", true))
		old.close()
		c.close()
	})
}

func TestReconfiguredSysInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, nil)
		defer b.Close()
		uptime := func() (s string) {
			time.Sleep(time.Hour)
			synctest.Wait()
			for m := range b.Retained("$SYS/broker/uptime") {
				s = string(m.Payload)
			}
			return s
		}
		set := func(d time.Duration) {
			_, err := b.Reconfigure(Config{SysInterval: d})
			require.NoError(t, err)
		}
		require.Empty(t, uptime())
		set(25 * time.Minute)
		require.Equal(t, "6600 seconds", uptime(), "at once, and every 25 minutes")
		set(time.Minute)
		require.Equal(t, "10800 seconds", uptime())
		set(0)
		require.Equal(t, "10800 seconds", uptime())
	})
}

// Reconfigure comes at any moment.
func TestReconfigureUnderTraffic(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		done := make(chan error, 2)
		for k := range 2 {
			go func() {
				for i := range 100 {
					_, err := r.b.Reconfigure(Config{SysInterval: time.Duration(k*i) * time.Second,
						MaxRetained: 100 + i, ConnectRatePerIP: float64(1000 + i),
						MaxAuthFailures:              k,
						MaxSubscriptionsPerPrincipal: 10 + i, SystemTopics: []string{"$aws/"}})
					if err != nil {
						done <- err
						return
					}
					time.Sleep(time.Millisecond)
				}
				done <- nil
			}()
		}
		for i := range 50 {
			c, code := r.connectFrom("192.0.2.1", as("c", "u"))
			require.Zero(t, code)
			require.Zero(t, c.subscribe("other", 0))
			require.Less(t, c.publish("t", "x", i%2 == 0), packets.UnspecifiedError)
			time.Sleep(time.Millisecond)
			c.close()
		}
		require.NoError(t, <-done)
		require.NoError(t, <-done)
	})
}
