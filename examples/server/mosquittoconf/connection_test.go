package mosquittoconf

import (
	"crypto/tls"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const aConnection = "connection b\naddress h\ntopic #\n"

// connectionOptions are options behind aConnection, with what of the Connection they change, and
// what is said.
var connectionOptions = []struct{ name, value, want, said string }{
	{"address", "10.0.0.1:8883 h2 [::1]:1884 ::1:1885 [::2]",
		"Addresses:[mqtt://h:1883 mqtt://10.0.0.1:8883 mqtt://h2:1883 mqtt://[::1]:1884 " +
			"mqtt://[::1]:1885 mqtt://[::2]:1883]", ""},
	{"addresses", "h2:1 # the other", "Addresses:[mqtt://h:1883 mqtt://h2:1]", ""},
	{"bridge_alpn", "mqtt", "error", "without one of them Mosquitto connects without TLS"},
	{"bridge_attempt_unsubscribe", "false", "Unsubscribe:false", ""},
	{"bridge_bind_address", "192.0.2.1", "LocalAddress:192.0.2.1", ""},
	{"bridge_bind_address", "eth0", "error", "expected an IP address"},
	{"bridge_cafile", "/ca", "Addresses:[mqtts://h:1883]; CAFile:/ca", ""},
	{"bridge_capath", "/cas", "Addresses:[mqtts://h:1883]; CAPath:/cas", ""},
	{"bridge_tls_use_os_certs", "true", "Addresses:[mqtts://h:1883]; SystemCAs:true", ""},
	{"bridge_certfile", "/crt", "error", "bridge_certfile and bridge_keyfile need each other"},
	{"bridge_keyfile", "/key", "error", "bridge_certfile and bridge_keyfile need each other"},
	{"bridge_ciphers", "ECDHE-RSA-AES128-GCM-SHA256", "error", "connects without TLS"},
	{"bridge_ciphers", "HIGH", "error", "none of"},
	{"bridge_ciphers_tls1.3", "TLS_AES_128_GCM_SHA256", "", "ignored"},
	{"bridge_identity", "x", "error", "pre-shared"},
	{"bridge_psk", "abcd", "error", "pre-shared"},
	{"bridge_insecure", "false", "", ""},
	{"bridge_insecure", "true", "error", "connects without TLS"},
	{"bridge_max_packet_size", "1000", "MaxSentSize:1000", ""},
	{"bridge_max_packet_size", "0", "", ""},
	{"bridge_max_packet_size", "100", "error", "at least 128"},
	{"bridge_max_topic_alias", "10", "", "ignored"},
	{"bridge_outgoing_retain", "false", "DisableRetain:true", ""},
	{"bridge_protocol_version", "mqttv50", "Version:5.0", ""},
	{"bridge_protocol_version", "mqttv311", "", ""},
	{"bridge_protocol_version", "mqttv31", "error", "use mqttv311"},
	{"bridge_receive_maximum", "7", "Window:7", ""},
	{"bridge_reload_type", "immediate", "Immediate:true", ""},
	{"bridge_require_ocsp", "false", "", "as it is here"},
	{"bridge_require_ocsp", "true", "error", "OCSP"},
	{"bridge_session_expiry_interval", "60", "SessionExpiry:1m0s", ""},
	{"bridge_session_expiry_interval", "0", "CleanStart:true; CleanStartHere:true",
		"as cleansession true"},
	{"bridge_session_expiry_interval", "0xFFFFFFFF", "", "for ever"},
	{"bridge_session_expiry_interval", "4294967296", "error", "expected seconds"},
	{"bridge_tcp_keepalive", "60 10 3", "", "ignored"},
	{"bridge_tcp_user_timeout", "1000", "", "ignored"},
	{"bridge_tls_version", "tlsv1.3", "error", "connects without TLS"},
	{"cleansession", "true", "CleanStart:true; CleanStartHere:true", ""},
	{"clientid", "c", "ClientID:c", ""},
	{"connection", "b", "error", "c:1 has the same name"},
	{"idle_timeout", "5", "IdleTimeout:5s", ""},
	{"keepalive_interval", "30", "KeepAlive:30s", ""},
	{"keepalive_interval", "3", "KeepAlive:5s", "the least"},
	{"local_cleansession", "true", "CleanStartHere:true", ""},
	{"local_clientid", "c", "", "ignored: the Session here"},
	{"local_password", "p", "", "ignored: a bridge needs no account here"},
	{"local_username", "u", "", "ignored: a bridge needs no account here"},
	{"notification_topic", "state", "StateTopic:state", ""},
	{"notifications", "false", "DisableNotifications:true", ""},
	{"notifications_local_only", "true", "LocalNotifications:true", ""},
	{"password", "p", "error", "needs remote_username"},
	{"remote_clientid", "c", "ClientID:c", ""},
	{"remote_password", "p", "error", "needs remote_username"},
	{"remote_username", "u", "Username:u", ""},
	{"username", "u", "Username:u", ""},
	{"restart_timeout", "20", "MinBackoff:20s; MaxBackoff:20s", "a pause of 20s"},
	{"restart_timeout", "10 60", "MinBackoff:10s; MaxBackoff:1m0s", "grows from 10s to 1m0s"},
	{"restart_timeout", "60 10", "error", "lower than the base"},
	{"restart_timeout", "1 2 3", "error", "a base and a cap"},
	{"restart_timeout", "soon", "error", "expected seconds"},
	{"round_robin", "true", "RoundRobin:true", ""},
	{"start_type", "automatic", "", ""},
	{"start_type", "once", "Start:1", ""},
	{"start_type", "lazy", "Start:2", ""},
	{"start_type", "manual", "error", "expected automatic, once, lazy"},
	{"threshold", "0", "Threshold:1", ""},
	{"topic", "a/# both 2 l/ r/", "Topics:[{# 0 0  } {a/# 2 2 l/ r/}]",
		"l/a/# here is the same as r/a/# there, at QoS 2"},
	{"topic", `a in`, "Topics:[{# 0 0  } {a 1 0  }]", "a here comes from a there, at QoS 0"},
	{"topic", `"" out 1 l "r s" # as we like it`, "Topics:[{# 0 0  } { 0 1 l r s}]",
		"l here goes to r s there"},
	{"topic", "a sideways", "error", `got "sideways"`},
	{"topic", "a out 3", "error", `got "3"`},
	{"topic", "a out 1 l r more", "error", "got 6 words"},
	{"topic", "a/#/b out", "error", "not a valid Topic Filter"},
	{"topic", "# out 1 a b", "error", "not a valid Topic Filter"},
	{"topic", "# out 1 a/+/ b/", "error", "is not the beginning of a topic"},
	{"topic", `"" out 1 l`, "error", "LocalPrefix and RemotePrefix"},
	{"topic", `"a out`, "error", "a quotation mark"},
	{"try_private", "false", "DisableBridgeBit:true", ""},
}

// difference is what b says and a does not, as field:value.
func difference(a, b reflect.Value) (all []string) {
	for i := range a.NumField() {
		x, y, f := a.Field(i), b.Field(i), a.Type().Field(i)
		switch {
		case f.Name == "Link":
			all = append(all, difference(x, y)...)
		case f.Name != "Line" && f.Name != "cleanHere" && fmt.Sprint(x) != fmt.Sprint(y):
			all = append(all, fmt.Sprint(f.Name, ":", y))
		}
	}
	return all
}

func TestEachOptionOfAConnection(t *testing.T) {
	tested := map[string]bool{}
	plain := read(t, aConnection)
	require.Empty(t, plain.Errors)
	l := plain.Connections[0].Link
	require.Equal(t, "4 1m0s 5s 30s false true", fmt.Sprint(byte(l.Version), l.KeepAlive,
		l.MinBackoff, l.MaxBackoff, l.CleanStart, l.Unsubscribe), "the defaults of Mosquitto")
	for _, tt := range connectionOptions {
		tested[tt.name] = true
		t.Run(tt.name+" "+tt.value, func(t *testing.T) {
			c := read(t, aConnection+tt.name+" "+tt.value+"\n")
			if tt.want == "error" {
				require.Len(t, c.Errors, 1)
				require.Regexp(t, `c:(1: connection|4: `+tt.name+`): `, c.Errors[0].Error())
				require.Contains(t, c.Errors[0].Error(), tt.said)
				return
			}
			require.Empty(t, c.Errors)
			require.Equal(t, tt.want, strings.Join(difference(reflect.ValueOf(*plain.Connections[0]),
				reflect.ValueOf(*c.Connections[0])), "; "))
			require.Contains(t, c.Said[3].What, tt.said)
			alone := read(t, tt.name+" "+tt.value+"\n")
			if tt.name == "bridge_require_ocsp" { // which is as it is here anyway
				return
			}
			require.Len(t, alone.Errors, 1)
			require.ErrorContains(t, alone.Errors[0], "no connection line before it")
		})
	}
	for _, o := range bridges {
		require.True(t, tested[o.name], "no test for %s", o.name)
	}
}

func TestOptionsOfAConnectionTogether(t *testing.T) {
	c := read(t, aConnection+"bridge_cafile /ca\nbridge_certfile /crt\nbridge_keyfile /key\n"+
		"bridge_insecure true\nbridge_alpn mqtt\nbridge_tls_version tlsv1.3\n"+
		"bridge_ciphers ECDHE-RSA-AES128-GCM-SHA256\nremote_username u\nremote_password p\n"+
		"connection c\naddress d\ntopic # in\ncleansession true\nlocal_cleansession false\n"+
		"connection lazy\naddress d\ntopic # out\ncleansession true\nstart_type lazy\n")
	require.Empty(t, c.Errors)
	require.Len(t, c.Connections, 3)
	x, y, z := c.Connections[0], c.Connections[1], c.Connections[2]
	require.True(t, x.TLS() && x.Insecure && x.TLSVersion == tls.VersionTLS13 && x.ALPN == "mqtt" &&
		len(x.Ciphers) == 1 && x.Link.Password == "p")
	require.True(t, !y.TLS() && y.Link.CleanStart && !y.Link.CleanStartHere)
	require.True(t, z.Link.CleanStart && !z.Link.CleanStartHere, "its queue is what it waits for")
	require.Equal(t, time.Minute, z.Link.KeepAlive)
	for text, want := range map[string]string{
		"connection x\ntopic #\n":      "c:1: connection: there is no address line",
		"connection x\naddress a\n":    "c:1: connection: there is no topic line",
		"connection x y\naddress :1\n": "c:2: address: expected HOST or HOST:PORT",
		"connection x\naddress ::1\n":  "c:2: address: expected HOST or HOST:PORT",
		"connection x\naddress h:x\n":  "c:2: address: expected HOST or HOST:PORT",
		"connection x\naddress h:0\n":  "c:2: address: expected HOST or HOST:PORT",
	} {
		c := read(t, text)
		require.NotEmpty(t, c.Errors, text)
		require.ErrorContains(t, c.Errors[0], want)
	}
}
