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

// maxErrors is after how many bad lines a file is not read on.
const maxErrors = 10

// EachLine calls f with each line of r, without its end, and with its number, beginning with 1.
// Lines that are not UTF-8 or contain U+0000 are errors. An error about a line becomes a
// *hooks.ParseError that names file. EachLine then reads on, up to ten bad lines, and returns their
// errors joined: one line of text for each. A single error is returned as it is.
func EachLine(r io.Reader, file string, f func(line string, n int) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var bad []error
	n := 1
	for ; len(bad) < maxErrors && lines.Scan(); n++ {
		line := lines.Text()
		err := errors.New("not valid UTF-8")
		if utf8.ValidString(line) && !strings.Contains(line, "\x00") {
			err = f(line, n)
		}
		if err != nil {
			bad = append(bad, &hooks.ParseError{File: file, Line: n, Err: err})
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		bad = append(bad, &hooks.ParseError{File: file, Line: n,
			Err: fmt.Errorf("longer than %d bytes", maxLine)})
	case err != nil:
		bad = append(bad, err)
	}
	if len(bad) == 1 {
		return bad[0]
	}
	return errors.Join(bad...)
}
