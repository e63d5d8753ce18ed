package script

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A token is a word of the trace notation: a flag, or a key and a value.
type token struct {
	key    string
	flag   bool // no value
	absent bool // "!key"
	value  string
	quoted bool // the value was written in quotes and means itself
}

var (
	variable = regexp.MustCompile(`^!?\$[a-z][a-z0-9]*$`)
	repeated = regexp.MustCompile(`^<(\d+)\*([^>]+)>$`)
	sized    = regexp.MustCompile(`^<(\d+) bytes>$`)
)

// tokenize splits a line. Quoted values come out without their quotes, repetitions <n*text>
// expanded.
func tokenize(line string) ([]token, error) {
	var ts []token
	for {
		line = strings.TrimLeft(line, " ")
		if line == "" {
			return ts, nil
		}
		t, rest, err := nextToken(line)
		if err != nil {
			return nil, err
		}
		ts = append(ts, t)
		line = rest
	}
}

func nextToken(line string) (t token, rest string, err error) {
	i := strings.IndexAny(line, " =\"")
	if i >= 0 && line[i] == '"' { // a User Property whose name is quoted
		q, err := strconv.QuotedPrefix(line[i:])
		if err != nil {
			return t, "", fmt.Errorf("%q: %w", line, err)
		}
		name, _ := strconv.Unquote(q)
		t.key = line[:i] + name
		line = line[i+len(q):]
		if !strings.HasPrefix(line, "=") {
			return t, "", fmt.Errorf("no = behind %s", q)
		}
		i = 0
	} else if i < 0 || line[i] == ' ' {
		if i < 0 {
			i = len(line)
		}
		t.key, t.absent = strings.CutPrefix(line[:i], "!")
		t.flag = true
		return t, line[i:], nil
	} else {
		t.key = line[:i]
	}
	line = line[i+1:]
	switch {
	case strings.HasPrefix(line, `"`):
		q, err := strconv.QuotedPrefix(line)
		if err != nil {
			return t, "", fmt.Errorf("%s=%s: %w", t.key, line, err)
		}
		t.value, _ = strconv.Unquote(q)
		t.quoted = true
		line = line[len(q):]
	case strings.HasPrefix(line, "<") && strings.Contains(line, ">"):
		end := strings.IndexByte(line, '>') + 1
		t.value, line = line[:end], line[end:]
		if m := repeated.FindStringSubmatch(t.value); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil || n > 1<<20 {
				return t, "", fmt.Errorf("%s: too many repetitions", t.value)
			}
			t.value, t.quoted = strings.Repeat(m[2], n), true
		}
	}
	if i = strings.IndexByte(line, ' '); i < 0 {
		i = len(line)
	}
	t.value += line[:i] // for instance the options behind a quoted filter
	return t, line[i:], nil
}

// substitute replaces variables by their values. With vars nil, by a value that fits everywhere.
func substitute(ts []token, vars map[string]string) []token {
	out := make([]token, len(ts))
	for i, t := range ts {
		out[i] = t
		if t.quoted || !variable.MatchString(t.value) {
			continue
		}
		out[i].value, out[i].quoted = "1", true
		if vars != nil {
			out[i].value = vars[t.value]
		}
	}
	return out
}

// unbound returns a variable of ts that has no value yet, or "".
func unbound(ts []token, vars map[string]string) string {
	for _, t := range ts {
		if !t.quoted && variable.MatchString(t.value) {
			if _, ok := vars[t.value]; !ok {
				return t.value
			}
		}
	}
	return ""
}

// match says why the packet whose trace has the tokens got is not the one that want describes; nil
// if it is. Only then the variables that want gives a value to are put into vars.
func match(want, got []token, vars map[string]string) error {
	bound := maps.Clone(vars)
	listed := map[string][]token{} // by listKey, what has to be there
	for _, w := range want {
		if w.absent || isNegative(w) {
			if err := matchNegative(w, got, bound); err != nil {
				return err
			}
			continue
		}
		listed[listKey(w.key)] = append(listed[listKey(w.key)], w)
	}
	for _, k := range slices.Sorted(maps.Keys(listed)) {
		have := slices.DeleteFunc(slices.Clone(got),
			func(g token) bool { return listKey(g.key) != k })
		if err := matchList(k, listed[k], have, bound); err != nil {
			return err
		}
	}
	maps.Copy(vars, bound)
	return nil
}

// listKey is the key under which tokens are compared: User Properties are one list, whatever their
// names.
func listKey(key string) string {
	if strings.HasPrefix(key, "user.") {
		return "user."
	}
	return key
}

func isNegative(w token) bool { return !w.quoted && strings.HasPrefix(w.value, "!") }

func matchNegative(w token, got []token, vars map[string]string) error {
	bad := strings.TrimPrefix(w.value, "!")
	if v, ok := vars[bad]; ok {
		bad = v
	}
	present := false
	for _, g := range got {
		if g.key != w.key {
			continue
		}
		present = true
		if !w.absent && g.value == bad {
			return fmt.Errorf("%s is %s", w.key, g.value)
		}
	}
	switch {
	case w.absent && present:
		return fmt.Errorf("%s is there", w.key)
	case !w.absent && !present:
		return fmt.Errorf("%s is missing", w.key)
	}
	return nil
}

// matchList compares all tokens of one key: as many, and each of them. User Properties in their
// order, others in any.
func matchList(key string, want, have []token, vars map[string]string) error {
	if len(want) == 1 && len(have) == 1 && want[0].key == have[0].key &&
		!equal(want[0], have[0], vars) {
		return fmt.Errorf("%s is %s", want[0].key, have[0].value)
	}
	if len(have) != len(want) {
		return fmt.Errorf("%s occurs %d times, not %d", key, len(have), len(want))
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(h token) bool {
			return w.key == h.key &&
				equal(w, h, vars)
		})
		if i < 0 || i > 0 && key == "user." {
			return fmt.Errorf("%s=%s is missing, or not in its place", w.key, w.value)
		}
		have = slices.Delete(have, i, i+1)
	}
	return nil
}

// equal compares a value with what is wanted; a variable that has none gets it.
func equal(w, h token, vars map[string]string) bool {
	switch {
	case w.flag || h.flag:
		return w.flag == h.flag
	case w.quoted:
		return w.value == h.value
	case w.value == "*":
		return true
	case variable.MatchString(w.value):
		if _, ok := vars[w.value]; !ok {
			vars[w.value] = h.value
		}
		return vars[w.value] == h.value
	}
	return slices.Contains(strings.Split(w.value, "|"), h.value)
}
