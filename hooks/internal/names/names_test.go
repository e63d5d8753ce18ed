package names

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTokensAreNotShown(t *testing.T) {
	for _, name := range []string{"", "ann", "eyJ", "eyJohn", "a.b.c", "eyJ.x"} {
		require.Equal(t, name, Shown(name))
	}
	one, two := Shown("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"), Shown("eyJh.eyJz.c2lo")
	require.Regexp(t, `^\(a token, [0-9a-f]{16}\)$`, one)
	require.NotEqual(t, one, two)
}
