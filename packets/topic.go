package packets

import (
	"strings"
	"unicode/utf8"
)

// text is a string or its bytes.
type text interface{ ~string | ~[]byte }

// inspect scans s once. malformed is true if s is not UTF-8 or contains U+0000. Otherwise wildcard
// tells whether s contains a wildcard character. It skips eight bytes at a time while they are
// ASCII without any of these characters.
func inspect[T text](s T) (malformed, wildcard bool) {
	for i := 0; i < len(s); {
		// The last eight bytes may overlap with bytes that were checked before.
		if j := min(i, len(s)-8); j >= 0 && plain(s, j) {
			i = j + 8
			continue
		}
		switch c := s[i]; {
		case c == 0:
			return true, false
		case c < utf8.RuneSelf:
			wildcard = wildcard || c == '+' || c == '#'
			i++
		default:
			r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			if r == utf8.RuneError && n == 1 {
				return true, false
			}
			i += n
		}
	}
	return false, wildcard
}

// plain reports whether none of the eight bytes at s[i:] is 0, '+', '#' or above 0x7F.
func plain[T text](s T, i int) bool {
	const ones = 0x01010101_01010101
	w := s[i : i+8]
	x := uint64(w[0]) | uint64(w[1])<<8 | uint64(w[2])<<16 | uint64(w[3])<<24 |
		uint64(w[4])<<32 | uint64(w[5])<<40 | uint64(w[6])<<48 | uint64(w[7])<<56
	// As long as no byte is above 0x7F, subtracting 1 from each sets a high bit only where one was
	// 0. '+' and '#' differ in the bit 0x08 alone, so both become 0 in y.
	y := (x | 0x08*ones) ^ '+'*ones
	return (x|(x-ones)|(y-ones))&(0x80*ones) == 0
}

// ValidUTF8 reports whether s is UTF-8 as the standard defines it: well formed, without surrogates
// and without U+0000 (1.5.4). An empty s is valid.
func ValidUTF8[T ~string | ~[]byte](s T) bool {
	malformed, _ := inspect(s)
	return !malformed
}

// ValidTopicName reports whether s may be the Topic Name of a message: 1 to 65,535 bytes of UTF-8
// without U+0000 and without wildcards (4.7).
func ValidTopicName[T ~string | ~[]byte](s T) bool {
	if len(s) == 0 || len(s) > maxString {
		return false
	}
	malformed, wildcard := inspect(s)
	return !malformed && !wildcard
}

// ValidTopicFilter reports whether s is a valid Topic Filter: 1 to 65,535 bytes of UTF-8 without
// U+0000, where '+' and '#' stand alone in their level, and '#' is the last level (4.7.1). It does
// not check the form of a shared subscription: see SplitShared.
func ValidTopicFilter(s string) bool {
	if len(s) == 0 || len(s) > maxString {
		return false
	}
	malformed, wildcard := inspect(s)
	if malformed {
		return false
	}
	if !wildcard {
		return true
	}
	for i := range len(s) {
		switch s[i] {
		case '#':
			if i != len(s)-1 || i > 0 && s[i-1] != '/' {
				return false
			}
		case '+':
			if i > 0 && s[i-1] != '/' || i < len(s)-1 && s[i+1] != '/' {
				return false
			}
		}
	}
	return true
}

// sharePrefix begins the Topic Filter of a Shared Subscription (4.8.2).
const sharePrefix = "$share/"

// SplitShared splits the Topic Filter of a Shared Subscription, "$share/group/inner", into its
// Share Name and the filter that messages have to match (4.8.2). If the filter is not shared, inner
// is the filter and group is empty. The error is an *Error with TopicFilterInvalid if the filter
// begins with $share/ but has no valid Share Name [MQTT-4.8.2-1] [MQTT-4.8.2-2] or ends after it.
// SplitShared does not check inner: use ValidTopicFilter.
func SplitShared(filter string) (group, inner string, err error) {
	rest, shared := strings.CutPrefix(filter, sharePrefix)
	if !shared {
		if filter == "$share" {
			return "", "", Errorf(TopicFilterInvalid, "a shared subscription has no Share Name")
		}
		return "", filter, nil
	}
	group, inner, _ = strings.Cut(rest, "/")
	switch {
	case group == "" || strings.ContainsAny(group, "+#"):
		return "", "", Errorf(TopicFilterInvalid, "a shared subscription has no valid Share Name")
	case inner == "":
		return "", "", Errorf(TopicFilterInvalid, "a shared subscription has no Topic Filter")
	}
	return group, inner, nil
}

// JoinShared is the reverse of SplitShared: it returns "$share/group/inner", or inner itself if
// group is empty. It checks neither.
func JoinShared(group, inner string) string {
	if group == "" {
		return inner
	}
	return sharePrefix + group + "/" + inner
}

// MatchTopic reports whether a subscription to filter receives messages with Topic Name name (4.7).
// Both must be valid and filter not shared; otherwise the result is meaningless. It takes time
// linear in their length and does not allocate.
func MatchTopic(filter, name string) bool {
	if filter == "" || name == "" {
		return false
	}
	if name[0] == '$' && (filter[0] == '+' || filter[0] == '#') {
		return false // [MQTT-4.7.2-1]
	}
	j := 0
	for i := range len(filter) {
		switch c := filter[i]; {
		case c == '#':
			return true
		case c == '+':
			for j < len(name) && name[j] != '/' {
				j++
			}
		case j < len(name) && name[j] == c:
			j++
		default:
			return j == len(name) && filter[i:] == "/#" // '#' includes the parent level (4.7.1.2)
		}
	}
	return j == len(name)
}

// Levels returns the number of levels of a Topic Name or Topic Filter: one more than it has slashes
// (4.7.1.1).
func Levels[T ~string | ~[]byte](s T) int {
	n := 1
	for i := range len(s) {
		if s[i] == '/' {
			n++
		}
	}
	return n
}
