package jwt

import (
	"fmt"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/stretchr/testify/require"
)

// Tokens with long claims do not make the kept rules grow without end.
func TestKeptRulesAreBoundedInBytes(t *testing.T) {
	a := new(Tokens).Authorizer().(*authorizer)
	for i := range 100 {
		filter := fmt.Sprint(i, "/", strings.Repeat("x", 60_000))
		r := &hooks.AccessRequest{Action: hooks.ActionPublish, Topic: filter, Client: &hooks.Client{
			Identity: hooks.Identity{Attributes: map[string]string{publishAttribute: filter}},
		}}
		require.NoError(t, a.Authorize(t.Context(), r))
		size := 0
		for of := range a.lists {
			size += len(of[0]) + len(of[1])
		}
		require.Equal(t, size, a.size)
		require.LessOrEqual(t, size, maxListBytes)
	}
	require.NotEmpty(t, a.lists)
}
