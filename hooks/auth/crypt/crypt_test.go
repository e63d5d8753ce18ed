package crypt_test

import (
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/crypt"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"
)

// From the test vectors that came with the first implementations.
const (
	// of "U*U"
	bcryptHash = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
	// of "password"
	argon2Hash = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
)

func TestPasswords(t *testing.T) {
	long := strings.Repeat("x", 72)
	longHash, err := bcrypt.GenerateFromPassword([]byte(long), bcrypt.MinCost)
	require.NoError(t, err)
	file := "b:" + bcryptHash + "\ny:" + strings.Replace(bcryptHash, "$2a$", "$2y$", 1) + "\na:" +
		argon2Hash + "\nlong:" + string(longHash) +
		"\nm:" + auth.Hash("mosquitto", 1) + "\n"
	users, err := auth.ParseUsers(strings.NewReader(file), "passwords", crypt.Bcrypt,
		crypt.Argon2id)
	require.NoError(t, err)
	require.Equal(t, 5, users.Len())
	p := auth.NewPasswords(users)
	for _, tt := range []struct {
		name, user, password string
		ok                   bool
	}{
		{"bcrypt", "b", "U*U", true},
		{"bcrypt, a wrong password", "b", "U*V", false},
		{"bcrypt, an empty password", "b", "", false},
		{"bcrypt of another prefix", "y", "U*U", true},
		{"bcrypt, the longest password", "long", long, true},
		{"bcrypt, a longer one that begins like it", "long", long + "y", false},
		{"Argon2id", "a", "password", true},
		{"Argon2id, a wrong password", "a", "Password", false},
		{"another kind of hash beside them", "m", "mosquitto", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &packets.Connect{HasUsername: true, Username: tt.user, HasPassword: true,
				Password: []byte(tt.password)}
			r := &hooks.ConnectRequest{Client: &hooks.Client{HasUsername: true, Username: tt.user},
				Connect: c, Grant: new(hooks.Grant)}
			err := p.Authenticate(t.Context(), r)
			if tt.ok {
				require.NoError(t, err)
				require.Equal(t, tt.user, r.Grant.Identity.Principal)
			} else {
				require.Equal(t, packets.BadUserNameOrPassword, packets.CodeOf(err))
			}
		})
	}
}

func TestBadHashes(t *testing.T) {
	for _, tt := range []struct{ name, hash, want string }{
		{"another kind", "$7$101$x$y", ""},
		{"Argon2i", strings.Replace(argon2Hash, "argon2id", "argon2i", 1), ""},
		{"a plain password", "secret", ""},
		{"nothing", "", ""},
		{"bcrypt that ends early", bcryptHash[:59], "the hash has 59 characters, not 60"},
		{"bcrypt that goes on", bcryptHash + "x", "the hash has 61 characters, not 60"},
		{"bcrypt with a bad cost", "$2a$xx" + bcryptHash[6:], "not one of bcrypt"},
		{"bcrypt with a cost for years", "$2a$31" + bcryptHash[6:], "cost 31, more than 20"},
		{"bcrypt with a bad salt", bcryptHash[:10] + "!" + bcryptHash[11:],
			"not in the base64 of bcrypt"},
		{"bcrypt with a bad key", bcryptHash[:40] + "!" + bcryptHash[41:],
			"not in the base64 of bcrypt"},
		{"Argon2id without a key", argon2Hash[:strings.LastIndexByte(argon2Hash, '$')],
			"six parts"},
		{"Argon2id of another version", strings.Replace(argon2Hash, "v=19", "v=16", 1),
			`version "v=16", not 19`},
		{"Argon2id with other parameters", strings.Replace(argon2Hash, "m=65536", "x=65536", 1),
			"not m=, t= and p="},
		{"Argon2id with more parameters", strings.Replace(argon2Hash, "p=1", "p=1,data=x", 1),
			"not m=, t= and p="},
		{"Argon2id with too much memory", strings.Replace(argon2Hash, "65536", "1048577", 1),
			"out of bounds"},
		{"Argon2id with too little memory", strings.Replace(argon2Hash, "65536", "7", 1),
			"out of bounds"},
		{"Argon2id without passes", strings.Replace(argon2Hash, "t=2", "t=0", 1), "out of bounds"},
		{"Argon2id without threads", strings.Replace(argon2Hash, "p=1", "p=0", 1), "out of bounds"},
		{"Argon2id with too many threads", strings.Replace(argon2Hash, "p=1", "p=256", 1),
			"not m=, t= and p="},
		{"Argon2id with a bad salt", strings.Replace(argon2Hash, "c29t", "!29t", 1),
			"the salt of the hash"},
		{"Argon2id with a short salt", strings.Replace(argon2Hash, "c29tZXNhbHQ", "c29t", 1),
			"the salt of the hash"},
		{"Argon2id with a short key", argon2Hash[:len(argon2Hash)-30], "the key of the hash"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, scheme := range []auth.Scheme{crypt.Bcrypt, crypt.Argon2id} {
				verify, err := scheme(tt.hash)
				require.Nil(t, verify)
				if err != nil {
					require.NotEmpty(t, tt.want, "%v", err)
					require.ErrorContains(t, err, tt.want)
				}
			}
			_, err := auth.NewUsers([]auth.User{{Name: "u", Hash: tt.hash}}, crypt.Bcrypt,
				crypt.Argon2id)
			require.ErrorContains(t, err, tt.want)
		})
	}
}
