package jwt

import (
	"encoding/json"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// payload is the claims of a token. Of a time it understands every number: package jwt takes 0 for a
// time that is missing, and a number that is too large for an int64 for one of long ago.
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

// The first and the last second that a time with four digits for the year can say.
const firstSecond, lastSecond = -62_135_596_800, 253_402_300_799

// date returns a time, in the years 1 to 9999. other returns what is not a number.
func (p *payload) date(name string, other func() (*jwt.NumericDate, error)) (*jwt.NumericDate, error) {
	n, ok := p.MapClaims[name].(float64)
	if !ok {
		return other()
	}
	seconds := min(max(n, firstSecond), lastSecond)
	return jwt.NewNumericDate(time.Unix(int64(seconds), 0)), nil
}
