package tlsfiles_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/auth/tlsfiles"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/stretchr/testify/require"
)

// A site is the files of a server and who made them.
type site struct {
	t       *testing.T
	dir     string
	ca      *testcert.Certificate // of servers
	clients *testcert.Certificate // the authority of the clients
	server  *testcert.Certificate
	options tlsfiles.Options
}

func newSite(t *testing.T) *site {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	s := &site{t: t, dir: dir, ca: testcert.CA(t, "servers"), clients: testcert.CA(t, "clients"),
		options: tlsfiles.Options{
			Certificate: path("server.crt"), Key: path("server.key"),
			ClientCAs: path("clients.crt"),
			CRL:       path("clients.crl"), RequireClient: true,
		}}
	s.server = s.ca.Issue("first")
	s.writeServer(s.server)
	testcert.Write(t, s.options.ClientCAs, s.clients.PEM())
	testcert.Write(t, s.options.CRL, s.clients.CRL(tomorrow()))
	return s
}

func tomorrow() time.Time { return time.Now().Add(24 * time.Hour) }

func (s *site) writeServer(c *testcert.Certificate) {
	testcert.Write(s.t, s.options.Certificate, c.PEM())
	testcert.Write(s.t, s.options.Key, c.KeyPEM())
}

// client returns the configuration of a client.
func (s *site) client(own *testcert.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", NextProtos: []string{"mqtt"}}
	if own != nil {
		pair := own.TLS()
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &pair, nil
		}
	}
	return c
}

// serve echoes lines on a loopback address until the test ends.
func serve(t *testing.T, config *tls.Config) (address string) {
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	require.NoError(t, err)
	var conns sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	conns.Go(func() { // the cleanup waits for it
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			conns.Go(func() { // ends with the connection; the cleanup waits for it
				_, _ = io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		conns.Wait()
	})
	return l.Addr().String()
}

// A line is a connection to the echo.
type line struct {
	*tls.Conn
	in *bufio.Reader
}

// dial connects and has a first line echoed: in TLS 1.3 a client learns only then that its
// certificate was refused.
func dial(address string, config *tls.Config) (*line, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 30 * time.Second}, Config: config}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	l := &line{c.(*tls.Conn), bufio.NewReader(c)}
	if err := l.echo(); err != nil {
		c.Close()
		return nil, err
	}
	return l, nil
}

func (l *line) echo() error {
	_ = l.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(l, "hello\n"); err != nil {
		return err
	}
	got, err := l.in.ReadString('\n')
	if err == nil && got != "hello\n" {
		err = fmt.Errorf("%q came back", got)
	}
	return err
}

// TestReplacedUnderLoad replaces the certificate, the authority and the revocation list while
// connections are busy.
func TestReplacedUnderLoad(t *testing.T) {
	s := newSite(t)
	f, err := tlsfiles.Open(s.options)
	require.NoError(t, err)
	address := serve(t, f.Config())
	alice, bob := s.clients.Issue("alice"), s.clients.Issue("bob")

	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	failed := make(chan error, 16)
	for range 16 {
		l, err := dial(address, s.client(alice))
		require.NoError(t, err)
		busy.Go(func() { // waited for below
			defer l.Close()
			for {
				if err := l.echo(); err != nil {
					failed <- err
					return
				}
				if ctx.Err() != nil {
					return
				}
			}
		})
	}
	serves := func(config *tls.Config, want string) {
		t.Helper()
		l, err := dial(address, config)
		require.NoError(t, err)
		require.Equal(t, want, l.ConnectionState().PeerCertificates[0].Subject.CommonName)
		require.Equal(t, "mqtt", l.ConnectionState().NegotiatedProtocol)
		l.Close()
	}
	refuses := func(config *tls.Config) {
		t.Helper()
		_, err := dial(address, config)
		require.Error(t, err)
	}

	serves(s.client(bob), "first")
	refuses(s.client(nil))

	s.writeServer(s.ca.Issue("second"))
	require.NoError(t, f.Reload())
	serves(s.client(bob), "second")

	testcert.Write(t, s.options.CRL, s.clients.CRL(tomorrow(), alice))
	require.NoError(t, f.Reload())
	refuses(s.client(alice))
	serves(s.client(bob), "second")

	others := testcert.CA(t, "others")
	refuses(s.client(others.Issue("carol")))
	testcert.Write(t, s.options.ClientCAs, others.PEM())
	testcert.Write(t, s.options.CRL, others.CRL(tomorrow()))
	require.NoError(t, f.Reload())
	refuses(s.client(bob))
	serves(s.client(others.Issue("carol")), "second")

	stop()
	busy.Wait()
	close(failed)
	for err := range failed {
		t.Error("a connection from before ended:", err)
	}
}

