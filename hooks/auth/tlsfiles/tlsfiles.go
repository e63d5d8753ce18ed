// Package tlsfiles gives a *tls.Config whose certificate, key, client CAs and certificate revocation list come from files that may be
// replaced while the server runs:
//
//	files, err := tlsfiles.Open(tlsfiles.Options{Certificate: "server.crt", Key: "server.key", ClientCAs: "clients.crt", RequireClient: true})
//	...
//	go files.Watch(ctx, 0, nil)
//	l, err := tls.Listen("tcp", ":8883", files.Config())
//
// Handshakes that begin after a change use the new files. Connections that exist live on, whatever the new files say; a session
// that a client resumes (RFC 8446 section 2.2) is held to the new files as a new one is.
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
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
)

// Options name the files, which are PEM; a revocation list may also be DER.
type Options struct {
	// Certificate holds the server's certificate, followed by the intermediate ones that lead to its root. Required.
	Certificate string
	// Key holds the private key of the Certificate, which must not be encrypted. Required.
	Key string
	// ClientCAs holds the authorities whose client certificates are accepted. Empty: clients are not asked for certificates.
	ClientCAs string
	// RequireClient refuses the handshake to clients without a certificate. Otherwise one is verified where the client has it.
	// It needs ClientCAs.
	RequireClient bool
	// CRL holds certificate revocation lists of authorities in ClientCAs. A client certificate is then refused unless there is a list
	// of the authority that issued it, not past its next update and without the certificate; and if it or an intermediate
	// certificate is on a list. Empty: nothing is looked up. It needs ClientCAs.
	CRL string
	// Base is where everything else is taken from, the least version and the cipher suites for instance. Its
	// certificates, ClientCAs, ClientAuth and GetConfigForClient are not used, its VerifyConnection is called in addition. Where it
	// names no NextProtos, that is "mqtt". Nil: the defaults of package tls.
	Base *tls.Config
}

// Files is a *tls.Config from files.
type Files struct {
	options Options
	set     *files.Set
	current atomic.Pointer[tls.Config]
}

// Open reads the files. An error says which of them is of no use, and why.
func Open(o Options) (*Files, error) {
	switch {
	case o.Certificate == "" || o.Key == "":
		return nil, errors.New("tlsfiles: Options.Certificate and Options.Key are both needed")
	case o.ClientCAs == "" && (o.RequireClient || o.CRL != ""):
		return nil, errors.New("tlsfiles: Options.RequireClient and Options.CRL need Options.ClientCAs")
	}
	f := &Files{options: o}
	names := []string{o.Certificate, o.Key}
	for _, name := range []string{o.ClientCAs, o.CRL} {
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

// Config returns a *tls.Config that uses the files as they are at each handshake. It may be used for several listeners, and
// be modified before.
func (f *Files) Config() *tls.Config {
	return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.current.Load(), nil }}
}

// Reload reads the files again. If one of them is of no use, or they do not go together, all stay as they were, and the error says why.
func (f *Files) Reload() error { return f.set.Reload() }

// Watch looks every interval (zero: 2 s) whether a file has changed, and if so calls Reload and
// then report, if it is not nil, with the result. It returns when ctx ends. Files are read once
// they have all stayed the same for one interval, so that neither half a file is read nor a new
// certificate with the old key. What fails is tried again, less and less often, and reported again
// when the error or a file is another one.
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

// config makes a Config of the files as they are now.
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

// certificates reads a PEM file of nothing but certificates, at least one.
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

// eachBlock calls f with each PEM block of a file. What looks like the beginning of a block and is none is an error: the file may have
// been read while it was written.
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
