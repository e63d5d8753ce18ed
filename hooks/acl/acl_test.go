package acl_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// client returns one with a Client Identifier and, unless it is "-", a User Name.
func client(id, user string) *hooks.Client {
	if user == "-" {
		return &hooks.Client{ID: id}
	}
	return &hooks.Client{ID: id, Username: user, HasUsername: true}
}

// asked is a question in one word: "pub" or "sub", and the topic.
func asked(c *hooks.Client, q string) *hooks.AccessRequest {
	action, topic, _ := strings.Cut(q, " ")
	r := &hooks.AccessRequest{Client: c, Action: hooks.ActionPublish, Topic: topic}
	if action == "sub" {
		r.Action = hooks.ActionSubscribe
	}
	return r
}

func parse(t *testing.T, text string) *acl.List {
	t.Helper()
	l, err := acl.Parse(strings.NewReader(text), "rules")
	require.NoError(t, err)
	return l
}

func parseMosquitto(t *testing.T, text string) *acl.List {
	t.Helper()
	l, err := acl.ParseMosquitto(strings.NewReader(text), "acl")
	require.NoError(t, err)
	return l
}

// check asks each question of l; those that end with "!" have to be refused.
func check(t *testing.T, l *acl.List, c *hooks.Client, questions ...string) {
	t.Helper()
	a := acl.New(l)
	for _, q := range questions {
		q, refused := strings.CutSuffix(q, "!")
		err := a.Authorize(t.Context(), asked(c, q))
		if refused {
			require.Equal(t, packets.NotAuthorized, packets.CodeOf(err), "%s of %q", q, c.ID)
		} else {
			require.NoError(t, err, "%s of %q", q, c.ID)
		}
	}
}

func TestOwnForm(t *testing.T) {
	operator := client("op1", "jane")
	operator.Identity.Roles = []string{"staff", "operator"}
	tenant := client("t", "-")
	tenant.Identity.Tenant = "seven"
	local := client("l", "-")
	local.RemoteAddr = &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 4711}
	remote := client("l", "-")
	remote.RemoteAddr = &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 4711, Zone: "eth0"}
	principal := client("p", "jane")
	principal.Identity.Principal = "joe"

	for _, tt := range []struct {
		name  string
		rules string
		who   *hooks.Client
		ask   []string
	}{
		{"no rule allows nothing", "# nothing\n\n", client("c", "-"), []string{"pub a!", "sub a!"}},
		{"the first rule decides", "deny all a/b\nallow all a/#\ndeny all a/c\n", client("c", "-"),
			[]string{"pub a/b!", "pub a/c", "pub a/d", "pub b!"}},
		{"actions are separate", "allow publish a\nallow subscribe b", client("c", "-"),
			[]string{"pub a", "sub a!", "pub b!", "sub b"}},
		{"a user", "allow user=jane all a", operator, []string{"pub a"}},
		{"another user", "allow user=joe all a", operator, []string{"pub a!"}},
		{"the User Name of a client with a Principal says nothing",
			"allow user=jane all a\nallow user=joe all b", principal, []string{"pub a!", "pub b"}},
		{"a role", "allow role=operator all a", operator, []string{"pub a"}},
		{"not that role", "allow role=admin all a", operator, []string{"pub a!"}},
		{"all conditions count",
			"allow role=operator client=op2 all a\nallow role=operator client=op1 user=jane all b",
			operator, []string{"pub a!", "pub b"}},
		{"a rule for users in its place among those for all",
			"allow user=jane all a/b\ndeny all a/#\nallow user=jane all a/#", operator,
			[]string{"pub a/b", "pub a/c!", "sub a/b", "sub a/#!"}},
		{"a tenant", "allow tenant=seven all a\nallow tenant=eight all b", tenant,
			[]string{"pub a", "pub b!"}},
		{"an address", "allow addr=10.0.0.0/8 all a\nallow addr=10.1.2.4 all b\nallow " +
			"addr=10.1.2.3 all c", local, []string{"pub a", "pub b!", "pub c"}},
		{"an address of version 6", "allow addr=2001:db8::/32 all a\nallow addr=0.0.0.0/0 all b",
			remote, []string{"pub a", "pub b!"}},
		{"no address", "allow addr=0.0.0.0/0 all a\nallow addr=::/0 all a", client("c", "-"),
			[]string{"pub a!"}},
		{"without a name", "allow anonymous all a", client("c", "-"), []string{"pub a"}},
		{"an empty name is none, as for Mosquitto", "allow anonymous all a", client("c", ""),
			[]string{"pub a"}},
		{"several filters", "allow all a b/+ c/#", client("c", "-"),
			[]string{"pub a", "pub b/x", "pub b!", "pub c"}},
		{"quoted words", `allow "user=a \"b" all "x y/z" plain`, client("c", `a "b`),
			[]string{"pub x y/z", "pub plain", "pub x!"}},
		{"white space", "  allow\t user=jane   all\ta \t b  \r", operator,
			[]string{"pub a", "pub b"}},
		{"names in filters", "allow all %c/in %u/+/x d-%c-%u", operator,
			[]string{"pub op1/in", "pub jane/q/x", "pub d-op1-jane", "pub %c/in!", "pub d-op1-joe!",
				"pub d-op1-janes!"}},
		{"other percent signs", "allow all 100%/%d/%%c/%", operator,
			[]string{"pub 100%/%d/%op1/%"}},
		{"names in subscriptions", "allow subscribe %c/#", operator,
			[]string{"sub op1/#", "sub op1/+/x", "sub op1", "sub +!", "sub #!", "sub op1x!"}},
		{"a name that is denied", "deny all a/%u/#\nallow all a/#", operator,
			[]string{"sub a/joe/#", "sub a/jane/x!", "sub a/+/x!", "sub a/#!", "pub a/jane!",
				"pub a/joe"}},
	} {
		t.Run(tt.name, func(t *testing.T) { check(t, parse(t, tt.rules), tt.who, tt.ask...) })
	}
}

