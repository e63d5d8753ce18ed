package auth

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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
	vectorFinal  = "c=biws,r=" + vectorClient + vectorServer +
		",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
	vectorEnd = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
)

func vectorHash(t *testing.T) string {
	salt, err := base64.StdEncoding.DecodeString(vectorSalt)
	require.NoError(t, err)
	k := scramKeysOf("pencil", salt, 4096)
	return fmt.Sprintf("SCRAM-SHA-256$4096:%s$%s:%s", vectorSalt, encode(k.stored),
		encode(k.server))
}

// scramUsers are "user" of the RFC, "a,b=c" with the same password, and one without a hash for
// SCRAM.
func scramUsers(t *testing.T) *Passwords {
	users, err := NewUsers([]User{
		{Name: "user", Hash: vectorHash(t)},
		{Name: "a,b=c", Hash: vectorHash(t), Grant: &hooks.Grant{MountPoint: "m/",
			Identity: hooks.Identity{Principal: "abc"}}},
		{Name: "plain", Hash: Hash("pencil", 1)},
		{Name: "empty", Hash: HashSCRAM("", 4096)},
	})
	require.NoError(t, err)
	return NewPasswords(users)
}

// start returns an exchange with the server nonce of the RFC.
func start(t *testing.T, method hooks.EnhancedAuthenticator,
	r *hooks.ConnectRequest) hooks.Exchange {
	x, err := method.Start(t.Context(), r)
	require.NoError(t, err)
	x.(*scramExchange).nonce = vectorServer
	return x
}

func connecting() *hooks.ConnectRequest {
	return &hooks.ConnectRequest{Client: &hooks.Client{ID: "c"}, Connect: &packets.Connect{},
		Grant: new(hooks.Grant)}
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
	fmt.Sscanf(strings.NewReplacer(",", " ", "r=", "", "s=", "", "i=", "").Replace(reply),
		"%s %s %s", &nonce, &salt, &n)
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
		{"a right password", scramClient{"n,,", "user", "pencil", "abc"}, true,
			hooks.Grant{Identity: hooks.Identity{Principal: "user"}}},
		{"a client that could bind", scramClient{"y,,", "user", "pencil", "abc"}, true,
			hooks.Grant{Identity: hooks.Identity{Principal: "user"}}},
		{"a client that wants to be itself", scramClient{"n,a=user,", "user", "pencil", "abc"},
			true, hooks.Grant{Identity: hooks.Identity{Principal: "user"}}},
		{"an escaped name", scramClient{"n,,", "a=2Cb=3Dc", "pencil", "abc"}, true,
			hooks.Grant{MountPoint: "m/", Identity: hooks.Identity{Principal: "abc"}}},
		{"a wrong password", scramClient{"n,,", "user", "Pencil", "abc"}, false, hooks.Grant{}},
		{"a right password that is empty", scramClient{"n,,", "empty", "", "abc"}, false,
			hooks.Grant{}},
		{"an unknown user", scramClient{"n,,", "nobody", "pencil", "abc"}, false, hooks.Grant{}},
		{"a user with another hash", scramClient{"n,,", "plain", "pencil", "abc"}, false,
			hooks.Grant{}},
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
				require.Equal(t, end, string(reply),
					"the server proves that it knows the user, too")
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
		"n", "n,", "n,,", "n,,n=user", "n,,n=user,", "n,,n=user,r=", "n,,r=abc", "n,,n=,r=abc",
		"n,,u=user,r=abc",
		"x,,n=user,r=abc", ",,n=user,r=abc", "p=tls-exporter,,n=user,r=abc",
		"n,a=other,n=user,r=abc", "n,user,n=user,r=abc",
		"n,,m=ext,n=user,r=abc", "n,,n=us=er,r=abc", "n,,n=user=,r=abc", "n,,n=user=2,r=abc",
		"n,,n=user=2c,r=abc", "n,,n=us\ner,r=abc",
		"n,,n=user,r=a\x7fc", "n,,n=user,r=ä", "n,,n=user,x=1,r=abc", "n,,n=us\x00er,r=abc",
		"n,,n=\xff,r=abc", "c=biws,r=x,p=x",
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
		"nothing":                        "",
		"no proof":                       without,
		"half a proof":                   without + ",p=" + proof[:20],
		"an empty proof":                 without + ",p=",
		"a proof that is no base64":      without + ",p=" + strings.Repeat("!", 44),
		"a wrong proof":                  without + ",p=e" + proof[1:],
		"another binding":                strings.Replace(vectorFinal, "biws", "eSws", 1),
		"no binding":                     vectorFinal[len("c=biws,"):],
		"the client's part of the nonce": strings.Replace(vectorFinal, vectorServer, "", 1),
		"the nonce of an earlier attempt": strings.Replace(vectorFinal, vectorServer,
			"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k1", 1),
		"more than what was signed": without + ",x=1,p=" + proof,
		"the first message again":   vectorFirst,
		"not text":                  vectorFinal + "\xff",
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
	require.Equal(t, packets.NotAuthorized, packets.CodeOf(err),
		"what was listened to is of no use")
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
	require.Equal(t, packets.NotAuthorized, packets.CodeOf(again(other)),
		"nobody becomes somebody else")
	require.Empty(t, other.Grant.Identity.Principal)
}

