// Command tls is a broker that clients reach over TLS with a certificate of their own, which says
// who they are.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/tlsfiles"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("tls", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:8883", "`address` to listen on")
	dir := fs.String("dir", "certificates",
		"`folder` with ca.crt, server.crt and server.key; made, with a client's, if it is not "+
			"there")
	every := fs.Duration("every", 2*time.Second, "how often to look for new files")
	fs.Parse(args)
	if _, err := os.Stat(*dir); errors.Is(err, os.ErrNotExist) {
		if err := makeCertificates(*dir); err != nil {
			return err
		}
	}
	in := func(name string) string { return filepath.Join(*dir, name) }
	files, err := tlsfiles.Open(tlsfiles.Options{Certificate: in("server.crt"),
		Key: in("server.key"), ClientCAs: in("ca.crt"), RequireClient: true})
	if err != nil {
		return err
	}
	rules, err := acl.Rules(acl.Rule{
		Effect: acl.EffectAllow, Filters: []string{"users/%u/#", "all/#"},
	})
	if err != nil {
		return err
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: auth.Certificate(auth.CommonName),
		Authorizer: acl.New(rules)})
	if err != nil {
		return err
	}
	defer b.Close()
	// Every message is printed.
	sub, err := b.Subscribe(ctx, "#", &dunlin.SubscribeOptions{Overflow: dunlin.OverflowDropNewest})
	if err != nil {
		return err
	}
	go func() { // ends with b
		for m := range sub.Messages() {
			fmt.Fprintf(out, "%s: %s\n", m.Topic, m.Payload)
		}
	}()
	l, err := tls.Listen("tcp", *addr, files.Config())
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "listening on", l.Addr())
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintln(out, "now type, as the client that the certificate names:")
	fmt.Fprintf(out, "  mosquitto_pub -h localhost -p %s --cafile %s --cert %s --key %s -V 5 -q "+
		"1 -t users/jane/state -m on\n", port, in("ca.crt"), in("jane.crt"), in("jane.key"))
	go files.Watch(ctx, *every, func(err error) { // ends with ctx
		fmt.Fprintln(out, "new files:", err)
	})
	defer context.AfterFunc(ctx, func() { b.Close() })()
	if err := b.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// makeCertificates makes an authority, and certificates of it for the server and for jane, to try
// this program with.
func makeCertificates(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "An authority to try things with"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caKey, err := issue(dir, "ca", ca, ca, nil)
	if err != nil {
		return err
	}
	for _, name := range []string{"server", "jane"} {
		c := &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if _, err := issue(dir, name, c, ca, caKey); err != nil {
			return err
		}
	}
	return nil
}

// issue writes a certificate and its key. Without a key of the authority it is the authority's own.
func issue(dir, name string, c, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey,
	error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if caKey == nil {
		caKey = key
	}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	for file, b := range map[string]*pem.Block{name + ".crt": {Type: "CERTIFICATE", Bytes: der},
		name + ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(b), 0o600); err != nil {
			return nil, err
		}
	}
	return key, nil
}