func TestAttributesAndListeners(t *testing.T) {
	acme := client("c", "jane")
	acme.Identity.Attributes = map[string]string{"org": "acme", "plan": "paid", "cash": "$SYS",
		"a=b": "v", "empty": ""}
	acme.Listener = &hooks.Listener{Name: "public"}
	none := client("d", "-")
	for _, tt := range []struct {
		name  string
		rules string
		who   *hooks.Client
		ask   []string
	}{
		{"in a filter", "allow all ${org}/x-${plan}/#", acme,
			[]string{"pub acme/x-paid/1", "sub acme/x-paid/#", "sub acme/#!", "pub acme/x-free/1!",
				"pub ${org}/x-paid!", "pub acme/x-${plan}!", "sub +/x-paid!"}},
		{"with the other names", "allow all ${org}-%u-%c", acme,
			[]string{"pub acme-jane-c", "pub acme-jane-d!"}},
		{"that is absent", "allow all ${region}/# x-${region}\nallow all y", acme,
			[]string{"pub a!", "pub /a!", "pub x-!", "sub #!", "pub y", "pub $/a!", "pub ${region}/a!"}},
		{"that is empty", "allow all ${empty}/#", acme, []string{"pub /a!", "sub #!"}},
		{"that is absent, in a rule that denies", "deny all a/${region}/#\nallow all #", none,
			[]string{"pub a/x!", "sub a/+!", "pub b", "pub a"}},
		{"that begins with $", "allow all ${cash}/#", acme, []string{"pub $SYS/x!", "sub $SYS/#!"}},
		{"first, in a rule that denies", "deny all ${org}/#\nallow all #", acme,
			[]string{"pub acme/x!", "sub #!", "pub other"}},
		{"as a condition", "allow ${plan}=paid all a\nallow ${plan}=free all b", acme,
			[]string{"pub a", "pub b!"}},
		{"several conditions", "allow ${plan}=paid ${org}=other all a\n" +
			"allow ${plan}=paid ${org}=acme all b", acme, []string{"pub a!", "pub b"}},
		{"a condition of a client without attributes", "allow ${plan}=paid all a", none,
			[]string{"pub a!"}},
		{"a name with =", "allow ${a=b}=v all a", acme, []string{"pub a"}},
		{"other dollar signs", "allow all a$/$b$c a/$", acme, []string{"pub a$/$b$c", "pub a/$"}},
		{"a listener", "allow listener=public all a\nallow listener=inner all b", acme,
			[]string{"pub a", "pub b!"}},
		{"no listener", "allow listener=public all a", none, []string{"pub a!"}},
	} {
		t.Run(tt.name, func(t *testing.T) { check(t, parse(t, tt.rules), tt.who, tt.ask...) })
	}
	t.Run("a file of Mosquitto has none", func(t *testing.T) {
		check(t, parseMosquitto(t, "pattern ${org}/a\npattern x/${\ntopic ${org}/b\nuser jane\n"+
			"topic ${org}/c"), acme, "pub ${org}/a", "pub acme/a!", "pub x/${", "pub acme/c!",
			"pub ${org}/c")
	})
	t.Run("a value that is more than a level", func(t *testing.T) {
		for _, bad := range []string{"+", "#", "a/b", "a\x00"} {
			c := client("c", "-")
			c.Identity.Attributes = map[string]string{"org": bad}
			check(t, parse(t, "allow all ${org}/# x/${org}\ndeny all z/${org}\nallow all z/#"), c,
				"pub a!", "pub a/b!", "sub #!", "sub +/#!", "pub x/a!", "pub x/a/b!", "sub x/+!",
				"sub x/#!", "pub z/a!", "sub z/#!")
		}
	})
}

