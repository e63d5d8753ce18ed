package hooks_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

var (
	errBanned     = packets.Errorf(packets.NotAuthorized, "banned")
	errDown       = errors.New("the user database is down")
	errAbstaining = fmt.Errorf("not my user: %w", hooks.ErrAbstain)
)

func TestCombinedDecisions(t *testing.T) {
	for _, tt := range []struct {
		name             string
		answers          []error
		chain, all, some error // what each combination must answer
		asked            [3]int
	}{
		{"nobody is asked", nil, hooks.ErrAbstain, hooks.ErrAbstain, hooks.ErrAbstain,
			[3]int{0, 0, 0}},
		{"all abstain", []error{hooks.ErrAbstain, errAbstaining}, hooks.ErrAbstain,
			hooks.ErrAbstain, hooks.ErrAbstain, [3]int{2, 2, 2}},
		{"one allows", []error{nil}, nil, nil, nil, [3]int{1, 1, 1}},
		{"an abstention before an allowance", []error{errAbstaining, nil}, nil, nil, nil,
			[3]int{2, 2, 2}},
		{"an abstention after an allowance", []error{nil, errAbstaining}, nil, nil, nil,
			[3]int{1, 2, 1}},
		{"a refusal before an allowance", []error{errBanned, nil}, errBanned, errBanned, nil,
			[3]int{1, 1, 2}},
		{"a refusal after an allowance", []error{nil, errBanned}, nil, errBanned, nil,
			[3]int{1, 2, 1}},
		{"an abstention and a refusal", []error{errAbstaining, errBanned}, errBanned, errBanned,
			errBanned, [3]int{2, 2, 2}},
		{"a failure is a refusal", []error{errAbstaining, errDown, errAbstaining}, errDown, errDown,
			errDown, [3]int{2, 2, 3}},
		{"the first of two refusals is the answer", []error{errBanned, errDown}, errBanned,
			errBanned, errBanned, [3]int{1, 1, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := 0
			var authn []hooks.Authenticator
			var authz []hooks.Authorizer
			for _, err := range tt.answers {
				authn = append(authn,
					hooks.AuthenticatorFunc(func(context.Context, *hooks.ConnectRequest) error {
						asked++
						return err
					}))
				authz = append(authz, hooks.AuthorizerFunc(func(context.Context,
					*hooks.AccessRequest) error {
					asked++
					return err
				}))
			}
			for i, c := range []struct {
				authn hooks.Authenticator
				authz hooks.Authorizer
				want  error
			}{
				{hooks.ChainAuthenticators(authn...), hooks.ChainAuthorizers(authz...), tt.chain},
				{hooks.AllAuthenticators(authn...), hooks.AllAuthorizers(authz...), tt.all},
				{hooks.AnyAuthenticator(authn...), hooks.AnyAuthorizer(authz...), tt.some},
			} {
				asked = 0
				err := c.authn.Authenticate(t.Context(),
					&hooks.ConnectRequest{Grant: new(hooks.Grant)})
				require.Equal(t, c.want, err, "combination %d of Authenticators", i)
				require.Equal(t, tt.asked[i], asked,
					"combination %d asks no more Authenticators than it needs", i)
				asked = 0
				err = c.authz.Authorize(t.Context(), new(hooks.AccessRequest))
				require.Equal(t, c.want, err, "combination %d of Authorizers", i)
				require.Equal(t, tt.asked[i], asked,
					"combination %d asks no more Authorizers than it needs", i)
			}
		})
	}
}