// TestResumedSessions: what was refused since is refused to a client that resumes its session, too.
func TestResumedSessions(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			s := newSite(t)
			f, err := tlsfiles.Open(s.options)
			require.NoError(t, err)
			address := serve(t, f.Config())
			resuming := func(name string) (*tls.Config, *testcert.Certificate) {
				own := s.clients.Issue(name)
				config := s.client(own)
				config.MaxVersion, config.ClientSessionCache = version,
					tls.NewLRUClientSessionCache(1)
				l, err := dial(address, config)
				require.NoError(t, err)
				l.Close()
				return config, own
			}
			alice, certificate := resuming("alice")
			bob, _ := resuming("bob")
			l, err := dial(address, bob)
			require.NoError(t, err)
			require.True(t, l.ConnectionState().DidResume, "otherwise this test shows nothing")
			l.Close()

			testcert.Write(t, s.options.CRL, s.clients.CRL(tomorrow(), certificate))
			require.NoError(t, f.Reload())
			_, err = dial(address, alice)
			require.Error(t, err, "a certificate that was revoked since")
			l, err = dial(address, bob)
			require.NoError(t, err)
			l.Close()

			others := testcert.CA(t, "others")
			testcert.Write(t, s.options.ClientCAs, others.PEM())
			testcert.Write(t, s.options.CRL, others.CRL(tomorrow()))
			require.NoError(t, f.Reload())
			_, err = dial(address, bob)
			require.Error(t, err, "an authority that is not accepted any more")
		})
	}
}

func TestRevocation(t *testing.T) {
	s := newSite(t)
	alice, bob := s.clients.Issue("alice"), s.clients.Issue("bob")
	below := s.clients.CA("below")
	carol := below.Issue("carol")
	other := testcert.CA(t, "other")
	join := func(of ...[]byte) []byte { return bytes.Join(of, nil) }
	for _, tt := range []struct {
		name   string
		cas    []byte
		crl    []byte
		client *testcert.Certificate
		refuse bool
	}{
		{"on no list", s.clients.PEM(), s.clients.CRL(tomorrow(), bob), alice, false},
		{"on the list", s.clients.PEM(), s.clients.CRL(tomorrow(), alice), alice, true},
		{"on one of two lists", s.clients.PEM(), join(s.clients.CRL(tomorrow()),
			s.clients.CRL(tomorrow(), alice)), alice, true},
		{"on a list past its next update", s.clients.PEM(),
			s.clients.CRL(time.Now().Add(-time.Hour), alice), alice, true},
		{"the list is past its next update", s.clients.PEM(),
			s.clients.CRL(time.Now().Add(-time.Hour)), alice, true},
		{"the list is of another authority", join(s.clients.PEM(), other.PEM()),
			other.CRL(tomorrow()), alice, true},
		{"a list in DER", s.clients.PEM(),
			s.clients.CRLFrom(&x509.RevocationList{NextUpdate: tomorrow()}, alice), alice, true},
		{"no certificate at all", s.clients.PEM(), s.clients.CRL(tomorrow()), nil, false},
		{"an intermediate authority without a list", s.clients.PEM(), s.clients.CRL(tomorrow()),
			carol, true},
		{"the intermediate authority is revoked", join(s.clients.PEM(), below.PEM()),
			join(below.CRL(tomorrow()), s.clients.CRL(tomorrow(), below)), carol, true},
		{"the intermediate authority has a list", join(s.clients.PEM(), below.PEM()),
			join(below.CRL(tomorrow()), s.clients.CRL(tomorrow())), carol, false},
		{"the list of the intermediate authority has it", join(s.clients.PEM(), below.PEM()),
			join(below.CRL(tomorrow(), carol), s.clients.CRL(tomorrow())), carol, true},
		{"a certificate that is an authority's own", alice.PEM(), nil, alice, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := s.options
			o.RequireClient = false
			testcert.Write(t, o.ClientCAs, tt.cas)
			if tt.crl == nil {
				tt.crl = other.CRL(tomorrow())
				testcert.Write(t, o.ClientCAs, join(tt.cas, other.PEM()))
			}
			testcert.Write(t, o.CRL, tt.crl)
			f, err := tlsfiles.Open(o)
			require.NoError(t, err)
			l, err := dial(serve(t, f.Config()), s.client(tt.client))
			if tt.refuse {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			l.Close()
		})
	}
}

