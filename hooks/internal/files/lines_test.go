package files_test

import (
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
	"github.com/stretchr/testify/require"
)

func TestEachLine(t *testing.T) {
	no := errors.New("no")
	for _, tt := range []struct {
		name, text string
		lines      int
		want       string // of the error
	}{
		{"nothing", "", 0, ""},
		{"a last line without an end", "a\nb", 2, ""},
		{"the callback's error", "a\nno\nb", 3, "f:2: no"},
		{"several errors", "no\na\nno", 3, "f:1: no\nf:3: no"},
		{"too many errors", strings.Repeat("no\n", 20), 10, strings.TrimSpace(`
f:1: no
f:2: no
f:3: no
f:4: no
f:5: no
f:6: no
f:7: no
f:8: no
f:9: no
f:10: no`)},
		{"not UTF-8", "a\n\xff", 1, "f:2: not valid UTF-8"},
		{"U+0000", "a\x00", 0, "f:1: not valid UTF-8"},
		{"a long line", "a\n" + strings.Repeat("b", 1<<20), 1, "f:2: longer than 1048576 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lines := 0
			err := files.EachLine(strings.NewReader(tt.text), "f", func(line string, n int) error {
				lines++
				require.Equal(t, lines, n)
				if line == "no" {
					return no
				}
				return nil
			})
			require.Equal(t, tt.lines, lines)
			if tt.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, tt.want)
			e, ok := errors.AsType[*hooks.ParseError](err)
			require.True(t, ok)
			require.Equal(t, "f", e.File)
			require.Error(t, e.Unwrap())
		})
	}
	t.Run("a failing reader", func(t *testing.T) {
		err := files.EachLine(iotest.ErrReader(no), "f", nil)
		require.Equal(t, no, err)
	})
}