func TestCombinedGrants(t *testing.T) {
	grant := func(tenant string, limit int, err error) hooks.Authenticator {
		return hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
			if tenant != "" {
				r.Grant.Identity.Tenant = tenant
			}
			if limit != 0 {
				r.Grant.Limits.PacketSize = limit
			}
			return err
		})
	}
	preset := hooks.Grant{MountPoint: "m/"}
	for _, tt := range []struct {
		name string
		a    hooks.Authenticator
		want hooks.Grant
	}{
		{
			"in a chain, what an abstainer wrote is undone",
			hooks.ChainAuthenticators(grant("x", 1, errAbstaining), grant("y", 0, nil)),
			hooks.Grant{MountPoint: "m/", Identity: hooks.Identity{Tenant: "y"}},
		},
		{
			"of any, what a refuser wrote is undone",
			hooks.AnyAuthenticator(grant("x", 1, errBanned), grant("", 2, nil)),
			hooks.Grant{MountPoint: "m/", Limits: hooks.Limits{PacketSize: 2}},
		},
		{
			"of all, the grants add up",
			hooks.AllAuthenticators(grant("x", 1, nil), grant("", 2, nil),
				grant("z", 9, errAbstaining)),
			hooks.Grant{MountPoint: "m/", Identity: hooks.Identity{Tenant: "x"},
				Limits: hooks.Limits{PacketSize: 2}},
		},
		{
			"of all, a refusal undoes everything",
			hooks.AllAuthenticators(grant("x", 1, nil), grant("y", 2, errBanned)),
			preset,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := preset
			_ = tt.a.Authenticate(t.Context(), &hooks.ConnectRequest{Grant: &got})
			require.Empty(t, cmp.Diff(tt.want, got))
		})
	}
}

func TestCombinationsAllocateNothing(t *testing.T) {
	allow := hooks.AuthorizerFunc(func(context.Context, *hooks.AccessRequest) error { return nil })
	abstain := hooks.AuthorizerFunc(func(context.Context, *hooks.AccessRequest) error {
		return hooks.ErrAbstain
	})
	a := hooks.AllAuthorizers(hooks.ChainAuthorizers(abstain, allow),
		hooks.AnyAuthorizer(abstain, allow))
	ctx, r := t.Context(), new(hooks.AccessRequest)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if a.Authorize(ctx, r) != nil {
			t.Error("refused")
		}
	}))
}

// reloading is an Authorizer of which both optional interfaces are known.
type reloading struct {
	hooks.Reloads
	hooks.Authorizer
	stable bool
}

func (r *reloading) Stable() bool { return r.stable }

func TestCombinationsReload(t *testing.T) {
	one := &reloading{Authorizer: hooks.AllowAll, stable: true}
	two := &reloading{Authorizer: hooks.AllowAll, stable: true}
	plain := hooks.AuthorizerFunc(func(context.Context, *hooks.AccessRequest) error { return nil })

	a := hooks.ChainAuthorizers(plain, hooks.AnyAuthorizer(one), two)
	calls := 0
	stop := a.(hooks.Reloader).OnReload(func() { calls++ })
	one.Reloaded()
	two.Reloaded()
	require.Equal(t, 2, calls, "a change of either member is a change of the whole")
	stop()
	one.Reloaded()
	require.Equal(t, 2, calls, "nothing is called after stop")

	stable := func(of ...hooks.Authorizer) bool {
		return hooks.AllAuthorizers(of...).(hooks.Stable).Stable()
	}
	require.True(t, stable(hooks.AllowAll, one, two), "all members are stable")
	require.False(t, stable(one, plain), "one member says nothing about it")
	two.stable = false
	require.False(t, stable(one, two), "one member says that it is not")
}

func TestReloads(t *testing.T) {
	var r hooks.Reloads
	r.Reloaded() // with nobody to tell

	var got []string
	stopA := r.OnReload(func() { got = append(got, "a") })
	var stopB func()
	stopB = r.OnReload(func() {
		got = append(got, "b")
		stopB() // from inside a call
	})
	r.OnReload(func() { got = append(got, "c") })
	r.Reloaded()
	r.Reloaded()
	stopA()
	stopA() // twice does no harm
	r.Reloaded()
	require.Equal(t, []string{"a", "b", "c", "a", "c", "c"}, got)
}

func TestAllowAll(t *testing.T) {
	require.NoError(t, hooks.AllowAll.Authenticate(t.Context(), &hooks.ConnectRequest{}))
	require.NoError(t, hooks.AllowAll.Authorize(t.Context(), &hooks.AccessRequest{}))
	require.True(t, hooks.AllowAll.Stable())
}