func TestFilesThatAreOfNoUse(t *testing.T) {
	s := newSite(t)
	f, err := tlsfiles.Open(s.options)
	require.NoError(t, err)
	address := serve(t, f.Config())
	client := s.client(s.clients.Issue("alice"))
	other := testcert.CA(t, "other")
	half := func(b []byte) []byte { return b[:len(b)/2] }
	delta := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true,
		Value: []byte{2, 1, 1}}
	o := &s.options

	for _, tt := range []struct {
		name    string
		file    string
		content []byte // nil: the file is removed
		say     string
	}{
		{"half a certificate", o.Certificate, half(s.server.PEM()), "incomplete"},
		{"no certificate", o.Certificate, []byte("hello\n"), "no certificate"},
		{"a certificate that is none", o.Certificate,
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), "PEM block 1"},
		{"a certificate and half of the next", o.Certificate,
			append(s.server.PEM(), half(s.ca.PEM())...), "1 of 2 PEM blocks"},
		{"another certificate's key", o.Key, other.KeyPEM(), "does not match"},
		{"half a key", o.Key, half(s.server.KeyPEM()), "server.key"},
		{"no key file", o.Key, nil, "no such file"},
		{"half an authority", o.ClientCAs, half(s.clients.PEM()), "incomplete"},
		{"an empty file of authorities", o.ClientCAs, []byte{}, "no certificate"},
		{"an empty list", o.CRL, []byte{}, "not a certificate revocation list"},
		{"half a list", o.CRL, half(s.clients.CRL(tomorrow())), "incomplete"},
		{"a certificate as list", o.CRL, s.clients.PEM(), "not a revocation list"},
		{"the list of somebody else", o.CRL, other.CRL(tomorrow()), "not among the client CAs"},
		{"a list signed by somebody else", o.CRL,
			pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: forged(t)}), ""},
		{
			"a list of changes only", o.CRL,
			s.clients.CRLFrom(&x509.RevocationList{NextUpdate: tomorrow(),
				ExtraExtensions: []pkix.Extension{delta}}), "2.5.29.27",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, err := os.ReadFile(tt.file)
			require.NoError(t, err)
			defer testcert.Write(t, tt.file, before)
			if tt.content == nil {
				require.NoError(t, os.Remove(tt.file))
			} else {
				testcert.Write(t, tt.file, tt.content)
			}
			err = f.Reload()
			require.ErrorContains(t, err, tt.say)
			require.ErrorContains(t, err, "tlsfiles: ")
			_, err = tlsfiles.Open(s.options)
			require.Error(t, err, "nor does it start with such a file")
			l, err := dial(address, client)
			require.NoError(t, err, "the files from before are in force")
			l.Close()
		})
	}
}

// forged returns a list under the name of the clients' authority with another key.
func forged(t *testing.T) []byte {
	return testcert.CA(t, "clients").CRLFrom(&x509.RevocationList{NextUpdate: tomorrow()})
}

