package acl_test

import (
	"context"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

func TestContains(t *testing.T) {
	for _, tt := range []struct {
		name         string
		rule, filter string
		want         bool
	}{
		{"a topic is in itself", "a/b", "a/b", true},
		{"a topic is not in what it begins with", "a/b", "a/b/c", false},
		{"a topic is not in what begins with it", "a/b/c", "a/b", false},
		{"nor where the text goes on", "a/b", "a/bc", false},
		{"a wildcard is not in a topic", "a/b", "a/+", false},
		{"+ is one level", "a/+", "a/b", true},
		{"+ is not two levels", "a/+", "a/b/c", false},
		{"+ is not none", "a/+", "a", false},
		{"+ is also an empty level", "a/+", "a/", true},
		{"+ is in itself", "+/b/+", "+/b/+", true},
		{"# is not in +", "a/+", "a/#", false},
		{"# holds what is below", "a/#", "a/b/+/c", true},
		{"# holds # further down", "a/#", "a/b/#", true},
		{"# does not hold # further up", "a/b/#", "a/#", false},
		{"# holds the level above", "a/#", "a", true},
		{"# holds not what only begins like it", "a/#", "ab", false},
		{"all but $ is in #", "#", "+/a/#", true},
		{"# does not hold $", "#", "$SYS/a", false},
		{"+ does not hold $", "+/a", "$SYS/a", false},
		{"$ in its own rule", "$SYS/#", "$SYS/a/+", true},
		{"a $ further down is a letter", "a/+", "a/$b", true},
		{"# is +/#, because there is no topic without a level", "+/#", "#", true},
		{"but a level below", "+/+/#", "#", false},
		{"but a/+/# is not a/#", "a/+/#", "a/#", false},
		{"a slash at the end counts", "a", "a/", false},
		{"a slash at the beginning counts", "a", "/a", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, acl.Contains(tt.rule, tt.filter), "%s in %s", tt.filter,
				tt.rule)
		})
	}
}

// everyFilter returns all Topic Filters of up to n levels that can be made of the given levels and
// wildcards.
func everyFilter(n int, levels ...string) (fs []string) {
	if n == 0 {
		return nil
	}
	rest := everyFilter(n-1, levels...)
	for _, l := range append([]string{"+"}, levels...) {
		if l != "" {
			fs = append(fs, l)
		}
		for _, r := range append([]string{""}, rest...) {
			fs = append(fs, l+"/"+r)
		}
	}
	return append(fs, "#")
}

// everyTopic returns those without wildcards.
func everyTopic(n int, levels ...string) (ts []string) {
	for _, f := range everyFilter(n, levels...) {
		if packets.ValidTopicName(f) {
			ts = append(ts, f)
		}
	}
	return ts
}

// TestContainsIsExact compares Contains, and decisions by one rule that allows or denies, with what
// the words mean, over all pairs of short filters. Each topic that tells two of them apart can be
// made of the levels in them and one other, and has one level more.
func TestContainsIsExact(t *testing.T) {
	filters := everyFilter(3, "a", "$x")
	topics := everyTopic(4, "a", "b", "$x", "")
	matches := map[string][]bool{}
	for _, f := range filters {
		for _, topic := range topics {
			matches[f] = append(matches[f], packets.MatchTopic(f, topic))
		}
	}
	client := new(hooks.Client)
	for _, rule := range filters {
		allow, err := acl.Rules(acl.Rule{Effect: acl.EffectAllow, Filters: []string{rule}})
		require.NoError(t, err)
		deny, err := acl.Rules(
			acl.Rule{Effect: acl.EffectDeny, Filters: []string{rule}},
			acl.Rule{Effect: acl.EffectAllow, Filters: []string{"#", "$x/#"}})
		require.NoError(t, err)
		for _, filter := range filters {
			inside, meets := true, false
			for i := range topics {
				inside = inside && (!matches[filter][i] || matches[rule][i])
				meets = meets || matches[filter][i] && matches[rule][i]
			}
			require.Equal(t, inside, acl.Contains(rule, filter), "%q in %q", filter, rule)
			r := &hooks.AccessRequest{Client: client, Action: hooks.ActionSubscribe, Topic: filter}
			require.Equal(t, inside, acl.New(allow).Authorize(context.Background(), r) == nil,
				"%q under a rule that allows %q", filter, rule)
			require.Equal(t, !meets, acl.New(deny).Authorize(context.Background(), r) == nil,
				"%q under a rule that denies %q", filter, rule)
		}
	}
	t.Logf("%d pairs over %d topics", len(filters)*len(filters), len(topics))
}

func FuzzContains(f *testing.F) {
	f.Add("a/+/#", "a/b/#", "a/b/c")
	f.Add("+/#", "#", "$x")
	f.Fuzz(func(t *testing.T, rule, filter, topic string) {
		if !packets.ValidTopicFilter(rule) || !packets.ValidTopicFilter(filter) ||
			!packets.ValidTopicName(topic) {
			return
		}
		if acl.Contains(rule, filter) && packets.MatchTopic(filter, topic) &&
			!packets.MatchTopic(rule, topic) {
			t.Errorf("%q is said to hold %q, but does not match %q", rule, filter, topic)
		}
		if plain := !strings.ContainsAny(filter, "+#"); plain &&
			acl.Contains(rule, filter) != packets.MatchTopic(rule, filter) {
			t.Errorf("%q and the topic %q: containing is matching", rule, filter)
		}
	})
}
