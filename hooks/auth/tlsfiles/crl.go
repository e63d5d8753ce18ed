package tlsfiles

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"
)

// peers decides about client certificates, in addition to package tls.
type peers struct {
	cas   *x509.CertPool
	lists []*revocations // nil: no lists
	now   func() time.Time
	next  func(tls.ConnectionState) error
}

// revocations is one revocation list.
type revocations struct {
	issuer  []byte // its name
	keyID   []byte // of its key, empty if it has none
	next    time.Time
	serials map[string]bool
}

// verify is called at the end of each handshake. This includes a resumed session: package tls does
// not verify its certificates against the current files.
func (p *peers) verify(s tls.ConnectionState) error {
	chains := s.VerifiedChains
	if s.DidResume && len(s.PeerCertificates) > 0 {
		opts := x509.VerifyOptions{
			Roots: p.cas, CurrentTime: p.now(), Intermediates: x509.NewCertPool(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		for _, c := range s.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		var err error
		if chains, err = s.PeerCertificates[0].Verify(opts); err != nil {
			return fmt.Errorf("tlsfiles: the certificate of a resumed session: %w", err)
		}
	}
	if p.lists != nil {
		for _, chain := range chains {
			if err := p.revoked(chain); err != nil {
				return fmt.Errorf("tlsfiles: the client's certificate %q: %w", chain[0].Subject,
					err)
			}
		}
	}
	if p.next != nil {
		return p.next(s)
	}
	return nil
}

// revoked returns an error if a certificate of the chain is on a list. It also returns one unless
// an up-to-date list says that the first certificate is not revoked.
func (p *peers) revoked(chain []*x509.Certificate) error {
	if len(chain) == 1 {
		return nil // the client's certificate is in ClientCAs itself
	}
	now := p.now()
	for i, c := range chain[:len(chain)-1] {
		known, stale := false, false
		for _, l := range p.lists {
			if !l.of(chain[i+1]) {
				continue
			}
			if l.serials[string(c.SerialNumber.Bytes())] {
				return fmt.Errorf("serial number %x of %q is revoked", c.SerialNumber, c.Issuer)
			}
			if now.After(l.next) {
				stale = true
				continue
			}
			known = true
		}
		switch {
		case known || i > 0:
		case stale:
			return fmt.Errorf("the revocation list of %q is past its next update", c.Issuer)
		default:
			return fmt.Errorf("there is no revocation list of %q", c.Issuer)
		}
	}
	return nil
}

// of says whether l is a list of the authority.
func (l *revocations) of(ca *x509.Certificate) bool {
	return bytes.Equal(l.issuer, ca.RawSubject) &&
		(len(l.keyID) == 0 || len(ca.SubjectKeyId) == 0 || bytes.Equal(l.keyID, ca.SubjectKeyId))
}

// revocationLists reads a file of lists: several in PEM, or one in DER. Each must be signed by one
// of cas.
func revocationLists(name string, cas []*x509.Certificate) (ls []*revocations, err error) {
	add := func(der []byte) error {
		l, err := newRevocations(der, cas)
		ls = append(ls, l)
		return err
	}
	err = eachBlock(name, func(b *pem.Block) error {
		if b.Type != "X509 CRL" {
			return fmt.Errorf("%q is not a revocation list", b.Type)
		}
		return add(b.Bytes)
	})
	if err != nil || len(ls) > 0 {
		return ls, err
	}
	der, err := os.ReadFile(name)
	if err == nil {
		err = add(der)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return ls, nil
}

func newRevocations(der []byte, cas []*x509.Certificate) (*revocations, error) {
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("not a certificate revocation list: %w", err)
	}
	if err := understood(crl.Extensions); err != nil {
		return nil, err
	}
	if crl.NextUpdate.IsZero() {
		return nil, errors.New("the list does not say when it is updated next")
	}
	l := &revocations{issuer: crl.RawIssuer, keyID: crl.AuthorityKeyId, next: crl.NextUpdate,
		serials: map[string]bool{}}
	for _, e := range crl.RevokedCertificateEntries {
		if err := understood(e.Extensions); err != nil {
			return nil, err
		}
		l.serials[string(e.SerialNumber.Bytes())] = true
	}
	err = fmt.Errorf("its issuer %q is not among the client CAs", crl.Issuer)
	for _, ca := range cas {
		if !l.of(ca) {
			continue
		}
		if err = crl.CheckSignatureFrom(ca); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// understood returns an error if an extension changes the meaning of the list: the list must
// contain all revoked certificates of its issuer.
func understood(extensions []pkix.Extension) error {
	for _, e := range extensions {
		if e.Critical {
			return fmt.Errorf(
				"lists with the extension %v are not supported, only complete ones of one issuer",
				e.Id)
		}
	}
	return nil
}
