package why

import (
	"fmt"
	"strings"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file finds the Topic Filter that comes closest to a topic which it does not match.

// What a difference costs, in quarters of a level. Those that look like a mistake cost least.
const (
	likeMistake = 1
	otherLevel  = 4
)

// Nearest returns the filter of those that does not match topic and differs least from it, and how
// it differs. It is empty if there are no filters.
func Nearest(filters []string, topic string) (nearest, difference string) {
	least := -1
	for _, f := range filters {
		if cost, how := differ(f, topic); least < 0 || cost < least {
			least, nearest, difference = cost, f, how
		}
	}
	return nearest, difference
}

// differ says how far filter is from matching topic, and what the first difference is.
func differ(filter, topic string) (cost int, how string) {
	switch {
	case packets.MatchTopic(strings.TrimPrefix(filter, "/"), topic):
		return likeMistake, "the filter begins with a slash, the topic does not"
	case packets.MatchTopic("/"+filter, topic):
		return likeMistake, "the topic begins with a slash, the filter does not"
	case packets.MatchTopic(strings.TrimSuffix(filter, "/"), topic):
		return likeMistake, "the filter ends with a slash, the topic does not"
	case packets.MatchTopic(filter+"/", topic):
		return likeMistake, "the topic ends with a slash, the filter does not"
	}
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	note := func(n int, text string, args ...any) {
		if cost += n; how == "" {
			how = fmt.Sprintf(text, args...)
		}
	}
	for i := range f {
		switch {
		case f[i] == "#":
			return cost, how
		case i >= len(t):
			note(otherLevel*(len(f)-i), "the filter has %d levels, the topic has %d", len(f),
				len(t))
			return cost, how
		case f[i] == "+", f[i] == t[i]:
		case strings.EqualFold(f[i], t[i]):
			note(likeMistake, "level %d is %q, the topic has %q: upper and lower case differ", i+1,
				f[i],
				t[i])
		case strings.TrimSpace(f[i]) == strings.TrimSpace(t[i]):
			note(likeMistake, "level %d is %q, the topic has %q: they differ in spaces", i+1, f[i],
				t[i])
		default: // the earlier, the less they have to do with each other
			note(otherLevel+max(0, len(f)-i-1), "level %d is %q, the topic has %q", i+1, f[i], t[i])
		}
	}
	if len(t) > len(f) {
		note(otherLevel*(len(t)-len(f)), "the topic has %d levels, the filter has %d", len(t),
			len(f))
	}
	return cost, how
}