// told returns the salt and the iteration count that a name is told.
func told(t *testing.T, method hooks.EnhancedAuthenticator, name string) (salt, iterations string) {
	t.Helper()
	x, err := method.Start(t.Context(), connecting())
	require.NoError(t, err)
	reply, _, err := x.Next(t.Context(), []byte("n,,n="+name+",r=abc"))
	require.NoError(t, err)
	f := strings.Split(string(reply), ",")
	require.Len(t, f, 3)
	return f[1], f[2]
}

func TestSCRAMUnknownUsersLookLikeKnownOnes(t *testing.T) {
	secretOfTest := []byte("sixteen bytes at least")
	var list []User
	add := func(n, iterations int) {
		for range n {
			list = append(list, User{Name: fmt.Sprint("user", len(list)),
				Hash: HashSCRAM("p", iterations)})
		}
	}
	passwords := func() *Passwords { // as after a restart
		us, err := NewUsers(list)
		require.NoError(t, err)
		p := NewPasswords(us)
		require.NoError(t, p.SetSecret(secretOfTest))
		return p
	}
	add(30, 10)
	add(10, 20)
	p := passwords()
	ofNames := func(p *Passwords) (told2 []string) {
		method := p.SCRAM()
		for i := range 200 {
			salt, iterations := told(t, method, fmt.Sprint("nobody", i))
			told2 = append(told2, salt+" "+iterations)
		}
		return told2
	}
	before := ofNames(p)
	_, known := told(t, p.SCRAM(), "user30")
	require.Equal(t, "i=20", known)
	require.Equal(t, before, ofNames(p), "it is no matter who asked before")
	require.Equal(t, before, ofNames(passwords()), "nor whether the program was started again")
	few, salts := 0, map[string]bool{}
	for _, s := range before {
		salts[s] = true
		require.Len(t, s, len("s="+vectorSalt+" i=10"))
		if strings.HasSuffix(s, "i=20") {
			few++
		}
	}
	require.Len(t, salts, 200, "each name has its own salt")
	require.InDelta(t, 50, few, 25, "the iteration counts are as frequent as among users")

	add(1, 20)
	list = append(list, User{Name: "other", Hash: Hash("p", 1)})
	changed := 0
	for i, s := range ofNames(passwords()) {
		if s != before[i] {
			changed++
		}
	}
	require.LessOrEqual(t, changed, 10, "a new user changes what few names are told")

	require.NoError(t, p.SetSecret([]byte("another secret, no shorter")))
	require.NotEqual(t, before, ofNames(p))
	require.ErrorContains(t, p.SetSecret([]byte("short")), "5 bytes")
	none := NewPasswords(nil)
	_, iterations := told(t, none.SCRAM(), "nobody")
	require.Equal(t, "i=15000", iterations)
}

