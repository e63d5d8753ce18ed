// Package tlsfiles makes a *tls.Config from files. The certificate, key, client CAs and certificate
// revocation list may be replaced while the server runs:
//
//	files, err := tlsfiles.Open(tlsfiles.Options{
//		Certificate: "server.crt", Key: "server.key",
//		ClientCAs: "clients.crt", RequireClient: true,
//	})
//	...
//	go files.Watch(ctx, 0, nil)
//	l, err := tls.Listen("tcp", ":8883", files.Config())
//
// Handshakes that begin after a change use the new files. Existing connections stay, whatever the
// new files say. A session that a client resumes (RFC 8446 section 2.2) is checked against the new
// files, like a new session.
package tlsfiles

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
)

// Options name the files. All are PEM; a revocation list may also be DER.
type Options struct {
	// Certificate holds the server's certificate, followed by the intermediate certificates up to
	// its root. Required.
	Certificate string
	// Key holds the private key of the Certificate, which must not be encrypted. Required.
	Key string
	// Chain holds further certificates. The server also sends those that lead from the last
	// certificate of Certificate to its root. So Certificate may hold only the server's own
	// certificate, as Mosquitto allows with its cafile. Empty: the server sends only Certificate.
	Chain string
	// ClientCAs holds the authorities whose client certificates are accepted. Empty: clients are
	// not asked for certificates.
	ClientCAs string
	// RequireClient refuses the handshake to clients without a certificate. Without RequireClient,
	// a client may have no certificate; if it has one, it is verified. RequireClient needs
	// ClientCAs.
	RequireClient bool
	// CRL holds certificate revocation lists of authorities in ClientCAs. A client certificate is
	// then accepted only if there is a list of the authority that issued it, the list is not past
	// its next update, and neither the certificate nor an intermediate one is on a list. Empty:
	// revocation is not checked. CRL needs ClientCAs.
	CRL string
	// Base holds all other settings, for instance the minimum version and the cipher suites. Its
	// certificates, ClientCAs, ClientAuth and GetConfigForClient are not used. Its VerifyConnection
	// is called in addition. If its NextProtos is empty, it becomes "mqtt". Nil: the defaults of
	// package tls.
	Base *tls.Config
}

// Files is a *tls.Config from files.
type Files struct {
	options Options
	set     *files.Set
	current atomic.Pointer[tls.Config]
}

// Open reads the files. An error says which file is invalid, and why.
func Open(o Options) (*Files, error) {
	switch {
	case o.Certificate == "" || o.Key == "":
		return nil, errors.New("tlsfiles: Options.Certificate and Options.Key are both needed")
	case o.ClientCAs == "" && (o.RequireClient || o.CRL != ""):
		return nil, errors.New(
			"tlsfiles: Options.RequireClient and Options.CRL need Options.ClientCAs")
	}
	f := &Files{options: o}
	names := []string{o.Certificate, o.Key}
	for _, name := range []string{o.ClientCAs, o.CRL, o.Chain} {
		if name != "" {
			names = append(names, name)
		}
	}
	var err error
	if f.set, err = files.New(f.load, names...); err != nil {
		return nil, err
	}
	return f, nil
}

// Config returns a *tls.Config that uses the current files at each handshake. It may be used for
// several listeners. It may be modified before its first use.
func (f *Files) Config() *tls.Config {
	return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return f.current.Load(), nil
	}}
}

// Reload reads the files again. If one is invalid, or they do not match each other, all stay as
// they were, and the error says why.
func (f *Files) Reload() error { return f.set.Reload() }

// Watch checks every interval (zero: 2 s) whether a file has changed. If so, it calls Reload and
// passes the result to report, unless report is nil. It returns when ctx ends. Watch reads the
// files once all of them have stayed the same for one interval. So it reads no half-written file,
// and no new certificate with the old key. It retries after an error, at growing intervals. It
// reports an error again if the error or a file has changed.
func (f *Files) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	f.set.Watch(ctx, interval, report)
}

func (f *Files) load() error {
	c, err := f.options.config()
	if err != nil {
		return fmt.Errorf("tlsfiles: %w", err)
	}
	f.current.Store(c)
	return nil
}

// config makes a Config of the current files.
func (o *Options) config() (*tls.Config, error) {
	c := new(tls.Config)
	if o.Base != nil {
		c = o.Base.Clone()
	}
	c.GetConfigForClient, c.GetCertificate = nil, nil
	c.ClientCAs, c.ClientAuth = nil, tls.NoClientCert
	if len(c.NextProtos) == 0 {
		c.NextProtos = []string{"mqtt"}
	}
	own, err := keyPair(o.Certificate, o.Key)
	if err != nil {
		return nil, err
	}
	if o.Chain != "" {
		if err := complete(&own, o.Chain); err != nil {
			return nil, err
		}
	}
	c.Certificates = []tls.Certificate{own}
	if o.ClientCAs == "" {
		return c, nil
	}
	cas, err := certificates(o.ClientCAs)
	if err != nil {
		return nil, err
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	for _, ca := range cas {
		c.ClientCAs.AddCert(ca)
	}
	if o.RequireClient {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	p := &peers{cas: c.ClientCAs, now: c.Time, next: c.VerifyConnection}
	if p.now == nil {
		p.now = time.Now
	}
	if o.CRL != "" {
		if p.lists, err = revocationLists(o.CRL, cas); err != nil {
			return nil, err
		}
	}
	c.VerifyConnection = p.verify
	return c, nil
}

func keyPair(certificate, key string) (tls.Certificate, error) {
	if _, err := certificates(certificate); err != nil {
		return tls.Certificate{}, err
	}
	c, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return c, fmt.Errorf("%s and %s: %w", certificate, key, err)
	}
	return c, nil
}

// complete adds to own the certificates of a file that lead towards its root. It leaves out the
// root: a client that trusts the root has it.
func complete(own *tls.Certificate, name string) error {
	others, err := certificates(name)
	if err != nil {
		return err
	}
	last, err := x509.ParseCertificate(own.Certificate[len(own.Certificate)-1])
	if err != nil {
		return err
	}
	for range others {
		i := slices.IndexFunc(others, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, last.RawIssuer) && last.CheckSignatureFrom(c) == nil
		})
		if i < 0 || bytes.Equal(others[i].RawSubject, others[i].RawIssuer) {
			break
		}
		last = others[i]
		own.Certificate = append(own.Certificate, last.Raw)
	}
	return nil
}

// certificates reads a PEM file that holds only certificates, at least one.
func certificates(name string) (cs []*x509.Certificate, err error) {
	err = eachBlock(name, func(b *pem.Block) error {
		if b.Type != "CERTIFICATE" {
			return nil // a key or parameters beside them, as OpenSSL leaves them
		}
		c, err := x509.ParseCertificate(b.Bytes)
		cs = append(cs, c)
		return err
	})
	if err == nil && len(cs) == 0 {
		err = fmt.Errorf("%s: no certificate in it", name)
	}
	return cs, err
}

// eachBlock calls f with each PEM block of a file. Text that looks like the beginning of a block,
// but is not one, is an error: the file may have been read while it was written.
func eachBlock(name string, f func(*pem.Block) error) error {
	rest, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	begins := bytes.Count(rest, []byte("-----BEGIN "))
	n := 0
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		n++
		if err := f(b); err != nil {
			return fmt.Errorf("%s: PEM block %d: %w", name, n, err)
		}
	}
	if n != begins {
		return fmt.Errorf("%s: %d of %d PEM blocks are incomplete", name, begins-n, begins)
	}
	return nil
}
