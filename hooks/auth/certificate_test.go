package auth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

func certificate(t *testing.T, template *x509.Certificate) *x509.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template.SerialNumber = big.NewInt(1)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return c
}

// over returns the request of a client with a certificate.
func over(c *x509.Certificate, verified bool) *hooks.ConnectRequest {
	r := connect("admin", "-")
	r.Client.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
	if verified {
		r.Client.TLS.VerifiedChains = [][]*x509.Certificate{{c}}
	}
	return r
}

func TestCertificate(t *testing.T) {
	uri, err := url.Parse("spiffe://example.org/sensor/7")
	require.NoError(t, err)
	full := certificate(t, &x509.Certificate{
		Subject:        pkix.Name{CommonName: "sensor 7"},
		DNSNames:       []string{"s7.example.org", "other.example.org"},
		EmailAddresses: []string{"s7@example.org"}, URIs: []*url.URL{uri},
	})
	bare := certificate(t, &x509.Certificate{})
	odd := certificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "admin\x00sensor"}})

	for _, tt := range []struct {
		name string
		by   func(*x509.Certificate) string
		want string
	}{
		{"Common Name", auth.CommonName, "sensor 7"},
		{"DNS name", auth.DNSName, "s7.example.org"},
		{"e-mail address", auth.EmailAddress, "s7@example.org"},
		{"URI", auth.URI, "spiffe://example.org/sensor/7"},
		{"fingerprint", auth.Fingerprint, auth.Fingerprint(full)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := auth.Certificate(tt.by)
			r := over(full, true)
			require.NoError(t, a.Authenticate(t.Context(), r))
			require.Equal(t, tt.want, r.Grant.Identity.Principal,
				"not the User Name in the CONNECT")

			require.ErrorIs(t, a.Authenticate(t.Context(), over(full, false)), hooks.ErrAbstain,
				"a certificate that nobody verified says nothing")
			require.ErrorIs(t, a.Authenticate(t.Context(), connect("u", "p")), hooks.ErrAbstain,
				"no TLS")
			if tt.name != "fingerprint" {
				err := a.Authenticate(t.Context(), over(bare, true))
				require.Equal(t, packets.NotAuthorized, packets.CodeOf(err),
					"a certificate without this name")
			}
		})
	}
	err = auth.Certificate(auth.CommonName).Authenticate(t.Context(), over(odd, true))
	require.Equal(t, packets.NotAuthorized, packets.CodeOf(err), "a name with a control character")
}

func TestPinned(t *testing.T) {
	one, two := certificate(t, &x509.Certificate{}), certificate(t, &x509.Certificate{})
	three := certificate(t, &x509.Certificate{})
	var colons []string
	for f := strings.ToUpper(auth.Fingerprint(two)); f != ""; f = f[2:] {
		colons = append(colons, f[:2])
	}
	require.Len(t, colons, 32)
	a := auth.Pinned(map[string]string{auth.Fingerprint(one): "sensor 1",
		strings.Join(colons, ":"): ""})

	r := over(one, false)
	require.NoError(t, a.Authenticate(t.Context(), r))
	require.Equal(t, "sensor 1", r.Grant.Identity.Principal)
	r = over(two, true)
	require.NoError(t, a.Authenticate(t.Context(), r))
	require.Equal(t, auth.Fingerprint(two), r.Grant.Identity.Principal)
	require.Equal(t, packets.NotAuthorized, packets.CodeOf(a.Authenticate(t.Context(),
		over(three, true))), "a certificate that is not pinned, whoever signed it")
	require.ErrorIs(t, a.Authenticate(t.Context(), connect("u", "p")), hooks.ErrAbstain)
}
