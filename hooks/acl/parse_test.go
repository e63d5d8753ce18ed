package acl_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/stretchr/testify/require"
)

func TestBadFilesAreRefusedWithFileLineAndReason(t *testing.T) {
	own, mosquitto := acl.Parse, acl.ParseMosquitto
	for _, tt := range []struct {
		name  string
		parse func(io.Reader, string) (*acl.List, error)
		text  string
		want  string
	}{
		{"own: neither allow nor deny", own, "allow all a\npermit all a",
			`f:2: expected allow or deny, got "permit"`},
		{"own: no action", own, "allow user=u", "f:1: expected publish, subscribe or all"},
		{"own: nothing but the effect", own, "\n\ndeny", "f:3: expected publish, subscribe or all"},
		{"own: no filter", own, "allow user=u publish", "f:1: expected a topic filter"},
		{"own: a bad filter", own, "allow all a/b+", `f:1: "a/b+" is not a topic filter`},
		{"own: an unknown condition", own, "allow group=x all a",
			`f:1: expected a condition, publish, subscribe or all, got "group=x"`},
		{"own: a condition without a value", own, "allow user= all a",
			`f:1: "user=": user wants one value, once`},
		{"own: a condition without =", own, "allow user all a",
			`f:1: "user": user wants one value, once`},
		{"own: a condition twice", own, "allow role=a role=b all a",
			`f:1: "role=b": role wants one value, once`},
		{"own: anonymous with a value", own, "allow anonymous=yes all a", "anonymous stands alone"},
		{"own: anonymous with a user", own, "allow anonymous user=u all a", "not anonymous"},
		{"own: a bad address", own, "allow addr=10.0.0.300 all a",
			`f:1: expected an address or a prefix, got "10.0.0.300"`},
		{"own: an address with a zone", own, "allow addr=fe80::1%eth0 all a",
			"expected an address or a prefix, got"},
		{"own: two addresses", own, "allow addr=10.0.0.1 addr=10.0.0.2 all a",
			"f:1: addr wants one value, once"},
		{"own: a QoS that there is not", own, "allow qos=3 all a",
			`f:1: expected 0, 1 or 2 as QoS, or several as in qos=0,1, got "qos=3"`},
		{"own: a QoS that is missing", own, "allow qos=0, all a", `got "qos=0,"`},
		{"own: QoS without a value", own, "allow qos all a", `got "qos"`},
		{"own: QoS twice", own, "allow qos=0 qos=1 all a", `"qos=1": qos stands once`},
		{"own: retain with a value", own, "deny retain=1 publish a", "retain stands alone"},
		{"own: retain twice", own, "deny retain retain publish a", "retain stands alone, and once"},
		{"own: retain of a subscription", own, "deny retain subscribe a",
			"f:1: retain is a condition of publishing alone"},
		{"own: retain of both", own, "deny retain all a", "publishing alone"},
		{"own: a listener without a name", own, "allow listener= all a",
			`f:1: "listener=": listener wants one value, once`},
		{"own: an attribute without a name", own, "allow all a/${}", `got "${}"`},
		{"own: an attribute without an end", own, "allow all a/x${b/c}",
			`f:1: expected the name of an attribute, as in ${region}, got "${b"`},
		{"own: an attribute with a wildcard", own, "allow all ${+}", `is not a topic filter`},
		{"own: a condition of an attribute without an end", own, "allow ${a=b all c",
			`expected the name of an attribute, as in ${region}, got "${a=b"`},
		{"own: a condition of an attribute without a value", own, "allow ${a} all b",
			`f:1: "${a}": ${a} wants one value, once`},
		{"own: a condition of an attribute twice", own, "allow ${a}=1 ${a}=2 all b",
			`f:1: "${a}=2": ${a} wants one value, once`},
		{"own: an open quote", own, `allow all "a`, `f:1: "a is not a Go string`},
		{"own: no space after a quote", own, `allow all "a"b`, `f:1: no space after "a"`},
		{"own: not UTF-8", own, "allow all \xff", "f:1: not valid UTF-8"},
		{"own: NUL", own, "allow all a\x00", "f:1: not valid UTF-8"},
		{"own: quoted NUL", own, `allow all "a\x00"`, "is not a topic filter"},
		{"own: shared", own, "allow subscribe $share/g/a", "decided by the filter inside"},
		{"mosquitto: an unknown word", mosquitto, "topic a\nTopic b",
			`f:2: expected topic, pattern or user, got "Topic"`},
		{"mosquitto: a comment that does not begin the line", mosquitto, " # topic a",
			`expected topic, pattern or user, got "#"`},
		{"mosquitto: tabs for spaces", mosquitto, "topic\tread\ta",
			"expected topic, pattern or user, got"},
		{"mosquitto: a tab for the second space", mosquitto, "topic read\ta",
			"holds a control character"},
		{"mosquitto: a tab for the first space", mosquitto, "topic \tread a",
			"expected read, write, readwrite or deny, got"},
		{"mosquitto: no topic", mosquitto, "topic  ", "f:1: expected a topic filter"},
		{"mosquitto: no pattern", mosquitto, "pattern", "f:1: expected a topic filter"},
		{"mosquitto: no user", mosquitto, "user  \ntopic a", "f:1: expected a name after user"},
		{"mosquitto: a bad access", mosquitto, "topic all a",
			`f:1: expected read, write, readwrite or deny, got "all"`},
		{"mosquitto: a space in a topic without access", mosquitto, "topic a b",
			`f:1: expected read, write, readwrite or deny, got "a"`},
		{"mosquitto: a bad filter", mosquitto, "user u\ntopic read a/#/b",
			`f:2: "a/#/b" is not a topic filter`},
		{"mosquitto: a bad pattern", mosquitto, "pattern a/%u#",
			`f:1: "a/%u#" is not a topic filter`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := tt.parse(strings.NewReader(tt.text), "f")
			require.Nil(t, l)
			require.ErrorContains(t, err, tt.want)
			e, ok := errors.AsType[*hooks.ParseError](err)
			require.True(t, ok)
			require.Equal(t, "f", e.File)
			require.Positive(t, e.Line)
			require.Error(t, e.Unwrap())
		})
	}
	t.Run("a failing reader", func(t *testing.T) {
		want := errors.New("unplugged")
		for _, parse := range []func(io.Reader, string) (*acl.List, error){own, mosquitto} {
			_, err := parse(iotest.ErrReader(want), "f")
			require.ErrorIs(t, err, want)
		}
	})
}

func TestLenCountsLines(t *testing.T) {
	require.Equal(t, 2, parse(t, "allow all a b c\n# comment\n\ndeny all d").Len())
	require.Equal(t, 3, parseMosquitto(t, "topic a\nuser u\ntopic b\npattern c\n").Len())
}

func FuzzParse(f *testing.F) {
	f.Add("allow user=u addr=10.0.0.0/8 publish \"a b\"/%c #\n")
	f.Add("deny ${a}=b qos=0,2 retain listener=l publish ${c}/x${d}y/#\n")
	f.Add("user u\ntopic deny a/+\npattern read %u/%c/#\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func(io.Reader, string) (*acl.List, error){acl.Parse,
			acl.ParseMosquitto} {
			l, err := parse(strings.NewReader(text), "f")
			if _, ok := errors.AsType[*hooks.ParseError](err); err != nil && !ok {
				t.Errorf("%T is no *ParseError", err)
			}
			a := acl.New(l)
			for _, q := range []string{"pub a/b/c", "sub +/b/#", "sub #", "pub $SYS/a"} {
				if a.Authorize(t.Context(), asked(client("c", "u"), q)) == nil && err != nil {
					t.Errorf("a refused file allows %s", q)
				}
			}
		}
	})
}
