package retained

import (
	"math"
	"strings"
)

// A summary says which topics there may be in a part of the tree. It has no false negatives.
type summary struct {
	// depths has bit n for topics with n+1 levels; the last bit is for 64 and more.
	depths uint64
	// names has, for each of the first levels and for all further ones together, a bit for each
	// name that a topic has there, chosen by a hash of the name.
	names [namedLevels]uint64
}

// namedLevels is how many levels of topics a summary tells apart.
const namedLevels = 8

func (s *summary) merge(x *summary) {
	s.depths |= x.depths
	for i := range s.names {
		s.names[i] |= x.names[i]
	}
}

// summarize returns the summary of one topic.
func summarize(topic string) (s summary) {
	depth := 0
	for name := range strings.SplitSeq(topic, "/") {
		s.names[min(depth, namedLevels-1)] |= bit(name)
		depth++
	}
	s.depths = 1 << min(depth-1, 63)
	return s
}

// bit is the bit of a summary for the name of a level: that of its FNV-1a hash, whose last bytes a
// multiplication spreads.
func bit(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return 1 << ((h ^ h>>32) * 0x9E3779B97F4A7C15 >> 58)
}

// A pattern is a Topic Filter, with what a summary must have so that a topic of it can match.
type pattern struct {
	filter string
	depths uint64              // the topic has one of these depths
	names  [namedLevels]uint64 // and all of these names
}

// compile makes a pattern of a valid filter.
func compile(filter string) pattern {
	p := pattern{filter: filter}
	depth := 0
	for name := range strings.SplitSeq(filter, "/") {
		switch name {
		case "#": // a/# matches a as well
			p.depths = math.MaxUint64 << max(min(depth, 64)-1, 0)
			return p
		case "+":
		default:
			p.names[min(depth, namedLevels-1)] |= bit(name)
		}
		depth++
	}
	p.depths = 1 << min(depth-1, 63)
	return p
}

// excludes says that no topic of a part of the tree with summary s can match p.
func (p *pattern) excludes(s *summary) bool {
	if p.depths&s.depths == 0 {
		return true
	}
	for i := range p.names {
		if p.names[i]&^s.names[i] != 0 {
			return true
		}
	}
	return false
}

// A step says where a walk goes on behind a topic.
type step byte

const (
	onward  step = iota // to the next topic
	forward             // to walk.at: what comes before that cannot match
	nowhere             // what comes behind it cannot match
)

// compare says whether topic matches the filter, and where to go on.
func (w *walk) compare(topic string) (match bool, next step) {
	if topic[0] == '$' && (w.filter[0] == '+' || w.filter[0] == '#') {
		return false, w.forward("%", "", "") // the byte after '$' [MQTT-4.7.2-1]
	}
	begin, plus := 0, false // of the level of topic; whether a + came before
	for filter := w.filter; ; {
		want, filterRest, filterMore := strings.Cut(filter, "/")
		if want == "#" {
			return true, onward
		}
		level, _, more := strings.Cut(topic[begin:], "/")
		end := begin + len(level)
		if want == "+" {
			plus = true
		} else if want != level {
			return false, w.mismatch(topic, begin, want, filterMore, plus)
		}
		switch {
		case more && filterMore:
			begin, filter = end+1, filterRest
		case more: // the topic is longer, as are all below it
			return false, w.past(topic[:end])
		default: // the topic ends here; a/# matches a as well (4.7.1.2)
			return !filterMore || filterRest == "#", onward
		}
	}
}

// mismatch returns where to go on behind a topic that has, from the byte begin on, another level
// than want. more says that the filter has further levels, plus that it has a + before this one.
func (w *walk) mismatch(topic string, begin int, want string, more, plus bool) step {
	// There may be a topic with that level further on: it ends there or goes on with a slash.
	prefix, have := topic[:begin], topic[begin:]
	if want > have {
		return w.forward(prefix, want, "")
	}
	if more && strings.HasPrefix(have, want) && have[len(want)] < '/' {
		return w.forward(prefix, want, "/")
	}
	if !plus {
		return nowhere
	}
	return w.past(prefix[:begin-1])
}

// past goes on behind all topics below parent.
func (w *walk) past(parent string) step { return w.forward(parent, string(rune('/'+1)), "") }

// forward goes on at the topic that a, b and c make together.
func (w *walk) forward(a, b, c string) step {
	w.at = append(append(append(w.at[:0], a...), b...), c...)
	return forward
}