func TestQoSAndRetain(t *testing.T) {
	l := parse(t, "deny retain publish a/#\ndeny qos=2 all b/#\nallow qos=0,1 subscribe c\n"+
		"allow all a/# b/#")
	a := acl.New(l)
	for _, tt := range []struct {
		name   string
		action hooks.Action
		topic  string
		qos    packets.QoS
		retain bool
		want   bool
	}{
		{"a publish that is not retained", hooks.ActionPublish, "a/1", 2, false, true},
		{"a retained publish", hooks.ActionPublish, "a/1", 0, true, false},
		{"retain says nothing about a subscription", hooks.ActionSubscribe, "a/#", 0, true, true},
		{"a publish of that QoS", hooks.ActionPublish, "b/1", 2, false, false},
		{"a publish of another QoS", hooks.ActionPublish, "b/1", 1, false, true},
		{"a subscription of that QoS", hooks.ActionSubscribe, "b/#", 2, false, false},
		{"a subscription of another QoS", hooks.ActionSubscribe, "b/#", 0, false, true},
		{"one of several", hooks.ActionSubscribe, "c", 1, false, true},
		{"none of several", hooks.ActionSubscribe, "c", 2, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := a.Authorize(t.Context(), &hooks.AccessRequest{Client: client("c", "-"),
				Action: tt.action, Topic: tt.topic, QoS: tt.qos, Retain: tt.retain})
			require.Equal(t, tt.want, err == nil, "%v", err)
		})
	}
	t.Run("a delivery has no QoS", func(t *testing.T) {
		d := a.AtDelivery()
		for topic, want := range map[string]bool{"a/1": true, "b/1": false, "c": false} {
			require.Equal(t, want, d.AuthorizeDelivery(t.Context(), &hooks.AccessRequest{
				Client: client("c", "-"), Action: hooks.ActionDeliver, Topic: topic}) == nil, topic)
		}
	})
	t.Run("in code", func(t *testing.T) {
		for want, r := range map[string]acl.Rule{
			"expected 0, 1 or 2 as QoS":             {QoS: []packets.QoS{1, 3}},
			"expected 0, 1 or 2 as QoS, got []":     {QoS: []packets.QoS{}},
			"retain is a condition of publishing a": {Retain: true},
		} {
			r.Effect, r.Filters = acl.EffectAllow, []string{"#"}
			_, err := acl.Rules(r)
			require.ErrorContains(t, err, want)
		}
	})
}