func TestOptions(t *testing.T) {
	s := newSite(t)
	for _, o := range []tlsfiles.Options{
		{},
		{Certificate: s.options.Certificate},
		{Key: s.options.Key},
		{Certificate: s.options.Certificate, Key: s.options.Key, RequireClient: true},
		{Certificate: s.options.Certificate, Key: s.options.Key, CRL: s.options.CRL},
	} {
		_, err := tlsfiles.Open(o)
		require.ErrorContains(t, err, "Options.", "%+v", o)
	}

	t.Run("without client CAs nobody is asked for a certificate", func(t *testing.T) {
		f, err := tlsfiles.Open(tlsfiles.Options{Certificate: s.options.Certificate,
			Key: s.options.Key})
		require.NoError(t, err)
		config := s.client(nil)
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return nil, errors.New("asked for a certificate")
		}
		l, err := dial(serve(t, f.Config()), config)
		require.NoError(t, err)
		l.Close()
	})
	t.Run("a certificate alone is sent with the authorities between it and the root",
		func(t *testing.T) {
			lower := s.ca.CA("middle").CA("lower")
			leaf := lower.Issue("server")
			dir := t.TempDir()
			o := tlsfiles.Options{Certificate: filepath.Join(dir, "crt"), Key: filepath.Join(dir,
				"key")}
			testcert.Write(t, o.Certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
				Bytes: leaf.Leaf.Raw}))
			testcert.Write(t, o.Key, leaf.KeyPEM())
			f, err := tlsfiles.Open(o)
			require.NoError(t, err)
			_, err = dial(serve(t, f.Config()), s.client(nil))
			require.ErrorContains(t, err, "unknown authority",
				"without Chain the client cannot know "+
					"it")
			o.Chain = filepath.Join(dir, "chain")
			testcert.Write(t, o.Chain, append(append(s.ca.PEM(), s.clients.PEM()...),
				lower.PEM()...))
			f, err = tlsfiles.Open(o)
			require.NoError(t, err)
			l, err := dial(serve(t, f.Config()), s.client(nil))
			require.NoError(t, err)
			require.Len(t, l.ConnectionState().PeerCertificates, 3, "the root is not sent")
			l.Close()
		})
	t.Run("a client that speaks another protocol over TLS is refused", func(t *testing.T) {
		f, err := tlsfiles.Open(s.options)
		require.NoError(t, err)
		config := s.client(s.clients.Issue("alice"))
		config.NextProtos = []string{"h2"}
		_, err = dial(serve(t, f.Config()), config)
		require.Error(t, err)
	})
	t.Run("the rest comes from Base", func(t *testing.T) {
		o := s.options
		var called atomic.Bool
		refuse := errors.New("not today")
		o.Base = &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"other"},
			ClientAuth: tls.NoClientCert, VerifyConnection: func(tls.ConnectionState) error {
				called.Store(true)
				return refuse
			}}
		f, err := tlsfiles.Open(o)
		require.NoError(t, err)
		address := serve(t, f.Config())
		config := s.client(s.clients.Issue("alice"))
		config.NextProtos = []string{"other"}
		config.MaxVersion = tls.VersionTLS12
		_, err = dial(address, config)
		require.ErrorContains(t, err, "version")
		config.MaxVersion = 0
		_, err = dial(address, config)
		require.Error(t, err)
		require.True(t, called.Load())
	})
}

// TestWatch replaces a file while Watch looks.
func TestWatch(t *testing.T) {
	s := newSite(t)
	f, err := tlsfiles.Open(s.options)
	require.NoError(t, err)
	address := serve(t, f.Config())
	ctx, stop := context.WithCancel(t.Context())
	reports := make(chan error, 4)
	var watch sync.WaitGroup
	watch.Go(func() {
		f.Watch(ctx, 5*time.Millisecond, func(err error) { reports <- err })
	}) // waited for below
	defer watch.Wait()
	defer stop()

	testcert.Write(t, s.options.Certificate, []byte("nonsense, and of another size"))
	require.Error(t, <-reports)
	second := s.ca.Issue("second")
	testcert.Write(t, s.options.Key, second.KeyPEM())
	testcert.Write(t, s.options.Certificate, second.PEM())
	for <-reports != nil { // it may have looked between the two
	}
	l, err := dial(address, s.client(s.clients.Issue("alice")))
	require.NoError(t, err)
	require.Equal(t, "second", l.ConnectionState().PeerCertificates[0].Subject.CommonName)
	l.Close()
}
