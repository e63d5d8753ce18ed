package packets

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTrace(t *testing.T) {
	for name, tt := range map[string]struct {
		p    Packet
		want string
	}{
		"what is not printable is quoted": {&Publish{Topic: []byte("a b"),
			Payload: []byte("\tä\"")},
			`PUBLISH qos=0 topic="a b" payload="\tä\""`},
		"a payload of 64 bytes is shown": {&Publish{Topic: []byte("a"),
			Payload: bytes.Repeat([]byte("x"), 64)},
			"PUBLISH qos=0 topic=a payload=" + string(bytes.Repeat([]byte("x"), 64))},
		"a payload of 65 bytes is counted": {&Publish{Topic: []byte("a"),
			Payload: bytes.Repeat([]byte("x"), 65)},
			"PUBLISH qos=0 topic=a payload=<65 bytes>"},
		"a payload that is not UTF-8 is in digits": {&Publish{Topic: []byte("a"),
			Payload: []byte{0xFF, 0x0A}},
			"PUBLISH qos=0 topic=a payload=hex:ff0a"},
		"a payload that looks like digits is quoted": {&Publish{Topic: []byte("a"),
			Payload: []byte("hex:ff")},
			`PUBLISH qos=0 topic=a payload="hex:ff"`},
		"the name of a user property is quoted if it has an equals sign": {
			&Publish{Topic: []byte("a"), Properties: Properties(nil).AppendUser("k=", "v=")},
			`PUBLISH qos=0 topic=a payload= user."k="=v=`},
		"properties of the will have a prefix": {
			&Connect{Version: V5, Will: &Will{Topic: "w",
				Properties: Properties(nil).AppendUser("k", "v")}},
			"CONNECT v=5 client= keepalive=0 will-topic=w will-payload= will-qos=0 will.user.k=v"},
		"a password is not shown": {&Connect{Version: V5, HasUsername: true, HasPassword: true,
			Password: []byte("secret")},
			"CONNECT v=5 client= keepalive=0 user= pass=<6 bytes>"},
		"authentication data is not shown": {&Connack{Properties: Properties(nil).AppendText(AuthenticationData, "secret")},
			"CONNACK code=0x00 authentication-data=<6 bytes>"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tt.want, Trace(tt.p))
			require.Equal(t, "before "+tt.want, string(AppendTrace([]byte("before "), tt.p)))
		})
	}
}
