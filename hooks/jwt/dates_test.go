package jwt_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	dunlinjwt "github.com/dunlin-mqtt/dunlin/hooks/jwt"
)

// Issuers write all kinds of numbers where a token never expires.
func TestTimesOfTokensAtTheirEdges(t *testing.T) {
	last := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	for _, tt := range []struct {
		name      string
		claims    claims
		unlimited bool      // AllowUnlimited
		expires   time.Time // zero: the token is refused
	}{
		{"the year 2300", claims{"exp": json.Number("10413792000")}, false,
			time.Unix(10413792000, 0)},
		{"the year 9999", claims{"exp": json.Number("253402300799")}, false, last},
		{"the year 10000", claims{"exp": json.Number("253402300800")}, false, last},
		{"milliseconds", claims{"exp": json.Number("1893456000000")}, false, last},
		{"the last of 63 bits", claims{"exp": json.Number("9223372036854775807")}, false, last},
		{"more than 63 bits", claims{"exp": json.Number("9223372036854775808")}, false, last},
		{"the last number", claims{"exp": json.Number("1.7e308")}, false, last},
		{"zero", claims{"exp": 0}, false, time.Time{}},
		{"zero, where a token needs no end", claims{"exp": 0}, true, time.Time{}},
		{"before 1970", claims{"exp": -1}, true, time.Time{}},
		{"the first number", claims{"exp": json.Number("-1.7e308")}, true, time.Time{}},
		{"null", claims{"exp": json.RawMessage("null")}, true, time.Time{}},
		{"not before the year 2300", claims{"nbf": json.Number("10413792000")}, false, time.Time{}},
		{"not before the last number", claims{"nbf": json.Number("1.7e308")}, false, time.Time{}},
		{"not before the last of 63 bits", claims{"nbf": json.Number("9223372036854775807")}, false,
			time.Time{}},
		{"not before the first number", claims{"exp": 253402300799, "nbf": json.Number("-1.7e308")},
			false, last},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tokens := newTokens(t, func(o *dunlinjwt.Options) { o.AllowUnlimited = tt.unlimited })
			r := connect(sign(t, "HS256", secret, kid("secret"), with(tt.claims)))
			err := tokens.Authenticate(t.Context(), r)
			if tt.expires.IsZero() {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.True(t, tt.expires.Equal(r.Grant.Expires), "%v", r.Grant.Expires)
		})
	}
}
