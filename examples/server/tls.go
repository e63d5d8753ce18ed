package main

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"

	"github.com/dunlin-mqtt/dunlin/hooks/auth/tlsfiles"
)

// This file is TLS: -tls-cert and so on, and the names that certificates give to clients.

// tlsFlags are the flags.
type tlsFlags struct {
	files    tlsfiles.Options
	identity bool
	alpn     list // names of the protocol besides mqtt
}

func (tf *tlsFlags) flags(fs *flag.FlagSet) {
	fs.StringVar(&tf.files.Certificate, "tls-cert", "", "PEM `file` with the server's certificate "+
		"and its intermediate ones")
	fs.StringVar(&tf.files.Key, "tls-key", "", "PEM `file` with the server's private key")
	fs.StringVar(&tf.files.Chain, "tls-chain", "", "PEM `file` with authorities; those between "+
		"the server's certificate and its root are sent to clients")
	fs.StringVar(&tf.files.ClientCAs, "tls-client-ca", "", "PEM `file` with the authorities of "+
		"client certificates; clients are then asked for one")
	fs.BoolVar(&tf.files.RequireClient, "tls-require-cert", false,
		"refuse clients without a certificate")
	fs.StringVar(&tf.files.CRL, "tls-crl", "", "`file` with the certificate revocation lists of "+
		"the authorities in -tls-client-ca")
	fs.Var(&tf.alpn, "tls-alpn", "`name` of the application protocol (ALPN) that clients of MQTT "+
		"over TLS may ask for besides mqtt, repeatable, such as x-amzn-mqtt-ca for the SDKs of AWS")
	fs.BoolVar(&tf.identity, "tls-identity-as-username", false,
		"on TLS the Common Name of the client's certificate is its user name, and no password is "+
			"asked for")
}

// checkALPN says what is wrong with the names, if they are for no listener or cannot be sent.
func (tf *tlsFlags) checkALPN(all []*listening) error {
	for _, name := range tf.alpn {
		if name == "" || len(name) > 255 {
			return fmt.Errorf("-tls-alpn %q has %d bytes, expected 1 to 255", name, len(name))
		}
	}
	overTLS := func(x *listening) bool {
		return x.files.Certificate != "" && x.protocol != "websockets"
	}
	if len(tf.alpn) > 0 && !slices.ContainsFunc(all, overTLS) {
		return errors.New("-tls-alpn needs a listener of MQTT over TLS: -tls-listen, or certfile " +
			"in the config file")
	}
	return nil
}

// A tlsKey is what listeners with the same *tls.Config have in common.
type tlsKey struct {
	files tlsfiles.Options
	web   bool
}

// keyOf is what x has in common with others.
func keyOf(x *listening) tlsKey { return tlsKey{x.files, x.protocol == "websockets"} }

// openFiles opens the files of a listener: those of TLS, which listeners with the same names share.
func (tr *transport) openFiles(x *listening, all reloads) error {
	if x.httpDir != "" {
		if info, err := os.Stat(x.httpDir); err != nil {
			return fmt.Errorf("http_dir: %w", err)
		} else if !info.IsDir() {
			return fmt.Errorf("http_dir: %s is not a folder", x.httpDir)
		}
	}
	key := keyOf(x)
	if x.files == (tlsfiles.Options{}) || tr.configs[key] != nil {
		return nil
	}
	options, base := x.files, new(tls.Config)
	if options.Base != nil {
		base = options.Base.Clone()
	}
	base.NextProtos = append([]string{"mqtt"}, tr.alpn...)
	if key.web {
		base.NextProtos = []string{"http/1.1"} // what browsers want to hear
	}
	options.Base = base
	files, err := tlsfiles.Open(options)
	if err != nil {
		return err
	}
	all.add("TLS files", x.addr, files)
	if tr.configs == nil {
		tr.configs = map[tlsKey]*tls.Config{}
	}
	tr.configs[key] = files.Config()
	return nil
}

var commonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// firstCommonName is the name that use_identity_as_username takes: the first Common Name, where
// there are several.
func firstCommonName(c *x509.Certificate) string {
	for _, x := range c.Subject.Names {
		if x.Type.Equal(commonName) {
			name, _ := x.Value.(string)
			return name
		}
	}
	return ""
}

// wholeSubject is the name that use_subject_as_username takes: the subject as in RFC 2253.
func wholeSubject(c *x509.Certificate) string {
	var names pkix.RDNSequence
	if rest, err := asn1.Unmarshal(c.RawSubject, &names); err != nil || len(rest) > 0 {
		return ""
	}
	return names.String()
}
