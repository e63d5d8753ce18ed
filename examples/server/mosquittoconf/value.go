package mosquittoconf

import (
	"fmt"
	"strconv"
	"strings"
)

// A value is what follows the name of an option.
type value struct {
	Line
	n  int
	on bool
}

// A kind is what may follow the name of an option.
type kind func(l Line) (value, error)

func (k kind) read(l Line) (value, error) { return k(l) }

// anything may be empty.
func anything(l Line) (value, error) { return value{Line: l}, nil }

// text is the rest of the line, spaces included.
func text(l Line) (value, error) {
	if l.Rest == "" {
		return value{}, fmt.Errorf("the value is missing")
	}
	return value{Line: l}, nil
}

// boolean is true or false.
func boolean(l Line) (value, error) {
	switch l.Rest {
	case "true", "1":
		return value{Line: l, on: true}, nil
	case "false", "0":
		return value{Line: l}, nil
	case "":
		return value{}, fmt.Errorf("the value is missing: expected true or false")
	}
	return value{}, fmt.Errorf("expected true or false, got %q", l.Rest)
}

// number is an integer between two others.
func number(least, most int) kind {
	return func(l Line) (value, error) {
		n, err := strconv.Atoi(l.Rest)
		switch {
		case l.Rest == "":
			return value{}, fmt.Errorf("the value is missing: expected a number from %d to %d",
				least, most)
		case err != nil || n < least || n > most:
			return value{}, fmt.Errorf("expected a number from %d to %d, got %q", least, most,
				l.Rest)
		}
		return value{Line: l, n: n}, nil
	}
}

// oneOf is one of several words.
func oneOf(words ...string) kind {
	return func(l Line) (value, error) {
		for i, w := range words {
			if w == l.Rest {
				return value{Line: l, n: i}, nil
			}
		}
		if l.Rest == "" {
			return value{}, fmt.Errorf("the value is missing: expected %s", strings.Join(words,
				", "))
		}
		return value{}, fmt.Errorf("expected %s, got %q", strings.Join(words, ", "), l.Rest)
	}
}

// hours are what the units of persistent_client_expiration stand for.
var hours = map[byte]int{'h': 1, 'd': 24, 'w': 7 * 24, 'm': 30 * 24, 'y': 365 * 24}

// maxHours is a century, and still a time.Duration.
const maxHours = 100 * 365 * 24

// duration is a number and a unit, in hours.
func duration(l Line) (value, error) {
	if s := l.Rest; s != "" {
		unit := hours[s[len(s)-1]]
		n, err := strconv.Atoi(s[:len(s)-1])
		if unit > 0 && err == nil && n > 0 && n <= maxHours/unit {
			return value{Line: l, n: n * unit}, nil
		}
	}
	return value{}, fmt.Errorf("expected a number and one of h, d, w, m and y, as in 14d, got %q",
		l.Rest)
}
