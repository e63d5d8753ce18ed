// Package testcert makes certificate authorities, certificates and revocation lists for tests.
package testcert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// serial is the last serial number given.
var serial atomic.Int64

// A Certificate is one with its key.
type Certificate struct {
	t      testing.TB
	Leaf   *x509.Certificate
	Key    *ecdsa.PrivateKey
	issuer *Certificate // nil: itself
}

// CA makes a certificate authority that has signed itself.
func CA(t testing.TB, name string) *Certificate {
	return issue(t, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
}

// CA makes another certificate authority below c.
func (c *Certificate) CA(name string) *Certificate {
	return issue(c.t, c, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
}

// Issue makes a certificate with that common name, for servers at 127.0.0.1, ::1 and localhost and
// for clients.
func (c *Certificate) Issue(name string) *Certificate {
	return issue(c.t, c, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	})
}

func issue(t testing.TB, by *Certificate, template *x509.Certificate) *Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(serial.Add(1))
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.Leaf, by.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Certificate{t, leaf, key, by}
}

// PEM returns the certificate, followed by those that lead to its root, without that one unless it
// is c.
func (c *Certificate) PEM() (b []byte) {
	for x := c; x == c || x != nil && x.issuer != nil; x = x.issuer {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.Leaf.Raw})...)
	}
	return b
}

// KeyPEM returns the key.
func (c *Certificate) KeyPEM() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(c.Key)
	if err != nil {
		c.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// TLS returns the certificate as package tls wants it.
func (c *Certificate) TLS() tls.Certificate {
	pair, err := tls.X509KeyPair(c.PEM(), c.KeyPEM())
	if err != nil {
		c.t.Fatal(err)
	}
	return pair
}

// Pool returns a pool of c alone.
func (c *Certificate) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.Leaf)
	return pool
}

// CRL returns a revocation list of the authority c, in PEM, which is to be updated at next.
func (c *Certificate) CRL(next time.Time, revoked ...*Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL",
		Bytes: c.CRLFrom(&x509.RevocationList{NextUpdate: next}, revoked...)})
}

// CRLFrom returns a revocation list of the authority c, in DER, after a template.
func (c *Certificate) CRLFrom(template *x509.RevocationList, revoked ...*Certificate) []byte {
	template.Number, template.ThisUpdate = big.NewInt(serial.Add(1)), time.Now().Add(-48*time.Hour)
	for _, r := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{
				SerialNumber: r.Leaf.SerialNumber, RevocationTime: time.Now().Add(-time.Minute),
			})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, c.Leaf, c.Key)
	if err != nil {
		c.t.Fatal(err)
	}
	return der
}

// Write puts a file in place in one step, as a careful administrator would.
func Write(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}