func TestSCRAMOptions(t *testing.T) {
	find := scramUsers(t).Find
	o := SCRAMOptions{Find: find, Secret: []byte("sixteen bytes at least"),
		Iterations: []int{4096, 4096, 7}}
	one, err := NewSCRAM(o)
	require.NoError(t, err)
	two, err := NewSCRAM(o)
	require.NoError(t, err)
	other := SCRAM(find)
	counts := map[string]int{}
	for i := range 100 {
		name := fmt.Sprint("nobody", i)
		salt, iterations := told(t, one, name)
		again, same := told(t, two, name)
		require.Equal(t, salt, again)
		require.Equal(t, iterations, same)
		counts[iterations]++
		third, iterations := told(t, other, name)
		require.NotEqual(t, salt, third)
		require.Equal(t, "i=15000", iterations)
	}
	require.Len(t, counts, 2)
	require.Greater(t, counts["i=4096"], counts["i=7"])
	_, err = NewSCRAM(SCRAMOptions{})
	require.ErrorContains(t, err, "Find")
	_, err = NewSCRAM(SCRAMOptions{Find: find, Secret: []byte("short")})
	require.ErrorContains(t, err, "Secret")
	for _, n := range []int{0, -1, 10_000_001} {
		_, err = NewSCRAM(SCRAMOptions{Find: find, Iterations: []int{4096, n}})
		require.ErrorContains(t, err, "Iterations")
	}
}

func TestSCRAMLookupFails(t *testing.T) {
	down := errors.New("the user database is down")
	x, err := SCRAM(func(context.Context, string) (*User, error) {
		return nil, down
	}).Start(t.Context(), connecting())
	require.NoError(t, err)
	_, _, err = x.Next(t.Context(), []byte(vectorFirst))
	require.ErrorIs(t, err, down)
}

// A user whose hash makes no sense is refused as one that does not exist, at the end. What is wrong
// is in the error, for the log.
func TestSCRAMOfABrokenUser(t *testing.T) {
	method := SCRAM(func(context.Context, string) (*User, error) {
		return &User{Name: "user", Hash: "SCRAM-SHA-256$x"}, nil
	})
	client := scramClient{"n,,", "user", "pencil", "abc"}
	x, err := method.Start(t.Context(), connecting())
	require.NoError(t, err)
	reply, _, err := x.Next(t.Context(), []byte(client.first()))
	require.NoError(t, err)
	final, _ := client.final(string(reply))
	_, _, err = x.Next(t.Context(), []byte(final))
	require.ErrorContains(t, err, `user "user"`)
	pe, ok := errors.AsType[*packets.Error](err)
	require.True(t, ok)
	require.Equal(t, packets.NotAuthorized, pe.Code)
	require.Equal(t, "authentication failed", pe.Reason)
}

func TestSecretFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "secret")
	b, err := SecretFile(name)
	require.NoError(t, err)
	require.Len(t, b, 32)
	again, err := SecretFile(name)
	require.NoError(t, err)
	require.Equal(t, b, again)
	info, err := os.Stat(name)
	require.NoError(t, err)
	if runtime.GOOS != "windows" {
		require.EqualValues(t, 0o600, info.Mode().Perm())
	}
	files, err := os.ReadDir(filepath.Dir(name))
	require.NoError(t, err)
	require.Len(t, files, 1)
	require.NoError(t, os.WriteFile(name, b[:15], 0o600))
	_, err = SecretFile(name)
	require.ErrorContains(t, err, "15 bytes")
	_, err = SecretFile(filepath.Join(name, "x"))
	require.Error(t, err)
	_, err = SecretFile(filepath.Join(filepath.Dir(name), "no", "folder"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func FuzzSCRAM(f *testing.F) {
	f.Add([]byte(vectorFirst), []byte(vectorFinal))
	f.Add([]byte{}, []byte("n,a=x,n=a=2Cb,r=1"))
	users, err := NewUsers([]User{{Name: "user",
		Hash: HashSCRAM("a password that the fuzzer does not know", 1)}})
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

// An account whose hash is that of the empty password lets nobody in who sends one.
func TestAnEmptyPasswordLetsNobodyIn(t *testing.T) {
	for name, hash := range map[string]string{
		"PBKDF2": Hash("", 1000), "SCRAM": HashSCRAM("", 4096), "a password": Hash("x", 1000),
	} {
		t.Run(name, func(t *testing.T) {
			us, err := NewUsers([]User{{Name: "jane", Hash: hash}})
			require.NoError(t, err)
			p := NewPasswords(us)
			for _, password := range [][]byte{nil, {}} {
				r := &hooks.ConnectRequest{
					Client: &hooks.Client{}, Grant: new(hooks.Grant),
					Connect: &packets.Connect{HasUsername: true, Username: "jane",
						HasPassword: true, Password: password},
				}
				require.Equal(t, packets.BadUserNameOrPassword,
					packets.CodeOf(p.Authenticate(t.Context(), r)))
			}
		})
	}
}