// Each of these has been an advisory against some broker, or the idea of one.
func TestNamesNeverWidenARule(t *testing.T) {
	rules := "allow all u/%u/x c/%c/x %u/# %c/# p-%u\nallow subscribe d/+/%u\n"
	for _, bad := range []string{"+", "#", "a/#", "+/+", "a+", "/", "a/b", "a\x00", "$SYS", ""} {
		t.Run(fmt.Sprintf("a client that is called %q", bad), func(t *testing.T) {
			check(t, parse(t, rules), client(bad, bad),
				"pub u/a/x!", "pub u/b/x!", "pub u//x!", "pub c/a/x!", "pub a!", "pub a/b!",
				"pub a/b/c!", "pub $SYS/x!", "pub $SYS!", "pub /a!", "pub p-a!", "pub p-!",
				"pub u/+/x!", "pub u/#/x!", "sub u/+/x!", "sub u/#!", "sub #!", "sub +/#!",
				"sub $SYS/#!", "sub /#!", "sub p-+!", "sub d/#!", "sub d/+/+!", "sub +!")
		})
	}
	t.Run("a client without a name", func(t *testing.T) {
		check(t, parse(t, rules), client("c", "-"),
			"pub u/a/x!", "pub u//x!", "pub u/%u/x!", "pub a/b!", "pub p-!", "sub u/+/x!", "sub #!",
			"sub %u/#!", "pub c/c/x", "pub c/x")
	})
	t.Run("only the bad name counts", func(t *testing.T) {
		check(t, parse(t, rules), client("a/b", "jane"), "pub u/jane/x", "pub c/a/b/x!",
			"sub jane/#", "sub a/b/#!")
	})
	t.Run("a rule that denies does not become narrower", func(t *testing.T) {
		l := parse(t, "deny all s/%c/x\ndeny all q/+/%c-%u/y\nallow all #")
		check(t, l, client("a/b", "-"), "pub s/a/b/x!", "pub s/a!", "sub s/#!", "sub s/+!", "pub s",
			"pub t", "pub q/1/2/y")
		check(t, l, client("a", "u"), "pub s/a/x!", "pub s/b/x", "pub q/1/a-u/y!", "pub q/1/a-v/y")
		check(t, l, client("a", "u/v"), "pub q/1/a-u/v/y!", "pub q/1/a-w!", "sub q/1/+!",
			"pub q/1/b", "pub q/1")
	})
	t.Run("topics that begin with $", func(t *testing.T) {
		l := parse(t, "allow all # +/x %c/y\nallow all $app-%c/z $ok/+")
		check(t, l, client("$SYS", "-"), "pub $SYS/y!", "pub $SYS/x!", "sub $SYS/y!", "sub $SYS/#!",
			"sub #", "sub +/x", "pub $ok/1", "sub $ok/+")
		check(t, l, client("c", "-"), "pub $app-c/z", "pub $app-d/z!", "sub $app-c/z",
			"sub $app-c/+!", "pub x/$SYS")
		check(t, parse(t, "deny all $ok/# $x-%c/#\nallow all # $ok/# $x-c/#"), client("c", "-"),
			"sub #", "sub +/a", "sub $ok/+!", "pub $ok/1!", "sub $x-c/a!")
	})
}

func TestWholeSubscriptions(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rules string
		ask   []string
	}{
		{"a rule for a topic is none for what begins with it", "allow all a/b",
			[]string{"sub a/b", "sub a/b/c!", "sub a/b/#!", "pub a/b/c!", "sub a!", "sub a/bc!"}},
		{"a filter has to be allowed as a whole", "allow all a/b a/c",
			[]string{"sub a/b", "sub a/+!", "sub a/#!", "sub #!"}},
		{"by one rule", "allow all a a/+/#", []string{"sub a/#!"}},
		{"nothing of it may be denied", "deny subscribe a/secret/#\nallow all #",
			[]string{"sub a/secret!", "sub a/+!", "sub #!", "sub +/secret/x!", "sub a/public/#",
				"sub +/public", "sub b/#", "pub a/secret"}},
		{"unless it is allowed before",
			"allow all a/secret/mine\ndeny all a/secret/#\nallow all a/#",
			[]string{"sub a/secret/mine", "sub a/secret/+!", "pub a/secret/mine",
				"pub a/secret!"}},
		{"wildcards at the same place", "deny all +/x/+\nallow all a/#",
			[]string{"sub a/+/b!", "sub a/y/+", "sub a/x", "sub a/x/#!", "sub a/+/+/c"}},
		{"# is +/#", "allow all +/#", []string{"sub #", "sub +/#", "pub a", "pub a/b", "sub a/#"}},
		{"+/# denied", "deny all +/#\nallow all # $x/#", []string{"sub #!", "sub a!", "sub $x/#"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check(t, parse(t, tt.rules), client("c", "-"),
				tt.ask...)
		})
	}
}