func TestUser(t *testing.T) {
	for _, tt := range []struct {
		name   string
		client hooks.Client
		user   string
		ok     bool
	}{
		{"a client with neither name", hooks.Client{}, "", false},
		{"a client with an empty User Name", hooks.Client{HasUsername: true}, "", true},
		{"a client with a User Name", hooks.Client{HasUsername: true, Username: "u"}, "u", true},
		{"a client with a Principal", hooks.Client{Identity: hooks.Identity{Principal: "p"}}, "p",
			true},
		{
			"the Principal is what was verified",
			hooks.Client{HasUsername: true, Username: "admin",
				Identity: hooks.Identity{Principal: "p"}}, "p", true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			user, ok := tt.client.User()
			require.Equal(t, tt.user, user)
			require.Equal(t, tt.ok, ok)
		})
	}
}

// atDelivery decides deliveries only: it allows every subscription.
type atDelivery struct {
	hooks.Authorizer
	say map[string]error // by topic; others are refused
}

func (a atDelivery) AuthorizeDelivery(_ context.Context, r *hooks.AccessRequest) error {
	if r.Action != hooks.ActionDeliver {
		return errors.New("the action is not Deliver")
	}
	if err, ok := a.say[r.Topic]; ok {
		return err
	}
	return errBanned
}

func TestCombinationsDecideDeliveries(t *testing.T) {
	deciding := atDelivery{hooks.AllowAll,
		map[string]error{"a": nil, "b": nil, "-": errAbstaining, "-a": errAbstaining}}
	other := hooks.AuthorizerFunc(func(_ context.Context, r *hooks.AccessRequest) error {
		if r.Action != hooks.ActionSubscribe {
			return errors.New("the action is not Subscribe")
		}
		return map[string]error{"a": nil, "b": errBanned, "c": nil, "-a": nil,
			"d": errAbstaining}[r.Topic]
	})
	no := hooks.AuthorizerFunc(func(context.Context, *hooks.AccessRequest) error {
		return errAbstaining
	})
	type rule = func(...hooks.Authorizer) hooks.Authorizer
	chain, all, some := rule(hooks.ChainAuthorizers), rule(hooks.AllAuthorizers),
		rule(hooks.AnyAuthorizer)
	for _, tt := range []struct {
		name  string
		a     hooks.Authorizer
		may   string // topics
		mayNo string
	}{
		{"one alone, in a chain", chain(deciding), "a b", "c x - -a"},
		{"one alone, of all", all(deciding), "a b", "c x - -a"},
		{"one alone, of any", some(deciding), "a b", "c x - -a"},
		{"in a chain before one that decides subscriptions", chain(deciding, other), "a b -a",
			"c d x"},
		{"in a chain after it", chain(other, deciding), "a c -a", "b d"},
		{"of all", all(deciding, other), "a -a", "b c d"},
		{"of any", some(deciding, other), "a b c -a", "d"},
		{"when all abstain", chain(deciding, no), "a b", "- -a c"},
		{"within another combination", all(no, chain(no, some(deciding))), "a b", "c x - -a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.a.(hooks.DeliveryAuthorizer)
			for want, topics := range map[bool]string{true: tt.may, false: tt.mayNo} {
				for _, topic := range strings.Fields(topics) {
					r := &hooks.AccessRequest{Action: hooks.ActionDeliver, Topic: topic}
					require.Equal(t, want, d.AuthorizeDelivery(t.Context(), r) == nil, topic)
					require.Equal(t, hooks.ActionDeliver, r.Action, "the request is not modified")
				}
			}
		})
	}
	for _, a := range []hooks.Authorizer{chain(), chain(other), all(other, hooks.AllowAll),
		some(all(other))} {
		_, ok := a.(hooks.DeliveryAuthorizer)
		require.False(t, ok, "without a member that decides deliveries nobody is asked about them")
	}
	a := chain(&reloading{Authorizer: hooks.AllowAll, stable: true},
		atDelivery{Authorizer: hooks.AllowAll})
	require.Implements(t, (*hooks.Reloader)(nil), a)
	require.Implements(t, (*hooks.Stable)(nil), a)
}
