package jwt_test

import (
	"math"
	"net/http"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	dunlinjwt "github.com/dunlin-mqtt/dunlin/hooks/jwt"
)

func TestTheLeewayAtItsEdges(t *testing.T) {
	s := &site{status: 200, body: webSet(t, webKey(t, edPublic, "kid", "one"))}
	keys, err := dunlinjwt.FetchKeys(t.Context(), "https://id.example.org/keys",
		&dunlinjwt.FetchOptions{Client: &http.Client{Transport: s}})
	require.NoError(t, err)
	for leeway, ok := range map[time.Duration]bool{math.MinInt64: false, -1: false, 0: true,
		math.MaxInt64: true} {
		_, err := dunlinjwt.New(dunlinjwt.Options{Keys: keys, Leeway: leeway})
		require.Equal(t, ok, err == nil, "%v: %v", leeway, err)
		if ok {
			tokens := newTokens(t, func(o *dunlinjwt.Options) { o.Keys, o.Leeway = keys, leeway })
			require.NoError(t, tokens.Authenticate(t.Context(),
				connect(sign(t, "EdDSA", ed, kid("one"), with(nil)))), "%v", leeway)
		}
	}
}

// Each duration of the FetchOptions at its edges: keys are fetched, found, and fetched again.
func TestFetchOptionsAtTheirEdges(t *testing.T) {
	typ := reflect.TypeFor[dunlinjwt.FetchOptions]()
	n := 0
	for i := range typ.NumField() {
		if typ.Field(i).Type != reflect.TypeFor[time.Duration]() {
			continue
		}
		for _, edge := range []int64{math.MinInt64, -1, math.MaxInt64} {
			n++
			synctest.Test(t, func(t *testing.T) {
				s := &site{status: 200, body: webSet(t, webKey(t, edPublic, "kid", "one"))}
				o := &dunlinjwt.FetchOptions{Client: &http.Client{Transport: s}}
				reflect.ValueOf(o).Elem().Field(i).SetInt(edge)
				keys, err := dunlinjwt.FetchKeys(t.Context(), "https://id.example.org/keys", o)
				require.NoError(t, err)
				time.Sleep(time.Hour)
				found, err := keys.Find(t.Context(), "one")
				require.NoError(t, err, "%s %d", typ.Field(i).Name, edge)
				require.Len(t, found, 1)
			})
		}
	}
	require.NotZero(t, n)
}
