package hooks_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
)

func TestTokensAreNotShown(t *testing.T) {
	for _, name := range []string{"", "ann", "eyJ", "eyJohn", "a.b.c", "eyJ.x"} {
		require.Equal(t, name, hooks.ShownUser(name))
	}
	one := hooks.ShownUser("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln")
	two := hooks.ShownUser("eyJh.eyJz.c2lo")
	require.Regexp(t, `^\(a token, [0-9a-f]{16}\)$`, one)
	require.NotEqual(t, one, two)
}
