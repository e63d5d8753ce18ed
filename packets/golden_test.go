package packets

import (
	"bufio"
	"encoding/hex"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A vector is a packet of testdata/vectors.txt.
type vector struct {
	name, hex, trace, code string
	v                      Version
	decodeOnly             bool
}

// vectors reads testdata/vectors.txt.
func vectors(t *testing.T) (list []vector) {
	t.Helper()
	f, err := os.Open("testdata/vectors.txt")
	require.NoError(t, err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "# "); ok {
			list = append(list, vector{name: name})
			continue
		}
		if len(list) == 0 {
			continue // the introduction
		}
		key, value, _ := strings.Cut(lines.Text(), ": ")
		vec := &list[len(list)-1]
		switch key {
		case "version":
			vec.v = map[string]Version{"3.1": V31, "3.1.1": V311, "5.0": V5}[value]
		case "hex":
			vec.hex += strings.ReplaceAll(value, " ", "")
		case "trace":
			vec.trace = value
		case "error":
			vec.code = value
		case "only":
			vec.decodeOnly = true
		case "":
		default:
			t.Fatalf("%s: unknown key %q", vec.name, key)
		}
	}
	require.NoError(t, lines.Err())
	return list
}

func TestGoldenVectors(t *testing.T) {
	seen := map[Type]bool{}
	for _, vec := range vectors(t) {
		t.Run(vec.name, func(t *testing.T) {
			b, err := hex.DecodeString(vec.hex)
			require.NoError(t, err)
			p, n, err := Decode(b, vec.v, Limits{})
			if vec.code != "" {
				code, parseErr := strconv.ParseUint(vec.code, 0, 8)
				require.NoError(t, parseErr)
				requireCode(t, ReasonCode(code), err, "decoding must fail")
				require.Nil(t, p)
				return
			}
			require.NoError(t, err)
			require.Len(t, b, n, "all bytes must be taken")
			require.Equal(t, vec.trace, Trace(p))
			seen[p.Type()] = true
			again := encode(t, p, vec.v)
			require.Equal(t, p.Size(vec.v), len(again))
			if vec.decodeOnly {
				require.LessOrEqual(t, len(again), len(b), "the form that is sent is the shortest")
			} else {
				require.Equal(t, b, again)
			}
		})
	}
	require.Len(t, seen, len(types), "each type must have a vector")
}