func TestMosquittoForm(t *testing.T) {
	for _, tt := range []struct {
		name string
		file string
		who  *hooks.Client
		ask  []string
	}{
		{"an empty file", "", client("c", "u"), []string{"pub a!", "sub a!"}},
		{"a comment", "# topic a\n", client("c", "-"), []string{"pub a!"}},
		{"access", "topic a\ntopic read b\ntopic write c\ntopic readwrite d\n", client("c", "-"),
			[]string{"pub a", "sub a", "pub b!", "sub b", "pub c", "sub c!", "pub d", "sub d"}},
		{"topics before a user are not for users", "topic a\nuser u\ntopic b\n", client("c", "u"),
			[]string{"pub a!", "pub b"}},
		{"and those of a user for nobody else", "topic a\nuser u\ntopic b\n", client("c", "v"),
			[]string{"pub a!", "pub b!"}},
		{"a user again", "user u\ntopic a\nuser v\ntopic b\nuser u\ntopic c", client("c", "u"),
			[]string{"pub a", "pub b!", "pub c"}},
		{"what is denied comes first", "user u\ntopic a/#\ntopic deny a/b\ntopic readwrite a/b\n",
			client("c", "u"), []string{"pub a/b!", "sub a/b!", "pub a/c", "sub a/#!"}},
		{"topics come before patterns",
			"pattern deny a/b\nuser u\ntopic a/b\ntopic deny a/c\npattern a/#\n", client("c", "u"),
			[]string{"pub a/b", "pub a/c!", "pub a/d"}},
		{"patterns are for everybody", "user u\npattern s/%c/%u\n", client("c", "v"),
			[]string{"pub s/c/v", "pub s/c/u!"}},
		{"names are none in topics", "topic s/%c\n", client("c", "-"),
			[]string{"pub s/c!", "pub s/%c"}},
		{"names with + or # get nothing from patterns", "pattern p/%u\npattern q\ntopic r",
			client("a+b", "-"), []string{"pub q!", "pub r"}},
		{"names with / get nothing through themselves", "pattern p/%c\npattern q\n",
			client("a/b", "-"), []string{"pub q", "pub p/a/b!"}},
		{"names with spaces", "user  night shift \ntopic   read   a b  \n",
			client("c", "night shift"), []string{"sub a b", "pub a b!"}},
		{"a topic called read", "topic read\n", client("c", "-"), []string{"pub read", "sub read"}},
		{"the end of a line is any", "user u\r\ntopic a\r\ntopic b", client("c", "u"),
			[]string{"pub a", "pub b"}},
		{"spaces first", "  topic write a", client("c", "-"), []string{"pub a"}},
		{"a shared subscription is decided by what is inside", "topic read $share/g/a\n",
			client("c", "-"), []string{"sub a!"}},
		{"$ topics", "topic #\ntopic read $SYS/#\npattern write $SYS/broker/connection/%c/state",
			client("c", "-"),
			[]string{"pub $SYS/a!", "sub $SYS/a", "pub $SYS/broker/connection/c/state", "pub $x!"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check(t, parseMosquitto(t, tt.file), tt.who,
				tt.ask...)
		})
	}
}

