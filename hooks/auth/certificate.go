package auth

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

var (
	errNameless = packets.Errorf(packets.NotAuthorized, "the certificate has no usable name")
	errUnpinned = packets.Errorf(packets.NotAuthorized, "the certificate is not a known one")
)

// Certificate returns an Authenticator that accepts clients with a TLS certificate that the
// handshake has verified. The ClientAuth of the tls.Config must be tls.VerifyClientCertIfGiven or
// tls.RequireAndVerifyClientCert. The function name makes the Principal from the certificate: use
// [CommonName], [DNSName], [EmailAddress], [URI] or [Fingerprint], or your own. If the result is
// empty or has control characters, the client is refused with Not authorized (0x87). Certificate
// abstains from clients without a verified certificate.
//
// It ignores the User Name and Password of the CONNECT. To require both, use
// hooks.AllAuthenticators.
func Certificate(name func(*x509.Certificate) string) hooks.Authenticator {
	return hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		if r.Client.TLS == nil || len(r.Client.TLS.VerifiedChains) == 0 {
			return hooks.ErrAbstain
		}
		principal := name(r.Client.TLS.PeerCertificates[0])
		if principal == "" || !utf8.ValidString(principal) ||
			strings.ContainsFunc(principal, unicode.IsControl) {
			return errNameless
		}
		r.Grant.Identity.Principal = principal
		return nil
	})
}

// CommonName returns the Common Name of the certificate's subject, empty if it has none.
func CommonName(c *x509.Certificate) string { return c.Subject.CommonName }

// DNSName returns the first DNS name among the Subject Alternative Names, empty if there is none.
func DNSName(c *x509.Certificate) string { return first(c.DNSNames) }

// EmailAddress returns the first e-mail address among the Subject Alternative Names, empty if there
// is none.
func EmailAddress(c *x509.Certificate) string { return first(c.EmailAddresses) }

// URI returns the first URI among the Subject Alternative Names, for instance a SPIFFE ID, empty if
// there is none.
func URI(c *x509.Certificate) string {
	if len(c.URIs) == 0 {
		return ""
	}
	return c.URIs[0].String()
}

func first(of []string) string {
	if len(of) == 0 {
		return ""
	}
	return of[0]
}

// Fingerprint returns the SHA-256 of the certificate in lower case hexadecimal digits.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// Pinned returns an Authenticator that accepts clients whose TLS certificate has one of the given
// fingerprints, whatever authority signed it. tls.RequireAnyClientCert is enough: the handshake
// proves that the client has the key. It refuses other certificates with Not authorized (0x87), and
// abstains from clients without a certificate. The fingerprint maps to the Principal; if the
// Principal is empty, it is the fingerprint. Fingerprints may be written with colons and in
// capitals.
func Pinned(principals map[string]string) hooks.Authenticator {
	pinned := map[string]string{}
	for fingerprint, principal := range principals {
		fingerprint = strings.ToLower(strings.ReplaceAll(fingerprint, ":", ""))
		if principal == "" {
			principal = fingerprint
		}
		pinned[fingerprint] = principal
	}
	return hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		if r.Client.TLS == nil || len(r.Client.TLS.PeerCertificates) == 0 {
			return hooks.ErrAbstain
		}
		principal, ok := pinned[Fingerprint(r.Client.TLS.PeerCertificates[0])]
		if !ok {
			return errUnpinned
		}
		r.Grant.Identity.Principal = principal
		return nil
	})
}
