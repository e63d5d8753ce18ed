package acl_test

import (
	"flag"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

var seed = flag.Uint64("seed", 0, "of the randomized tests; 0 takes the time")

// random returns a generator and prints its seed.
func random(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// A modelRule is what both forms of rules come down to, kept as text.
type modelRule struct {
	who     func(c *hooks.Client) bool
	action  hooks.Action // 0: both
	deny    bool
	filter  string
	names   bool // %u and %c are names
	ofNames bool // not for names with + or #
}

// decide is the reference: the first rule that matches the topic, one at a time.
func decide(rules []modelRule, c *hooks.Client, action hooks.Action, topic string) bool {
	for _, r := range rules {
		if r.applies(c, action) && r.matches(c, topic) {
			return !r.deny
		}
	}
	return false
}

// decideFilter is the same for a filter: the first rule that allows all of it or denies some of it,
// which it finds by trying each of the topics.
func decideFilter(rules []modelRule, c *hooks.Client, filter string, topics []string) bool {
	for _, r := range rules {
		if !r.applies(c, hooks.ActionSubscribe) {
			continue
		}
		all, some := true, false
		for _, topic := range topics {
			if packets.MatchTopic(filter, topic) {
				m := r.matches(c, topic)
				all, some = all && m, some || m
			}
		}
		if all && !r.deny || some && r.deny {
			return !r.deny
		}
	}
	return false
}

func (r *modelRule) applies(c *hooks.Client, action hooks.Action) bool {
	user, _ := c.User()
	named := user != ""
	return r.who(c) && (r.action == 0 || r.action == action) &&
		!(r.names && strings.Contains(r.filter, "%u") && !named) &&
		!(r.ofNames && !r.deny && strings.ContainsAny(c.Username+c.ID, "+#"))
}

// matches puts the names in as text, where that can do no harm, and otherwise matches all that
// begins like the text before.
func (r *modelRule) matches(c *hooks.Client, topic string) bool {
	if !r.names {
		return packets.MatchTopic(r.filter, topic)
	}
	if (r.filter[0] == '$') != (topic[0] == '$') {
		return false
	}
	bad := func(s string) bool { return s == "" || strings.ContainsAny(s, "+#/\x00") }
	good := r.filter
	for name, value := range map[string]string{"%u": c.Username, "%c": c.ID} {
		if !bad(value) {
			good = strings.ReplaceAll(good, name, value) // no name holds a percent sign here
		}
	}
	before, found := good, false
	if i := strings.IndexByte(good, '%'); i >= 0 {
		before, found = good[:i], true
	}
	if !found {
		return packets.MatchTopic(good, topic)
	}
	if !r.deny {
		return false
	}
	want, have := strings.Split(before, "/"), strings.Split(topic, "/")
	last := len(want) - 1
	if len(have) <= last || !strings.HasPrefix(have[last], want[last]) {
		return false
	}
	return last == 0 || packets.MatchTopic(strings.Join(want[:last], "/"),
		strings.Join(have[:last], "/"))
}

func everyone(*hooks.Client) bool { return true }

func isUser(name string) func(*hooks.Client) bool {
	return func(c *hooks.Client) bool {
		user, ok := c.User()
		return ok && user == name
	}
}

func isAnonymous(c *hooks.Client) bool { return c.Username == "" }

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// randomFilter returns one of up to three levels out of few, so that things meet.
func randomFilter(r *rand.Rand, levels ...string) string {
	var f []string
	for range 1 + r.IntN(3) {
		f = append(f, pick(r, levels...))
	}
	if r.IntN(4) == 0 {
		f[len(f)-1] = "#"
	}
	if r.IntN(8) == 0 {
		f[0] = "$d"
	}
	return strings.Join(f, "/")
}

// randomMosquitto returns a file and what it means.
func randomMosquitto(r *rand.Rand) (file string, rules []modelRule) {
	var parts [6][]modelRule // user denials, user topics, pattern denials, other patterns
	who, user := isAnonymous, ""
	for range r.IntN(12) {
		if r.IntN(4) == 0 {
			user = pick(r, "u", "v", "u/v")
			who = isUser(user)
			file += "user " + user + "\n"
			continue
		}
		m := modelRule{who: who, filter: randomFilter(r, "a", "b", "+", "u")}
		keyword, part := "topic", 0
		if r.IntN(2) == 0 {
			keyword, part = "pattern", 2
			m = modelRule{who: everyone, names: true, ofNames: true,
				filter: randomFilter(r, "a", "%u", "%c", "+", "a%c", "%u-%c")}
		}
		access := pick(r, "", "read ", "write ", "readwrite ", "deny ")
		switch access {
		case "read ":
			m.action = hooks.ActionSubscribe
		case "write ":
			m.action = hooks.ActionPublish
		case "deny ":
			m.deny = true
		}
		if !m.deny {
			part++
		}
		parts[part] = append(parts[part], m)
		file += keyword + " " + access + m.filter + "\n"
	}
	return file, slices.Concat(parts[:]...)
}

// randomOwn returns rules in the form of this package and what they mean.
func randomOwn(r *rand.Rand) (text string, rules []modelRule) {
	for range 1 + r.IntN(10) {
		m := modelRule{names: true,
			filter: randomFilter(r, "a", "b", "+", "u", "%u", "%c", "a%c", "%u-%c")}
		m.deny = r.IntN(2) == 0
		text += map[bool]string{true: "deny", false: "allow"}[m.deny]
		switch r.IntN(4) {
		case 0:
			text, m.who = text+" user=u", isUser("u")
		case 1:
			text, m.who = text+" anonymous", isAnonymous
		case 2:
			text, m.who = text+" client=c", func(c *hooks.Client) bool { return c.ID == "c" }
		default:
			m.who = everyone
		}
		m.action = pick(r, 0, hooks.ActionPublish, hooks.ActionSubscribe)
		text += map[hooks.Action]string{0: " all ", hooks.ActionPublish: " publish ",
			hooks.ActionSubscribe: " subscribe "}[m.action] + m.filter + "\n"
		rules = append(rules, m)
	}
	return text, rules
}

// levelsFor returns the levels that random rules may have for c, others that begin like them, and
// one other.
func levelsFor(c *hooks.Client) []string {
	levels := []string{"a", "b", "c", "u", "$d", "z", c.ID, c.Username, "a" + c.ID,
		c.Username + "-" + c.ID, "az", c.Username + "-z"}
	slices.Sort(levels)
	return slices.DeleteFunc(slices.Compact(levels), func(s string) bool {
		return s == "" || strings.ContainsAny(s, "+#/")
	})
}

// topicsOf returns what tells filters of up to three levels apart: all topics of that many of the
// levels, and the longest with one more.
func topicsOf(levels []string) (ts []string) {
	ts = everyTopic(3, levels...)
	for _, topic := range ts {
		if packets.Levels(topic) == 3 {
			ts = append(ts, topic+"/z")
		}
	}
	return ts
}

// TestAgainstModel asks at least 10,000 random questions of random lists in each form, and compares
// the answers with those of a model that knows neither index nor levels.
func TestAgainstModel(t *testing.T) {
	r := random(t)
	questions, allowed := 0, 0
	for range 1000 {
		text, rules := randomMosquitto(r)
		read := acl.ParseMosquitto
		if r.IntN(2) == 0 {
			text, rules = randomOwn(r)
			read = acl.Parse
		}
		l, err := read(strings.NewReader(text), "random")
		require.NoError(t, err, text)
		a := acl.New(l)
		for range 40 {
			c := client(pick(r, "c", "u", "a", "c/d", "c+", "#", "$d"),
				pick(r, "-", "u", "v", "a", "u/v", "+", "#", "$d", ""))
			levels := levelsFor(c)
			topic := strings.ReplaceAll(randomFilter(r, levels...), "#", "a")
			q := asked(c, pick(r, "pub ", "sub ")+topic+pick(r, "", "", "/z"))
			want := decide(rules, c, q.Action, q.Topic)
			if r.IntN(16) == 0 {
				q = asked(c, "sub "+randomFilter(r, "a", "u", "c", "+", "a"))
				want = decideFilter(rules, c, q.Topic, topicsOf(levels))
			}
			questions++
			if want {
				allowed++
			}
			got := a.Authorize(t.Context(), q) == nil
			if (strings.HasPrefix(c.ID, "$") || strings.HasPrefix(c.Username, "$")) &&
				strings.ContainsAny(q.Topic[:1], "+#") && !got {
				continue // a denied %c/x counts against # although $d/x is no part of it
			}
			require.Equal(t, want, got, "%s\n%v to %s, client %q, user %q %v", text, q.Action,
				q.Topic, c.ID, c.Username, c.HasUsername)
		}
	}
	require.GreaterOrEqual(t, questions, 10_000)
	require.Greater(t, allowed, questions/50, "the questions have to be such that some are allowed")
	t.Logf("%d questions, %d allowed", questions, allowed)
}