func TestRules(t *testing.T) {
	l, err := acl.Rules(
		acl.Rule{Effect: acl.EffectDeny, Who: acl.Who{Addr: netip.MustParsePrefix("192.0.2.0/24")},
			Filters: []string{"#"}},
		acl.Rule{Effect: acl.EffectAllow, Who: acl.Who{User: "u"}, Action: hooks.ActionPublish,
			Filters: []string{"a/%c", "b"}},
	)
	require.NoError(t, err)
	require.Equal(t, 2, l.Len())
	check(t, l, client("c", "u"), "pub a/c", "pub b", "sub b!")

	for _, tt := range []struct {
		name string
		rule acl.Rule
		want string
	}{
		{"no effect", acl.Rule{Filters: []string{"a"}}, "expected EffectAllow or EffectDeny"},
		{"no filter", acl.Rule{Effect: acl.EffectAllow}, "expected a topic filter"},
		{"an empty filter", acl.Rule{Effect: acl.EffectAllow, Filters: []string{""}},
			`"" is not a topic filter`},
		{"a bad filter", acl.Rule{Effect: acl.EffectAllow, Filters: []string{"a", "a/#/b"}},
			`"a/#/b" is not a topic filter`},
		{"a shared filter", acl.Rule{Effect: acl.EffectAllow, Filters: []string{"$share/g/a"}},
			"decided by the filter inside"},
		{"no action", acl.Rule{Effect: acl.EffectAllow, Action: 9, Filters: []string{"a"}},
			"9 is not an action"},
		{"nobody", acl.Rule{Effect: acl.EffectAllow, Who: acl.Who{User: "u", Anonymous: true},
			Filters: []string{"a"}}, "not anonymous"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := acl.Rules(acl.Rule{Effect: acl.EffectAllow, Filters: []string{"ok"}}, tt.rule)
			require.ErrorContains(t, err, "acl: rule 2: ")
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestRefusals(t *testing.T) {
	l := parse(t, "allow all a\ndeny all b\n")
	t.Run("name the rule, and tell the client nothing of it", func(t *testing.T) {
		err := acl.New(l).Authorize(t.Context(), asked(client("c", "-"), "pub b"))
		e, ok := errors.AsType[*packets.Error](err)
		require.True(t, ok)
		require.Equal(t, packets.NotAuthorized, e.Code)
		require.NotContains(t, e.Reason, "rules:2")
		require.ErrorContains(t, e.Err, "rules:2: deny b")
	})
	t.Run("where no rule applies the ACL may abstain", func(t *testing.T) {
		a := acl.New(l)
		require.Equal(t, packets.NotAuthorized,
			packets.CodeOf(a.Authorize(t.Context(), asked(client("c", "-"), "pub x"))))
		a.Abstain = true
		require.ErrorIs(t, a.Authorize(t.Context(), asked(client("c", "-"), "pub x")),
			hooks.ErrAbstain)
		require.NotErrorIs(t, a.Authorize(t.Context(), asked(client("c", "-"), "pub b")),
			hooks.ErrAbstain)
	})
	t.Run("without a list everything is refused", func(t *testing.T) {
		var zero acl.ACL
		for _, a := range []*acl.ACL{&zero, acl.New(nil), acl.New(new(acl.List))} {
			require.Equal(t, packets.NotAuthorized,
				packets.CodeOf(a.Authorize(t.Context(), asked(client("c", "-"), "pub a"))))
			require.Equal(t, packets.NotAuthorized,
				packets.CodeOf(a.Authorize(t.Context(), asked(client("c", "u"), "sub a"))))
		}
		require.Zero(t, (*acl.List)(nil).Len())
	})
	t.Run("an action that there is not is refused", func(t *testing.T) {
		for _, action := range []hooks.Action{0, 3, 200} {
			r := asked(client("c", "-"), "pub a")
			r.Action = action
			require.Error(t, acl.New(l).Authorize(t.Context(), r))
		}
	})
}

func TestSetReplacesAllRulesAndTells(t *testing.T) {
	a := acl.New(parse(t, "allow all a"))
	told := 0
	stop := hooks.Reloader(a).OnReload(func() {
		told++
		require.NoError(t, a.Authorize(t.Context(), asked(client("c", "-"), "pub b")),
			"the new rules are in force when the change is told")
	})
	a.Set(parse(t, "allow all b"))
	require.Equal(t, 1, told)
	require.Error(t, a.Authorize(t.Context(), asked(client("c", "-"), "pub a")))
	stop()
	a.Set(nil)
	require.Equal(t, 1, told)
	require.Error(t, a.Authorize(t.Context(), asked(client("c", "-"), "pub b")))
	require.True(t, hooks.Stable(a).Stable())
}

func TestAtDelivery(t *testing.T) {
	l, err := acl.ParseMosquitto(strings.NewReader(
		"topic read a/b\ntopic write a/c\npattern read by/%c/#\ntopic deny by/c/x\n"), "acl")
	require.NoError(t, err)
	a := acl.New(nil)
	d := a.AtDelivery()
	require.True(t, d.(hooks.Stable).Stable())
	reloads := 0
	d.(hooks.Reloader).OnReload(func() { reloads++ })
	a.Set(l)
	require.Equal(t, 1, reloads, "a change of the rules is one of both")

	c := client("c", "-")
	for _, filter := range []string{"a/#", "#", "secret"} {
		require.NoError(t, d.Authorize(t.Context(), asked(c, "sub "+filter)))
	}
	require.NoError(t, d.Authorize(t.Context(), asked(c, "pub a/c")))
	require.Error(t, d.Authorize(t.Context(), asked(c, "pub a/b")))
	for topic, want := range map[string]bool{"a/b": true, "a/c": false, "a": false, "by/c/y": true,
		"by/c/x": false, "by/d/y": false, "$SYS/x": false} {
		r := &hooks.AccessRequest{Client: c, Action: hooks.ActionDeliver, Topic: topic}
		require.Equal(t, want, d.AuthorizeDelivery(t.Context(), r) == nil, topic)
		require.Equal(t, hooks.ActionDeliver, r.Action, "the request is not modified")
		require.Zero(t, testing.AllocsPerRun(10,
			func() { _ = d.AuthorizeDelivery(t.Context(), r) }))
	}
}

// A client must not choose a name that takes it out of a rule that denies, and so to whom decides
// next.
func TestDeniedPatternsHoldWhereTheNextDecides(t *testing.T) {
	a := acl.New(parseMosquitto(t, "pattern deny secret/#\npattern deny own/%c\npattern x"))
	a.Abstain = true
	chain := hooks.ChainAuthorizers(a, hooks.AllowAll)
	for _, id := range []string{"c", "c+", "#", "a/b"} {
		for _, q := range []string{"pub secret/a", "sub secret/a", "sub secret/#", "sub #",
			"pub own/" + strings.Trim(id, "+#")} {
			if id == "#" && strings.HasPrefix(q, "pub own") {
				continue
			}
			require.Equal(t, packets.NotAuthorized, packets.CodeOf(chain.Authorize(t.Context(),
				asked(client(id, "-"), q))), "%s of %q", q, id)
		}
		require.NoError(t, chain.Authorize(t.Context(), asked(client(id, "-"), "pub y")))
	}
}

// An address of IPv4 is one, however the rule writes it.
func TestAddressesOfIPv4InIPv6(t *testing.T) {
	c := client("c", "-")
	c.RemoteAddr = &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}
	for _, rule := range []string{"addr=10.0.0.0/8", "addr=::ffff:10.0.0.1",
		"addr=::ffff:10.0.0.0/104"} {
		check(t, parse(t, "deny "+rule+" all #\nallow all #"), c, "pub a!", "sub a!")
	}
	check(t, parse(t, "deny addr=::ffff:10.0.0.2 all #\nallow all #"), c, "pub a")
	c.RemoteAddr = &net.TCPAddr{IP: net.ParseIP("2001:db8::1")}
	check(t, parse(t, "deny addr=::ffff:10.0.0.1 all #\nallow all #"), c, "pub a")
}

// A condition that makes no sense must not be none.
func TestAddressesThatAreNone(t *testing.T) {
	who := acl.Who{Addr: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33)}
	_, err := acl.Rules(acl.Rule{Effect: acl.EffectAllow, Who: who, Filters: []string{"#"}})
	require.Error(t, err)
}
