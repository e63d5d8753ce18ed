package jwt

import (
	"encoding/json"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// payload holds the claims of a token. It accepts every number as a time. Package jwt treats 0 as a
// missing time, and a number that is too large for an int64 as a time long ago.
type payload struct{ jwt.MapClaims }

// UnmarshalJSON reads the claims.
func (p *payload) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &p.MapClaims) }

// GetExpirationTime returns exp.
func (p *payload) GetExpirationTime() (*jwt.NumericDate, error) {
	return p.date("exp", p.MapClaims.GetExpirationTime)
}

// GetNotBefore returns nbf.
func (p *payload) GetNotBefore() (*jwt.NumericDate, error) {
	return p.date("nbf", p.MapClaims.GetNotBefore)
}

// GetIssuedAt returns iat.
func (p *payload) GetIssuedAt() (*jwt.NumericDate, error) {
	return p.date("iat", p.MapClaims.GetIssuedAt)
}

// The first and the last second of times with a year of four digits.
const firstSecond, lastSecond = -62_135_596_800, 253_402_300_799

// date returns a time in the years 1 to 9999. other returns a claim that is not a number.
func (p *payload) date(name string, other func() (*jwt.NumericDate, error)) (*jwt.NumericDate,
	error) {
	n, ok := p.MapClaims[name].(float64)
	if !ok {
		return other()
	}
	seconds := min(max(n, firstSecond), lastSecond)
	return jwt.NewNumericDate(time.Unix(int64(seconds), 0)), nil
}
