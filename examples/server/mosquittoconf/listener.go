package mosquittoconf

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// startListener reads "listener PORT [HOST or path]".
func (p *parser) startListener(v value) (string, error) {
	number, rest, _ := strings.Cut(v.Rest, " ")
	rest = strings.TrimSpace(rest)
	if strings.HasPrefix(rest, "#") { // Mosquitto takes it for a comment here, and nowhere else
		rest = ""
	}
	port, err := strconv.Atoi(number)
	switch {
	case err != nil || port < 0 || port > 65535:
		return "", fmt.Errorf("expected a port from 1 to 65535, or 0 and the path of a unix "+
			"socket, got %q", number)
	case port == 0 && rest == "":
		return "", errors.New("port 0 is for unix sockets: expected a path behind it")
	}
	x := p.begin(v.Line)
	x.Port = port
	if port == 0 {
		x.Path = rest
		return "a listener at the unix socket " + rest, nil
	}
	x.Host = rest
	if rest == "" {
		rest = "all addresses"
	}
	return fmt.Sprintf("a listener at port %d of %s", port, rest), nil
}

func (p *parser) port(v value) (string, error) {
	p.defaultListener(v.Line).Port = v.n
	return fmt.Sprintf("as listener %d, for what is set before the first listener", v.n), nil
}

func (p *parser) bindAddress(v value) (string, error) {
	p.defaultListener(v.Line).Host = v.Rest
	return "the address of the listener that is there without a listener line", nil
}

func (p *parser) mountPoint(v value) (string, error) {
	if p.current == nil {
		return "", errors.New("it belongs to a listener, and there is no listener line before it")
	}
	if strings.ContainsAny(v.Rest, "+#") || v.Rest[0] == '$' {
		return "", fmt.Errorf("topics cannot begin with %q: expected no wildcard, and no $ at the "+
			"beginning", v.Rest)
	}
	p.current.MountPoint = v.Rest
	return p.whose(v.Line), nil
}

func keyForm(_ *parser, v value) (string, error) {
	if v.Rest == "engine" {
		return "", errors.New(noEngine)
	}
	return "as it is here", nil
}

func tlsVersion(x *Listener, v value) error {
	x.TLSVersion = [...]uint16{tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13}[v.n]
	return nil
}

// suites are the cipher suites of package crypto/tls by their names in OpenSSL. Those that package
// crypto/tls calls insecure are not among them.
var suites = map[string]uint16{
	"ECDHE-ECDSA-AES128-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES128-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
}

// ciphers reads a list of suites of OpenSSL. Those that are not here are left out, which allows no
// more than the list does.
func ciphers(x *Listener, v value) error {
	x.Ciphers = nil
	for name := range strings.SplitSeq(v.Rest, ":") {
		if id, ok := suites[name]; ok {
			x.Ciphers = append(x.Ciphers, id)
		}
	}
	if len(x.Ciphers) == 0 {
		return fmt.Errorf("none of %q is the name of a cipher suite that is strong and known "+
			"here: leave it "+
			"out, the defaults are strong, or name suites such as ECDHE-RSA-AES128-GCM-SHA256",
			v.Rest)
	}
	return nil
}

// listenText makes an option of a Listener whose value is taken as it is.
func listenText(of func(*Listener) *string) func(*parser, value) (string, error) {
	return listen(func(x *Listener, v value) error {
		*of(x) = v.Rest
		return nil
	})
}

// listenBool makes an option of a Listener that is true or false.
func listenBool(of func(*Listener) *bool) func(*parser, value) (string, error) {
	return listen(func(x *Listener, v value) error {
		*of(x) = v.on
		return nil
	})
}

func proxyProtocol(x *Listener, v value) error {
	x.ProxyProtocol = v.n
	return nil
}

func maxConnections(x *Listener, v value) error {
	x.MaxConnections = max(v.n, 0) // -1: no limit
	return nil
}

func maxQoS(x *Listener, v value) error {
	x.MaxQoS = &v.n
	return nil
}

func maxTopicAlias(x *Listener, v value) error {
	x.MaxTopicAlias = &v.n
	return nil
}

func protocol(x *Listener, v value) error {
	x.WebSockets = v.Rest == "websockets"
	return nil
}

func socketDomain(x *Listener, v value) error {
	x.Domain = strings.TrimPrefix(v.Rest, "ipv")
	return nil
}

func origin(x *Listener, v value) error {
	x.Origins = append(x.Origins, v.Rest)
	return nil
}
