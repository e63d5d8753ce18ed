package acl

import (
	"fmt"
	"strings"
)

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
	named        // holds %u, %c or ${attribute}
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
	text string // of an attribute: its name
	name name
}

// compile takes apart a valid Topic Filter. names are the kinds of names that it may hold.
func compile(s string, names name) (levels []level, err error) {
	for text := range strings.SplitSeq(s, "/") {
		l := level{text: text}
		switch text {
		case "+":
			l.kind = plus
		case "#":
			l.kind = hash
		default:
			parts, err := split(text, names)
			if err != nil {
				return nil, err
			}
			if len(parts) > 1 || parts != nil && parts[0].name != 0 {
				l.kind, l.parts = named, parts
			}
		}
		levels = append(levels, l)
	}
	return levels, nil
}

// split cuts a level at its names, if they are of the given kinds.
func split(text string, names name) (ps []part, err error) {
	start := 0
	for i := 0; i < len(text); i++ {
		p, n, err := nameAt(text[i:])
		if err != nil && names&attribute != 0 {
			return nil, err
		}
		if err != nil || p.name&names == 0 {
			continue
		}
		if start < i {
			ps = append(ps, part{text: text[start:i]})
		}
		ps = append(ps, p)
		start = i + n
		i = start - 1
	}
	if start < len(text) {
		ps = append(ps, part{text: text[start:]})
	}
	return ps, nil
}

// nameAt returns the name that text begins with, and how long it is as it was written.
func nameAt(text string) (p part, n int, err error) {
	if strings.HasPrefix(text, "${") {
		attr, _, ok := strings.Cut(text[2:], "}")
		if !ok || attr == "" {
			return p, 0, fmt.Errorf("expected the name of an attribute, as in ${region}, got %q",
				text)
		}
		return part{text: attr, name: attribute}, len(attr) + len("${}"), nil
	}
	if len(text) > 1 && text[0] == '%' {
		return part{name: percent[text[1]]}, 2, nil
	}
	return p, 0, nil
}

// dollar says whether the level was written with a $ as its first character. The $ of ${attribute}
// is none.
func (l *level) dollar() bool {
	return strings.HasPrefix(l.text, "$") && (l.kind != named || l.parts[0].name == 0)
}

// uses returns the names that the levels hold.
func uses(levels []level) (u name) {
	for i := range levels {
		for _, p := range levels[i].parts {
			u |= p.name
		}
	}
	return u
}
