package packets

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// matchLevels is MatchTopic in the words of 4.7.1: level by level.
func matchLevels(filter, name []string) bool {
	switch {
	case len(filter) == 0:
		return len(name) == 0
	case filter[0] == "#":
		return true
	case len(name) == 0:
		return false
	default:
		return (filter[0] == "+" || filter[0] == name[0]) && matchLevels(filter[1:], name[1:])
	}
}

// matchPlainly is what MatchTopic has to return for a valid filter and name.
func matchPlainly(filter, name string) bool {
	if strings.HasPrefix(name, "$") && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	return matchLevels(strings.Split(filter, "/"), strings.Split(name, "/"))
}

// validTextPlainly is what ValidUTF8 has to return.
func validTextPlainly(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// validFilterPlainly is what ValidTopicFilter has to return.
func validFilterPlainly(s string) bool {
	levels := strings.Split(s, "/")
	for i, level := range levels {
		if strings.Contains(level, "#") && (level != "#" || i != len(levels)-1) ||
			strings.Contains(level, "+") && level != "+" {
			return false
		}
	}
	return s != "" && len(s) <= 65535 && validTextPlainly(s)
}

// checkTopicFunctions compares the topic functions with their plain forms.
func checkTopicFunctions(t *testing.T, a, b string) {
	t.Helper()
	for _, s := range []string{a, b} {
		validName := s != "" && len(s) <= 65535 && validTextPlainly(s) &&
			!strings.ContainsAny(s, "+#")
		require.Equal(t, validTextPlainly(s), ValidUTF8(s), "ValidUTF8(%q)", s)
		require.Equal(t, validTextPlainly(s), ValidUTF8([]byte(s)), "ValidUTF8(%q) of bytes", s)
		require.Equal(t, validName, ValidTopicName(s), "ValidTopicName(%q)", s)
		require.Equal(t, validName, ValidTopicName([]byte(s)), "ValidTopicName(%q) of bytes", s)
		require.Equal(t, validFilterPlainly(s), ValidTopicFilter(s), "ValidTopicFilter(%q)", s)
		require.Equal(t, strings.Count(s, "/")+1, Levels(s), "Levels(%q)", s)
		group, inner, err := SplitShared(s)
		if err == nil && group != "" {
			require.Equal(t, s, "$share/"+group+"/"+inner)
		} else if err == nil {
			require.Equal(t, s, inner)
		}
	}
	got := MatchTopic(a, b)
	if ValidTopicFilter(a) && ValidTopicName(b) {
		require.Equal(t, matchPlainly(a, b), got, "MatchTopic(%q, %q)", a, b)
	}
}

func TestTopicFunctionsAgreeWithTheirPlainForms(t *testing.T) {
	r := seeded(t)
	levels := []string{"a", "b", "", "+", "#", "$SYS", "ä", "a+", "longer level", "\x00", "\xFF"}
	for range 20000 {
		checkTopicFunctions(t, randomLevels(r, levels), randomLevels(r, levels[:3+5*r.IntN(2)]))
	}
}

func randomLevels(r *rand.Rand, levels []string) string {
	s := levels[r.IntN(len(levels))]
	for range r.IntN(5) {
		s += "/" + levels[r.IntN(len(levels))]
	}
	return s
}

func TestTextIsCheckedAtEachPosition(t *testing.T) {
	for n := range 40 {
		for i := range n {
			s := []byte(strings.Repeat("x", n))
			for _, c := range []byte{0, '+', '#', 0x80, 0xFF} {
				s[i] = c
				require.False(t, ValidTopicName(s), "%q", s)
				require.Equal(t, c == '+' || c == '#', ValidUTF8(s), "%q", s)
			}
			for _, c := range []byte{1, '*', ',', '"', '$', '/', 0x7F, 0x2A, 0x3B, 0x33, 0x03,
				0x0B} {
				s[i] = c
				require.True(t, ValidTopicName(s), "%q", s)
			}
		}
	}
}

func TestTopicLengths(t *testing.T) {
	for n, ok := range map[int]bool{0: false, 1: true, 65535: true, 65536: false} {
		s := strings.Repeat("x", n)
		require.Equal(t, ok, ValidTopicName(s), "a name of %d bytes", n)
		require.Equal(t, ok, ValidTopicFilter(s), "a filter of %d bytes", n)
	}
	require.True(t, ValidUTF8(""))
}

func TestSplitShared(t *testing.T) {
	for name, tt := range map[string]struct {
		filter, group, inner string
		bad                  bool
	}{
		"a filter that is not shared is returned whole": {filter: "a/b", inner: "a/b"},
		"a shared filter is split": {filter: "$share/g/a/+/#",
			group: "g", inner: "a/+/#"},
		"the filter inside may begin with a slash": {filter: "$share/g//a",
			group: "g", inner: "/a"},
		"the filter inside may look shared": {filter: "$share/g/$share/h/a",
			group: "g", inner: "$share/h/a"},
		"the prefix is a whole level": {filter: "$shared/g/a",
			inner: "$shared/g/a"},
		"the prefix is case-sensitive": {filter: "$Share/g/a",
			inner: "$Share/g/a"},
		"the prefix has to come first": {filter: "/$share/g/a",
			inner: "/$share/g/a"},
		"an empty filter is not shared":              {},
		"the prefix alone is not valid":              {filter: "$share", bad: true},
		"the prefix and a slash are not valid":       {filter: "$share/", bad: true},
		"a share name alone is not valid":            {filter: "$share/g", bad: true},
		"a share name without a filter is not valid": {filter: "$share/g/", bad: true},
		"an empty share name is not valid":           {filter: "$share//a", bad: true},
		"a share name with a single-level wildcard is not valid": {filter: "$share/g+/a",
			bad: true},
		"a share name with a multi-level wildcard is not valid": {filter: "$share/#/a", bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			group, inner, err := SplitShared(tt.filter)
			require.Equal(t, tt.group, group)
			require.Equal(t, tt.inner, inner)
			if tt.bad {
				requireCode(t, TopicFilterInvalid, err, "%q", tt.filter)
			} else {
				require.NoError(t, err)
				require.Equal(t, tt.filter, JoinShared(group, inner), "JoinShared is the reverse")
			}
		})
	}
}

func TestMatchTopicOfWhatIsNotValidDoesNotPanic(t *testing.T) {
	for _, s := range []string{"", "+", "#", "a#", "#/a", "a+/b", "$", "/", "+/#"} {
		for _, name := range []string{"", "a", "$", "/", "a/", "+", "#"} {
			_ = MatchTopic(s, name)
		}
	}
	require.False(t, MatchTopic("", ""), "nothing matches nothing")
	require.False(t, MatchTopic("#", ""), "there is no empty Topic Name")
}
