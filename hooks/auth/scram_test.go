package auth

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// The exchange of RFC 7677 section 3: user "user", password "pencil".
const (
	vectorSalt   = "W22ZaJ0SNY7soEsUEjb6gQ=="
	vectorClient = "rOprNGfwEbeRWgbNEkqO"
	vectorServer = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	vectorFirst  = "n,,n=user,r=" + vectorClient
	vectorReply  = "r=" + vectorClient + vectorServer + ",s=" + vectorSalt + ",i=4096"
	vectorFinal  = "c=biws,r=" + vectorClient + vectorServer + ",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
	vectorEnd    = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
)

func vectorHash(t *testing.T) string {
	salt, err := base64.StdEncoding.DecodeString(vectorSalt)
	require.NoError(t, err)
	k := scramKeysOf("pencil", salt, 4096)
	return fmt.Sprintf("SCRAM-SHA-256$4096:%s$%s:%s", vectorSalt, encode(k.stored), encode(k.server))
}

// scramUsers are "user" of the RFC, "a,b=c" with the same password, and one without a hash for SCRAM.
func scramUsers(t *testing.T) *Passwords {
	users, err := NewUsers([]User{
		{Name: "user", Hash: vectorHash(t)},
		{Name: "a,b=c", Hash: vectorHash(t), Grant: &hooks.Grant{MountPoint: "m/", Identity: hooks.Identity{Principal: "abc"}}},
		{Name: "plain", Hash: Hash("pencil", 1)},
	})
	require.NoError(t, err)
	return NewPasswords(users)
}

// start returns an exchange with the server nonce of the RFC.
func start(t *testing.T, method hooks.EnhancedAuthenticator, r *hooks.ConnectRequest) hooks.Exchange {
	x, err := method.Start(t.Context(), r)
	require.NoError(t, err)
	x.(*scramExchange).nonce = vectorServer
	return x
}

func connecting() *hooks.ConnectRequest {
	return &hooks.ConnectRequest{Client: &hooks.Client{ID: "c"}, Connect: &packets.Connect{}, Grant: new(hooks.Grant)}
}

func TestSCRAMVector(t *testing.T) {
	r := connecting()
	x := start(t, SCRAM(scramUsers(t).Find), r)
	reply, done, err := x.Next(t.Context(), []byte(vectorFirst))
	require.NoError(t, err)
	require.False(t, done)
	require.Equal(t, vectorReply, string(reply))
	require.Empty(t, r.Grant.Identity.Principal, "nothing is granted before the proof")
	reply, done, err = x.Next(t.Context(), []byte(vectorFinal))
	require.NoError(t, err)
	require.True(t, done)
	require.Equal(t, vectorEnd, string(reply))
	require.Equal(t, "user", r.Grant.Identity.Principal)
	_, _, err = x.Next(t.Context(), []byte(vectorFinal))
	require.Error(t, err, "it is over")
}

// scramClient is the other side, written from the RFC.
type scramClient struct{ header, name, password, nonce string }

func (c *scramClient) first() string { return c.header + "n=" + c.name + ",r=" + c.nonce }

// final answers the server's first message, and says what its last one has to be.
func (c *scramClient) final(reply string) (message, end string) {
	var nonce, salt, n string
	fmt.Sscanf(strings.NewReplacer(",", " ", "r=", "", "s=", "", "i=", "").Replace(reply), "%s %s %s", &nonce, &salt, &n)
	rawSalt, _ := base64.StdEncoding.DecodeString(salt)
	iterations, _ := strconv.Atoi(n)
	sum := func(key []byte, s string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(s))
		return h.Sum(nil)
	}
	salted, _ := pbkdf2.Key(sha256.New, c.password, rawSalt, iterations, 32)
	key := sum(salted, "Client Key")
	stored := sha256.Sum256(key)
	without := "c=" + base64.StdEncoding.EncodeToString([]byte(c.header)) + ",r=" + nonce
	signed := "n=" + c.name + ",r=" + c.nonce + "," + reply + "," + without
	proof := sum(stored[:], signed)
	for i := range proof {
		proof[i] ^= key[i]
	}
	end = "v=" + base64.StdEncoding.EncodeToString(sum(sum(salted, "Server Key"), signed))
	return without + ",p=" + base64.StdEncoding.EncodeToString(proof), end
}

