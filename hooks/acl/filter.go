package acl

import "strings"

// Contains reports whether the Topic Filter rule matches every Topic Name that the Topic Filter
// filter matches. A Topic Name counts as a filter that matches only itself. Both must be valid.
// Contains does not interpret $share, %u or %c.
func Contains(rule, filter string) bool {
	if strings.HasPrefix(rule, "$") != strings.HasPrefix(filter, "$") {
		return false // one is for topics that begin with $, the other for those that do not (4.7.2)
	}
	if rule == "+/#" && filter == "#" {
		return true // there is no Topic Name without a level
	}
	for ruleMore, filterMore := true, true; ruleMore; {
		var r, f string
		r, rule, ruleMore = next(rule)
		if r == "#" {
			return true // with what follows, and with nothing: the level above (4.7.1.2)
		}
		if !filterMore {
			return false
		}
		f, filter, filterMore = next(filter)
		if f == "#" || r != "+" && r != f {
			return false
		}
		if !ruleMore {
			return !filterMore
		}
	}
	return false
}

// next returns the first level of s and the rest. more is true if another level follows, even an
// empty one.
func next(s string) (first, rest string, more bool) { return strings.Cut(s, "/") }

// kind is what a level in the filter of a rule is.
type kind byte

const (
	literal kind = iota
	named        // holds %u or %c
	plus         // +
	hash         // #, always the last one
)

// A level is one level in the filter of a rule.
type level struct {
	kind  kind
	text  string // as it was written
	parts []part // of a named level
}

// A part of a named level is text, or else a name.
type part struct {
	text string
	name name
}

// compile takes apart a valid Topic Filter; %u and %c are names only if names says so.
func compile(s string, names bool) (levels []level) {
	for text := range strings.SplitSeq(s, "/") {
		l := level{text: text}
		switch text {
		case "+":
			l.kind = plus
		case "#":
			l.kind = hash
		default:
			if names && (strings.Contains(text, "%u") || strings.Contains(text, "%c")) {
				l.kind, l.parts = named, split(text)
			}
		}
		levels = append(levels, l)
	}
	return levels
}

// split cuts a named level at its names.
func split(text string) (ps []part) {
	start := 0
	for i := 0; i+1 < len(text); i++ {
		n := names[text[i+1]]
		if text[i] != '%' || n == 0 {
			continue
		}
		if start < i {
			ps = append(ps, part{text: text[start:i]})
		}
		ps = append(ps, part{name: n})
		i++
		start = i + 1
	}
	if start < len(text) {
		ps = append(ps, part{text: text[start:]})
	}
	return ps
}

// dollar says whether the level begins with $ as it was written.
func (l *level) dollar() bool { return strings.HasPrefix(l.text, "$") }

// uses returns the names that the levels hold.
func uses(levels []level) (u name) {
	for i := range levels {
		for _, p := range levels[i].parts {
			u |= p.name
		}
	}
	return u
}
