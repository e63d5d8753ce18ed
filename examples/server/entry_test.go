package main

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// connectSCRAM is connect of a client that proves with SCRAM-SHA-256 that it knows its password.
func connectSCRAM(t *testing.T, conn net.Conn, l login) packets.ReasonCode {
	t.Helper()
	c := &client{t: t, conn: conn, in: packets.NewReader(conn, packets.Limits{})}
	c.in.SetVersion(packets.V5)
	bare := "n=" + l.name + ",r=nonce"
	says := func(message string) packets.Properties {
		return packets.Properties(nil).AppendText(packets.AuthenticationMethod, auth.SCRAMSHA256).
			AppendBytes(packets.AuthenticationData, []byte(message))
	}
	c.send(&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: l.id,
		Properties: says("n,," + bare)})
	answer, err := c.in.ReadPacket()
	require.NoError(t, err)
	if refused, is := answer.(*packets.Connack); is {
		return refused.Code
	}
	challenge, _ := answer.(*packets.Auth).Properties.Bytes(packets.AuthenticationData)
	c.send(&packets.Auth{Code: packets.ContinueAuthentication,
		Properties: says(scramProof(t, bare, string(challenge), l.password))})
	return c.want(packets.TypeConnack).(*packets.Connack).Code
}

// scramProof is the client's last message (RFC 5802 section 3).
func scramProof(t *testing.T, bare, challenge, password string) string {
	t.Helper()
	fields := strings.SplitN(challenge, ",", 3) // r=nonce, s=salt, i=iterations
	salt, err := base64.StdEncoding.DecodeString(fields[1][2:])
	require.NoError(t, err)
	n, err := strconv.Atoi(fields[2][2:])
	require.NoError(t, err)
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	salted, err := pbkdf2.Key(sha256.New, password, salt, n, sha256.Size)
	require.NoError(t, err)
	proof := mac(salted, "Client Key")
	stored := sha256.Sum256(proof)
	final := "c=biws," + fields[0]
	for i, b := range mac(stored[:], bare+","+challenge+","+final) {
		proof[i] ^= b
	}
	return final + ",p=" + base64.StdEncoding.EncodeToString(proof)
}

// Where the certificate of a client is its name, a password that it also knows gives it no other.
func TestSCRAMDoesNotGoRoundCertificates(t *testing.T) {
	s := newSite(t)
	passwords := write(t, "passwords", "jane:"+auth.HashSCRAM("pencil", 4096))
	jane, jack := login{"j", "jane", "pencil"}, s.client(s.clients.Issue("jack"))
	identity := []string{"-tls-identity-as-username", "-password-file", passwords}
	byFlags := func(flags ...string) func(t *testing.T) string {
		return func(t *testing.T) string {
			addrs, _ := start(t, append(identity, flags...)...)
			return addrs[0]
		}
	}
	byFile := func(name string) func(t *testing.T) string {
		return func(t *testing.T) string {
			at, _, _ := startWith(t, "password_file "+passwords, "listener @", "certfile "+s.cert,
				"keyfile "+s.key, "cafile "+s.clientCA, "require_certificate true", name+" true")
			return at[0]
		}
	}
	for _, tt := range []struct {
		name  string
		start func(t *testing.T) (addr string)
		quic  bool
	}{
		{"the only listener", byFlags(s.flags()...), false},
		{"a certificate is needed", byFlags(s.flags("-tls-require-cert")...), false},
		{"QUIC", byFlags(append(s.flags()[2:], "-quic", "127.0.0.1:0")...), true},
		{"use_identity_as_username", byFile("use_identity_as_username"), false},
		{"use_subject_as_username", byFile("use_subject_as_username"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := tt.start(t)
			reach := func() net.Conn {
				if tt.quic {
					return overQUIC(t, addr, jack)
				}
				return dialTLS(t, addr, jack)
			}
			require.Equal(t, packets.BadAuthenticationMethod, connectSCRAM(t, reach(), jane))
			login{"j", "-", "-"}.at(t, reach()).ping() // as jack
		})
	}
}

// The flag holds for the listeners of a mosquitto.conf that have no settings of their own, with a
// password file as well as without one.
func TestIdentityAsUsernameHoldsForTheListenersOfTheFile(t *testing.T) {
	s := newSite(t)
	rules := write(t, "rules", "user jane", "topic readwrite of/jane", "user jack",
		"topic readwrite of/jack")
	passwords := write(t, "passwords", "jane:"+auth.HashSCRAM("pencil", 4096))
	for _, access := range []string{"allow_anonymous true", "password_file " + passwords} {
		t.Run(access[:strings.Index(access, " ")], func(t *testing.T) {
			secure := []string{"certfile " + s.cert, "keyfile " + s.key, "cafile " + s.clientCA,
				"require_certificate true"}
			file := write(t, "mosquitto.conf", slices.Concat([]string{access, "acl_file " + rules,
				"listener 0 " + filepath.Join(t.TempDir(), "s")}, secure)...)
			addrs, printed := start(t, s.flags("-config", file, "-tls-identity-as-username")...)
			require.Equal(t, 2, strings.Count(printed.String(),
				`admits="clients with a certificate"`))
			for _, addr := range addrs {
				nc := dialTLS(t, addr, s.client(s.clients.Issue("jack")))
				c := login{"c", "jane", "pencil"}.at(t, nc)
				require.Less(t, c.publish("of/jack", "x"), packets.UnspecifiedError)
				require.Equal(t, packets.NotAuthorized, c.publish("of/jane", "x"))
			}
		})
	}
}

// A listener without TLS beside one where certificates are names still has SCRAM.
func TestSCRAMBesideCertificates(t *testing.T) {
	s := newSite(t)
	passwords := write(t, "passwords", "jane:"+auth.HashSCRAM("pencil", 4096))
	addrs, _ := start(t, s.flags("-listen", "127.0.0.1:0", "-tls-identity-as-username",
		"-password-file", passwords)...)
	jane, wrong := login{"j", "jane", "pencil"}, login{"j", "jane", "pen"}
	require.Equal(t, packets.Success, connectSCRAM(t, dial(t, addrs[0]), jane))
	require.Equal(t, packets.NotAuthorized, connectSCRAM(t, dial(t, addrs[0]), wrong))
	for _, own := range []string{"jack", "jane"} {
		nc := dialTLS(t, addrs[1], s.client(s.clients.Issue(own)))
		require.Equal(t, packets.BadAuthenticationMethod, connectSCRAM(t, nc, jane))
	}
	nc := dialTLS(t, addrs[1], s.client(nil))
	require.Equal(t, packets.BadAuthenticationMethod, connectSCRAM(t, nc, jane))
}
