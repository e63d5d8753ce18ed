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

// Certificate returns an Authenticator that accepts clients with a TLS certificate which the handshake has verified (the
// ClientAuth of the tls.Config must be tls.VerifyClientCertIfGiven or tls.RequireAndVerifyClientCert), and takes their Principal from
// it: by [CommonName], [DNSName], [EmailAddress], [URI] or [Fingerprint], or a function of your own. A certificate from which
// name makes nothing, or something with control characters, is refused with Not authorized (0x87). It abstains from clients
// without a verified certificate.
//
// A User Name and Password in the CONNECT are not looked at. To ask for both, use hooks.AllAuthenticators.
func Certificate(name func(*x509.Certificate) string) hooks.Authenticator {
	return hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		if r.Client.TLS == nil || len(r.Client.TLS.VerifiedChains) == 0 {
			return hooks.ErrAbstain
		}
		principal := name(r.Client.TLS.PeerCertificates[0])
		if principal == "" || !utf8.ValidString(principal) || strings.ContainsFunc(principal, unicode.IsControl) {
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

// EmailAddress returns the first e-mail address among the Subject Alternative Names, empty if there is none.
func EmailAddress(c *x509.Certificate) string { return first(c.EmailAddresses) }

// URI returns the first URI among the Subject Alternative Names, for instance a SPIFFE ID, empty if there is none.
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

// Pinned returns an Authenticator that accepts clients whose TLS certificate has one of the given fingerprints, whoever signed
// it (tls.RequireAnyClientCert is enough: the handshake proves that the client has the key), refuses those with another one with
// Not authorized (0x87), and abstains from those without. The Principal is what the fingerprint maps to, the fingerprint itself if
// that is empty. Fingerprints may be written with colons and in capital letters.
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