func TestSCRAMExchanges(t *testing.T) {
	for _, tt := range []struct {
		name   string
		client scramClient
		ok     bool
		grant  hooks.Grant
	}{
		{"a right password", scramClient{"n,,", "user", "pencil", "abc"}, true, hooks.Grant{Identity: hooks.Identity{Principal: "user"}}},
		{"a client that could bind", scramClient{"y,,", "user", "pencil", "abc"}, true, hooks.Grant{Identity: hooks.Identity{Principal: "user"}}},
		{"a client that wants to be itself", scramClient{"n,a=user,", "user", "pencil", "abc"}, true, hooks.Grant{Identity: hooks.Identity{Principal: "user"}}},
		{"an escaped name", scramClient{"n,,", "a=2Cb=3Dc", "pencil", "abc"}, true, hooks.Grant{MountPoint: "m/", Identity: hooks.Identity{Principal: "abc"}}},
		{"a wrong password", scramClient{"n,,", "user", "Pencil", "abc"}, false, hooks.Grant{}},
		{"an unknown user", scramClient{"n,,", "nobody", "pencil", "abc"}, false, hooks.Grant{}},
		{"a user with another hash", scramClient{"n,,", "plain", "pencil", "abc"}, false, hooks.Grant{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := connecting()
			x, err := SCRAM(scramUsers(t).Find).Start(t.Context(), r)
			require.NoError(t, err)
			reply, done, err := x.Next(t.Context(), []byte(tt.client.first()))
			require.NoError(t, err, "that anything is wrong shows at the proof, not before")
			require.False(t, done)
			final, end := tt.client.final(string(reply))
			reply, done, err = x.Next(t.Context(), []byte(final))
			require.Equal(t, tt.ok, done)
			require.Equal(t, &tt.grant, r.Grant)
			if tt.ok {
				require.NoError(t, err)
				require.Equal(t, end, string(reply), "the server proves that it knows the user, too")
				return
			}
			require.Nil(t, reply)
			require.Equal(t, packets.NotAuthorized, packets.CodeOf(err))
			_, _, err = x.Next(t.Context(), []byte(final))
			require.Error(t, err, "there is no second try")
		})
	}
}

func TestSCRAMWithoutInitialMessage(t *testing.T) {
	r := connecting()
	x := start(t, SCRAM(scramUsers(t).Find), r)
	reply, done, err := x.Next(t.Context(), nil)
	require.NoError(t, err)
	require.False(t, done)
	require.Empty(t, reply)
	reply, _, err = x.Next(t.Context(), []byte(vectorFirst))
	require.NoError(t, err)
	require.Equal(t, vectorReply, string(reply))
	_, done, err = x.Next(t.Context(), []byte(vectorFinal))
	require.NoError(t, err)
	require.True(t, done)

	x = start(t, SCRAM(scramUsers(t).Find), r)
	_, _, err = x.Next(t.Context(), nil)
	require.NoError(t, err)
	_, _, err = x.Next(t.Context(), nil)
	require.Error(t, err, "a client does not get to talk about nothing for ever")
}

func TestSCRAMBadFirstMessages(t *testing.T) {
	for _, message := range []string{
		"n", "n,", "n,,", "n,,n=user", "n,,n=user,", "n,,n=user,r=", "n,,r=abc", "n,,n=,r=abc", "n,,u=user,r=abc",
		"x,,n=user,r=abc", ",,n=user,r=abc", "p=tls-exporter,,n=user,r=abc", "n,a=other,n=user,r=abc", "n,user,n=user,r=abc",
		"n,,m=ext,n=user,r=abc", "n,,n=us=er,r=abc", "n,,n=user=,r=abc", "n,,n=user=2,r=abc", "n,,n=user=2c,r=abc", "n,,n=us\ner,r=abc",
		"n,,n=user,r=a\x7fc", "n,,n=user,r=ä", "n,,n=user,x=1,r=abc", "n,,n=us\x00er,r=abc", "n,,n=\xff,r=abc", "c=biws,r=x,p=x",
	} {
		x := start(t, SCRAM(scramUsers(t).Find), connecting())
		reply, done, err := x.Next(t.Context(), []byte(message))
		require.Equal(t, packets.NotAuthorized, packets.CodeOf(err), "%q", message)
		require.False(t, done)
		require.Nil(t, reply)
		_, _, err = x.Next(t.Context(), []byte(vectorFirst))
		require.Error(t, err, "after %q it is over", message)
	}
}

