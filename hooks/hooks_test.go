package hooks_test

import (
	"context"
	"errors"
	"net"
	"reflect"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

func TestFuncAdaptersCallTheFunction(t *testing.T) {
	want := errors.New("from the function")
	ctx := t.Context()
	connect, access, client, message := new(hooks.ConnectRequest), new(hooks.AccessRequest),
		new(hooks.Client), new(packets.Message)

	var authn hooks.Authenticator = hooks.AuthenticatorFunc(func(c context.Context,
		r *hooks.ConnectRequest) error {
		require.True(t, c == ctx && r == connect)
		return want
	})
	require.Equal(t, want, authn.Authenticate(ctx, connect))

	var enhanced hooks.EnhancedAuthenticator = hooks.EnhancedAuthenticatorFunc(func(c context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
		require.True(t, c == ctx && r == connect)
		return nil, want
	})
	_, err := enhanced.Start(ctx, connect)
	require.Equal(t, want, err)

	var authz hooks.Authorizer = hooks.AuthorizerFunc(func(c context.Context,
		r *hooks.AccessRequest) error {
		require.True(t, c == ctx && r == access)
		return want
	})
	require.Equal(t, want, authz.Authorize(ctx, access))

	var interceptor hooks.Interceptor = hooks.InterceptorFunc(func(c context.Context,
		cl *hooks.Client, m *packets.Message) (*packets.Message, error) {
		require.True(t, c == ctx && cl == client && m == message)
		return m, want
	})
	got, err := interceptor.Intercept(ctx, client, message)
	require.Equal(t, want, err)
	require.Same(t, message, got)
}

func TestNames(t *testing.T) {
	require.Equal(t, "publish", hooks.ActionPublish.String())
	require.Equal(t, "subscribe", hooks.ActionSubscribe.String())
	require.Equal(t, "queue full", hooks.DropQueueFull.String())
	require.Equal(t, "refused", hooks.DropRefused.String())
	require.Equal(t, "unknown", hooks.DropReason(200).String())
}

func TestNetwork(t *testing.T) {
	for addr, want := range map[net.Addr]string{
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1}:               "192.0.2.7",
		&net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.7"), Port: 1}:      "192.0.2.7",
		&net.UDPAddr{IP: net.ParseIP("2001:db8:1:2:3:4:5:6"), Port: 1}:  "2001:db8:1:2::",
		&net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 1, Zone: "eth0"}: "fe80::",
		&net.TCPAddr{IP: net.IPv6loopback, Port: 1}:                     "::1",
		&net.UnixAddr{Name: "@x"}:                                       "",
		&net.TCPAddr{}:                                                  "",
		nil:                                                             "",
	} {
		ip, ok := (&hooks.Client{RemoteAddr: addr}).Network()
		require.Equal(t, want != "", ok, "%v", addr)
		if ok {
			require.Equal(t, want, ip.String(), "%v", addr)
		}
	}
}

// recorder returns an Observer that calls f with the name of each event, and fails on a field that
// is no function.
func recorder(t *testing.T, f func(event string)) *hooks.Observer {
	var o hooks.Observer
	v := reflect.ValueOf(&o).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		require.Equal(t, reflect.Func, v.Field(i).Kind(), name)
		v.Field(i).Set(reflect.MakeFunc(v.Field(i).Type(), func([]reflect.Value) []reflect.Value {
			f(name)
			return nil
		}))
	}
	return &o
}

// fire calls every field of o with zero values.
func fire(o *hooks.Observer) {
	v := reflect.ValueOf(o).Elem()
	for i := range v.NumField() {
		var args []reflect.Value
		for j := range v.Field(i).Type().NumIn() {
			args = append(args, reflect.Zero(v.Field(i).Type().In(j)))
		}
		v.Field(i).Call(args)
	}
}

func TestJoin(t *testing.T) {
	t.Run("every event reaches every Observer, in order", func(t *testing.T) {
		var got []string
		add := func(who string) *hooks.Observer {
			return recorder(t, func(event string) { got = append(got, event+" "+who) })
		}
		fire(hooks.Join(add("a"), nil, new(hooks.Observer), add("b"), add("c")))

		var want []string
		for _, f := range reflect.VisibleFields(reflect.TypeFor[hooks.Observer]()) {
			want = append(want, f.Name+" a", f.Name+" b", f.Name+" c")
		}
		require.Equal(t, want, got, "a new field of Observer belongs into Join")
	})
	t.Run("an event that nobody wants stays nil", func(t *testing.T) {
		require.Zero(t, countSet(hooks.Join()))
		require.Zero(t, countSet(hooks.Join(nil, new(hooks.Observer))))
		require.Equal(t, 1, countSet(hooks.Join(&hooks.Observer{SessionEnded: func(hooks.SessionEnded) {}},
			new(hooks.Observer))))
	})
}

func countSet(o *hooks.Observer) (n int) {
	v := reflect.ValueOf(o).Elem()
	for i := range v.NumField() {
		if !v.Field(i).IsNil() {
			n++
		}
	}
	return n
}
