package tlsfiles_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/auth/tlsfiles"
)

// selfSigned writes a certificate of that name and its key.
func selfSigned(name, certificate, key string) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		0o600); err != nil {
		return err
	}
	return os.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: der}), 0o600)
}

// The certificate is renewed while the server runs. The next client sees the new one.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "tlsfiles")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	certificate, key := filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	if err := selfSigned("old.example.org", certificate, key); err != nil {
		log.Fatal(err)
	}
	files, err := tlsfiles.Open(tlsfiles.Options{Certificate: certificate, Key: key})
	if err != nil {
		log.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", files.Config()) // for Broker.Serve
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	visit := func() {
		c, err := tls.Dial("tcp", l.Addr().String(),
			&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"mqtt"}})
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		fmt.Println(c.ConnectionState().PeerCertificates[0].Subject.CommonName)
	}
	visit()
	if err := selfSigned("new.example.org", certificate, key); err != nil {
		log.Fatal(err)
	}
	if err := files.Reload(); err != nil { // in a program: go files.Watch(ctx, 0, nil)
		log.Fatal(err)
	}
	visit()
	// Output:
	// old.example.org
	// new.example.org
}
