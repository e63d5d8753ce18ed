package mosquittoconf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// readLines reads the settings of a file. In the main file include_dir is replaced by the lines of
// the files in that folder, behind its own line.
func readLines(file string, known Known, main bool) (lines []Line, errs []error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, []error{err}
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	n := 0
	for raw := range strings.SplitSeq(string(text), "\n") {
		n++
		l, ok := split(strings.TrimSpace(raw), known)
		if !ok {
			continue
		}
		l.File, l.Number = file, n
		if l.Name == "include_dir" && !main {
			errs = append(errs, &Error{l, errors.New("only the main file can include others")})
			continue
		}
		lines = append(lines, l)
		if l.Name == "include_dir" && l.Rest != "" {
			more, wrong := include(l, known)
			lines, errs = append(lines, more...), append(errs, wrong...)
		}
	}
	return lines, errs
}

// split takes a line apart. ok is false for one without a setting.
func split(s string, known Known) (l Line, ok bool) {
	if s == "" || s[0] == '#' {
		return l, false
	}
	end := strings.IndexAny(s, " \t=")
	if end < 0 {
		return Line{Name: s}, true
	}
	l.Name, l.Rest = s[:end], strings.TrimSpace(s[end:])
	if value, found := strings.CutPrefix(l.Rest, "="); found {
		if _, own := known(l.Name); own { // the form of flags
			l.Rest = strings.TrimSpace(value)
		} else if s[end] == '=' {
			l.Name, l.Rest, _ = strings.Cut(s, " ") // an option of Mosquitto has no such form
			l.Rest = strings.TrimSpace(l.Rest)
		}
	}
	return l, true
}

// include reads the files in the folder that l names, in the order of Mosquitto.
func include(l Line, known Known) (lines []Line, errs []error) {
	entries, err := os.ReadDir(l.Rest)
	if err != nil {
		return nil, []error{&Error{l, err}}
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".conf") {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, compareNames)
	for _, name := range names {
		more, wrong := readLines(filepath.Join(l.Rest, name), known, false)
		lines, errs = append(lines, more...), append(errs, wrong...)
	}
	return lines, errs
}

// compareNames orders names by letters, with the upper case of a letter before its lower case: A a
// B b.
func compareNames(a, b string) int {
	for i := range min(len(a), len(b)) {
		x, y := lower(a[i]), lower(b[i])
		switch {
		case x != y:
			return int(x) - int(y)
		case a[i] != b[i]:
			return int(a[i]) - int(b[i])
		}
	}
	return len(a) - len(b)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// suggest says which name may have been meant.
func (p *parser) suggest(name string) string {
	for _, own := range []string{strings.ReplaceAll(name, "_", "-"), strings.TrimLeft(name, "-")} {
		if _, ok := p.known(own); ok {
			return fmt.Sprintf("; did you mean the flag %s?", own)
		}
	}
	bare, _, _ := strings.Cut(name, "=")
	if _, ok := find(bare); ok {
		return fmt.Sprintf("; write %q", bare+" VALUE")
	}
	best, least := "", 1+max(1, len(bare)/3)
	for _, x := range append(optionNames(), p.names...) {
		if d := distance(bare, x); d < least {
			best, least = x, d
		}
	}
	if best == "" {
		return "; mosquitto.conf(5) and the flags of this program (-h) list what there is"
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance is how many characters must be added, removed or replaced to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
