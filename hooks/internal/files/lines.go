package files

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/hooks"
)

// maxLine bounds the length of a line. No valid line is longer.
const maxLine = 1 << 20

// EachLine calls f with each line of r, without its end, and with its number, beginning with 1.
// Lines that are not UTF-8 or contain U+0000 are errors. An error about a line is returned as a
// *hooks.ParseError that names file. An error of r is returned unchanged.
func EachLine(r io.Reader, file string, f func(line string, n int) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	n := 1
	for ; lines.Scan(); n++ {
		line := lines.Text()
		err := errors.New("not valid UTF-8")
		if utf8.ValidString(line) && !strings.Contains(line, "\x00") {
			err = f(line, n)
		}
		if err != nil {
			return &hooks.ParseError{File: file, Line: n, Err: err}
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return &hooks.ParseError{File: file, Line: n,
			Err: fmt.Errorf("longer than %d bytes", maxLine)}
	}
	return lines.Err()
}
