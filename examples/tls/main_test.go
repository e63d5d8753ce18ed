package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certificates")
	p := try.Start(t, run, "-listen", "127.0.0.1:0", "-dir", dir, "-every", "10ms")
	addr := p.Line("listening on ")
	jane, err := tls.LoadX509KeyPair(filepath.Join(dir, "jane.crt"), filepath.Join(dir, "jane.key"))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(roots *x509.CertPool, own ...tls.Certificate) (*tls.Conn, error) {
		return tls.Dial("tcp", addr,
			&tls.Config{RootCAs: roots, Certificates: own, NextProtos: []string{"mqtt"}})
	}
	pool := x509.NewCertPool()
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil || !pool.AppendCertsFromPEM(authority) {
		t.Fatal("no ca.crt", err)
	}

	nc, err := dial(pool, jane)
	if err != nil {
		t.Fatal(err)
	}
	c, ack := try.Over(t, nc, &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c",
		HasUsername: true, Username: "admin"})
	if ack.Code.Failed() {
		t.Fatalf("jane was refused: %v", ack.Code)
	}
	if code := c.Publish("users/jane/state", "on"); code.Failed() {
		t.Errorf("jane's own topic: %v", code)
	}
	if code := c.Publish("users/admin/state", "on"); code != packets.NotAuthorized {
		t.Errorf("the topic of whom she says to be was answered with %v", code)
	}
	for _, own := range [][]tls.Certificate{nil, {testcert.CA(t, "somebody").Issue("jane").TLS()}} {
		nc, err := dial(pool, own...)
		if err == nil { // in TLS 1.3 the client learns with its first read that it was refused
			_, err = nc.Read(make([]byte, 1))
			nc.Close()
		}
		if err == nil {
			t.Error("a client without a certificate of the authority was let in")
		}
	}

	// New files, another authority's, while jane is connected.
	other := testcert.CA(t, "other")
	server := other.Issue("server")
	testcert.Write(t, filepath.Join(dir, "ca.crt"), other.PEM())
	testcert.Write(t, filepath.Join(dir, "server.key"), server.KeyPEM())
	testcert.Write(t, filepath.Join(dir, "server.crt"), server.PEM())
	for err = errors.New("nothing is new"); err != nil; { // it may have looked between two of them
		p.Line("new files: ") // ends the test if there is none for a while
		nc, err = dial(other.Pool(), other.Issue("joe").TLS())
	}
	joe, ack := try.Over(t, nc, &packets.Connect{Version: packets.V5, CleanStart: true,
		ClientID: "d"})
	if code := joe.Publish("users/joe/state", "on"); ack.Code.Failed() || code.Failed() {
		t.Errorf("joe was answered with %v and %v", ack.Code, code)
	}
	if code := c.Publish("users/jane/state", "off"); code.Failed() {
		t.Errorf("jane's connection from before: %v", code)
	}
}