func TestSCRAMBadFinalMessages(t *testing.T) {
	without, proof, _ := strings.Cut(vectorFinal, ",p=")
	for name, message := range map[string]string{
		"nothing":                         "",
		"no proof":                        without,
		"half a proof":                    without + ",p=" + proof[:20],
		"an empty proof":                  without + ",p=",
		"a proof that is no base64":       without + ",p=" + strings.Repeat("!", 44),
		"a wrong proof":                   without + ",p=e" + proof[1:],
		"another binding":                 strings.Replace(vectorFinal, "biws", "eSws", 1),
		"no binding":                      vectorFinal[len("c=biws,"):],
		"the client's part of the nonce":  strings.Replace(vectorFinal, vectorServer, "", 1),
		"the nonce of an earlier attempt": strings.Replace(vectorFinal, vectorServer, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k1", 1),
		"more than what was signed":       without + ",x=1,p=" + proof,
		"the first message again":         vectorFirst,
		"not text":                        vectorFinal + "\xff",
	} {
		t.Run(name, func(t *testing.T) {
			r := connecting()
			x := start(t, SCRAM(scramUsers(t).Find), r)
			_, _, err := x.Next(t.Context(), []byte(vectorFirst))
			require.NoError(t, err)
			reply, done, err := x.Next(t.Context(), []byte(message))
			require.Equal(t, packets.NotAuthorized, packets.CodeOf(err))
			require.False(t, done)
			require.Nil(t, reply)
			require.Empty(t, r.Grant.Identity.Principal)
			_, _, err = x.Next(t.Context(), []byte(vectorFinal))
			require.Error(t, err, "there is no second try")
		})
	}
}

func TestSCRAMReplay(t *testing.T) {
	method := SCRAM(scramUsers(t).Find)
	client := scramClient{"n,,", "user", "pencil", "abc"}
	x, err := method.Start(t.Context(), connecting())
	require.NoError(t, err)
	reply, _, err := x.Next(t.Context(), []byte(client.first()))
	require.NoError(t, err)
	final, _ := client.final(string(reply))
	_, done, err := x.Next(t.Context(), []byte(final))
	require.NoError(t, err)
	require.True(t, done)

	again, err := method.Start(t.Context(), connecting())
	require.NoError(t, err)
	second, _, err := again.Next(t.Context(), []byte(client.first()))
	require.NoError(t, err)
	require.NotEqual(t, string(reply), string(second), "every attempt has its own nonce")
	_, done, err = again.Next(t.Context(), []byte(final))
	require.Equal(t, packets.NotAuthorized, packets.CodeOf(err), "what was listened to is of no use")
	require.False(t, done)
}

func TestSCRAMReauthentication(t *testing.T) {
	r := func(principal string) *hooks.ConnectRequest {
		c := &hooks.Client{ID: "c", Identity: hooks.Identity{Principal: principal}}
		return &hooks.ConnectRequest{Client: c, Grant: new(hooks.Grant)}
	}
	again := func(r *hooks.ConnectRequest) error {
		x := start(t, SCRAM(scramUsers(t).Find), r)
		_, _, err := x.Next(t.Context(), []byte(vectorFirst))
		require.NoError(t, err)
		_, _, err = x.Next(t.Context(), []byte(vectorFinal))
		return err
	}
	same, other := r("user"), r("somebody else")
	require.NoError(t, again(same))
	require.Equal(t, "user", same.Grant.Identity.Principal)
	require.Equal(t, packets.NotAuthorized, packets.CodeOf(again(other)), "nobody becomes somebody else")
	require.Empty(t, other.Grant.Identity.Principal)
}

func TestSCRAMUnknownUsersLookLikeKnownOnes(t *testing.T) {
	method := SCRAM(scramUsers(t).Find)
	ask := func(name string) (salt, iterations string) {
		x, err := method.Start(t.Context(), connecting())
		require.NoError(t, err)
		reply, _, err := x.Next(t.Context(), []byte("n,,n="+name+",r=abc"))
		require.NoError(t, err)
		f := strings.Split(string(reply), ",")
		require.Len(t, f, 3)
		return f[1], f[2]
	}
	_, known := ask("user")
	salt, iterations := ask("nobody")
	require.Equal(t, known, iterations)
	again, _ := ask("nobody")
	require.Equal(t, salt, again, "a user's salt does not change between attempts")
	other, _ := ask("nobody else")
	require.NotEqual(t, salt, other)
	require.Len(t, salt, len("s="+vectorSalt))
}

func TestSCRAMLookupFails(t *testing.T) {
	down := errors.New("the user database is down")
	x, err := SCRAM(func(context.Context, string) (*User, error) { return nil, down }).Start(t.Context(), connecting())
	require.NoError(t, err)
	_, _, err = x.Next(t.Context(), []byte(vectorFirst))
	require.ErrorIs(t, err, down)

	x, err = SCRAM(func(context.Context, string) (*User, error) { return &User{Name: "user", Hash: "SCRAM-SHA-256$x"}, nil }).Start(t.Context(), connecting())
	require.NoError(t, err)
	_, _, err = x.Next(t.Context(), []byte(vectorFirst))
	require.ErrorContains(t, err, `user "user"`)
}

func FuzzSCRAM(f *testing.F) {
	f.Add([]byte(vectorFirst), []byte(vectorFinal))
	f.Add([]byte{}, []byte("n,a=x,n=a=2Cb,r=1"))
	users, err := NewUsers([]User{{Name: "user", Hash: HashSCRAM("a password that the fuzzer does not know", 1)}})
	if err != nil {
		f.Fatal(err)
	}
	method := SCRAM(NewPasswords(users).Find)
	f.Fuzz(func(t *testing.T, one, two []byte) {
		r := connecting()
		x, err := method.Start(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		for _, data := range [][]byte{one, two, one} {
			if _, done, _ := x.Next(t.Context(), data); done || r.Grant.Identity.Principal != "" {
				t.Errorf("accepted after %q, %q", one, two)
			}
		}
	})
}
