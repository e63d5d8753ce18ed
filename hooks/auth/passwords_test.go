package auth_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// What mosquitto_passwd 2.0.11 wrote for the passwords "secret", "pä ss:word", "old" (-H sha512)
// and "".
const mosquittoFile = `# users
alice:$7$101$wiwrPF+Us/1VzWQU$0aMlRudJbzo2bOw+oSuaEo9WSrTsz3Trxu3hsaLe4BhOkwq5lHHBoedwCORv0+fvcPEw/B3vjsBC4iyzbqVLjw==
bob:$7$101$3TVhIMb9viQ1QB3i$ke4FtcTN4J5RzsjaZboc1qtwfsc4ik6SlMnHKFOru7hpRw/y+/Y5Q76wgygP0JyWFTZvIobkDziz2ZxOvEb9gg==

carol:$6$PeZNLtlJ5i47aO2N$inCHlATgyqT/xWN6w8np0/TtxrCEdOz4yuiqoijVJvjkckPBUQW9L1EbKV39Dx9T0KAWz0LZlh6/ykgmnWfN8w==
  d ave :$7$101$sso67xLSwTNCIlRF$hSC8iiDTG+l0WVqe6zoYD1qMyvsMbpb4vBH4/6YAUXM4VxvS3aHspogYO31sPrgjX3By8xTcTrfBJSbFj2tVAA==
`

func parse(t *testing.T, text string) *auth.Users {
	t.Helper()
	us, err := auth.ParseUsers(strings.NewReader(text), "passwords")
	require.NoError(t, err)
	return us
}

func TestPasswords(t *testing.T) {
	p := auth.NewPasswords(parse(t,
		strings.ReplaceAll(mosquittoFile, "\n", "\r\n")+"erin:"+auth.HashSCRAM("pencil", 10)+"\n"))
	for _, tt := range []struct {
		name, user, password string
		ok                   bool
	}{
		{"a right password", "alice", "secret", true},
		{"a wrong one", "alice", "Secret", false},
		{"the beginning of it", "alice", "secre", false},
		{"more than it", "alice", "secret\n", false},
		{"none", "alice", "-", false},
		{"an empty one", "alice", "", false},
		{"that of another", "alice", "old", false},
		{"bytes beyond ASCII and a colon", "bob", "pä ss:word", true},
		{"an old kind of hash", "carol", "old", true},
		{"a wrong one for it", "carol", "ol", false},
		{"an empty one that is right, which lets nobody in", "d ave", "", false},
		{"the hash", "alice", "$7$101$wiwrPF+Us/1VzWQU$", false},
		{"a hash for SCRAM", "erin", "pencil", true},
		{"a wrong one for it", "erin", "pencils", false},
		{"an unknown user", "zoe", "secret", false},
		{"an empty user name", "", "secret", false},
		{"another case", "Alice", "secret", false},
		{"a user name with spaces around", " alice", "secret", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := connect(tt.user, tt.password)
			err := p.Authenticate(t.Context(), r)
			if tt.ok {
				require.NoError(t, err)
				require.Equal(t, tt.user, r.Grant.Identity.Principal)
				return
			}
			require.Equal(t, packets.BadUserNameOrPassword, packets.CodeOf(err))
			require.Equal(t, &hooks.Grant{}, r.Grant)
		})
	}
	require.ErrorIs(t, p.Authenticate(t.Context(), connect("-", "secret")), hooks.ErrAbstain)
	require.Equal(t, packets.BadUserNameOrPassword,
		packets.CodeOf(auth.NewPasswords(nil).Authenticate(t.Context(), connect("u", "p"))))
	require.Equal(t, packets.BadUserNameOrPassword,
		packets.CodeOf(auth.NewPasswords(new(auth.Users)).
			Authenticate(t.Context(), connect("u", "p"))))
}

func TestStaticUsersGetTheirGrant(t *testing.T) {
	grant := &hooks.Grant{Identity: hooks.Identity{Roles: []string{"staff"}}, MountPoint: "x/"}
	other := &hooks.Grant{Identity: hooks.Identity{Principal: "account 7"}}
	users, err := auth.NewUsers([]auth.User{
		{Name: "a", Hash: auth.Hash("p", 1), Grant: grant},
		{Name: "b", Hash: auth.Hash("p", 1), Grant: other}})
	require.NoError(t, err)
	require.Equal(t, 2, users.Len())
	p := auth.NewPasswords(users)

	r := connect("a", "p")
	require.NoError(t, p.Authenticate(t.Context(), r))
	require.Equal(t, &hooks.Grant{Identity: hooks.Identity{Principal: "a",
		Roles: []string{"staff"}}, MountPoint: "x/"}, r.Grant)
	require.Empty(t, grant.Identity.Principal, "the user's own Grant is left as it is")
	r = connect("b", "p")
	require.NoError(t, p.Authenticate(t.Context(), r))
	require.Equal(t, other, r.Grant)
}

func TestHash(t *testing.T) {
	hash := auth.Hash("p", 0)
	require.True(t, strings.HasPrefix(hash, "$7$210000$"), hash)
	require.NotEqual(t, hash, auth.Hash("p", 0), "each has its own salt")
	salt, err := base64.StdEncoding.DecodeString(strings.Split(hash, "$")[3])
	require.NoError(t, err)
	require.Len(t, salt, 12, "Mosquitto takes no other")
	require.True(t, strings.HasPrefix(auth.HashSCRAM("p", 0), "SCRAM-SHA-256$15000:"))
}

func TestBadUsers(t *testing.T) {
	good := auth.Hash("p", 1)
	salt, key := "c2FsdA==", strings.Split(good, "$")[4]
	for _, tt := range []struct{ name, line, want string }{
		{"no colon", "alice", "no colon after the user name"},
		{"no name", ":" + good, "an empty user name"},
		{"a name of spaces", "  :" + good, "an empty user name"},
		{"a plain password", "alice:secret",
			"in no known form; mosquitto_passwd -U hashes plain ones"},
		{"no password", "alice:", "in no known form"},
		{"a name twice", "bob:" + good, "this user name is there already"},
		{"another kind of hash", "alice:$2b$10$abcdefghijklmnopqrstuv", "in no known form"},
		{"no iterations", "alice:$7$" + salt + "$" + key, "iterations, not 1 to 10000000"},
		{"zero iterations", "alice:$7$0$" + salt + "$" + key, `"0" iterations`},
		{"too many iterations", "alice:$7$10000001$" + salt + "$" + key, `"10000001" iterations`},
		{"no salt", "alice:$7$101$$" + key, "the salt of the hash is not base64"},
		{"a bad salt", "alice:$6$!$" + key, "the salt of the hash is not base64"},
		{"no key", "alice:$7$101$" + salt, "the hash does not end with 64 bytes"},
		{"a short key", "alice:$6$" + salt + "$c2FsdA==", "the hash does not end with 64 bytes"},
		{"more after the key", "alice:" + good + "$x", "the hash does not end with 64 bytes"},
		{"SCRAM without iterations", "alice:SCRAM-SHA-256$" + salt, "iterations"},
		{"SCRAM with bad base64", "alice:SCRAM-SHA-256$4096:!$" + salt + ":" + salt,
			"the hash is not base64"},
		{"SCRAM with short keys", "alice:SCRAM-SHA-256$4096:" + salt + "$" + salt + ":" + salt,
			"not the length of a SHA-256"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := auth.ParseUsers(strings.NewReader("bob:"+good+"\n"+tt.line+"\n"), "f")
			require.ErrorContains(t, err, "f:2: ")
			require.ErrorContains(t, err, tt.want)
			require.NotContains(t, err.Error(), "secret", "a password has no place in a message")
		})
	}
	_, err := auth.NewUsers([]auth.User{{Name: "u", Hash: "x"}})
	require.ErrorContains(t, err, `auth: user "u": the password is in no known form`)
	broken := errors.New("broken")
	_, err = auth.NewUsers([]auth.User{{Name: "u", Hash: "x"}},
		func(string) (auth.Verifier, error) { return nil, broken })
	require.ErrorIs(t, err, broken)
}

func TestUnknownUsersCostAsMuchAsKnownOnes(t *testing.T) {
	checked := map[string]int{} // by hash
	scheme := func(hash string) (auth.Verifier, error) {
		return func(password []byte) bool {
			checked[hash]++
			return string(password) == "p"
		}, nil
	}
	var list []auth.User
	for i := range 8 {
		list = append(list, auth.User{Name: fmt.Sprint("user", i), Hash: fmt.Sprint("hash", i)})
	}
	users, err := auth.NewUsers(list, scheme)
	require.NoError(t, err)
	p := auth.NewPasswords(users)

	require.NoError(t, p.Authenticate(t.Context(), connect("user3", "p")))
	require.Equal(t, map[string]int{"hash3": 1}, checked)
	clear(checked)
	for range 5 {
		require.Error(t, p.Authenticate(t.Context(), connect("nobody", "p")),
			"even if the password is that of whom stands in")
	}
	require.Len(t, checked, 1, "it is always the same one that stands in")
	for _, n := range checked {
		require.Equal(t, 5, n)
	}
	clear(checked)
	for i := range 200 {
		require.Error(t, p.Authenticate(t.Context(), connect(fmt.Sprint("nobody", i), "q")))
	}
	require.Greater(t, len(checked), 4, "for different names different ones do")
}

// Users whose passwords take different work: which of them stands in for a name is the same after a
// restart, and after a change of the users.
func TestWhoStandsInStaysTheSame(t *testing.T) {
	cost := "" // of the last check
	scheme := func(hash string) (auth.Verifier, error) {
		return func([]byte) bool { cost = hash[:5]; return false }, nil
	}
	var list []auth.User
	costs := func() (of []string) {
		users, err := auth.NewUsers(list, scheme)
		require.NoError(t, err)
		p := auth.NewPasswords(users)
		require.NoError(t, p.SetSecret([]byte("sixteen bytes at least")))
		for i := range 200 {
			require.Error(t, p.Authenticate(t.Context(), connect(fmt.Sprint("nobody", i), "p")))
			of = append(of, cost)
		}
		return of
	}
	for i := range 40 {
		list = append(list, auth.User{Name: fmt.Sprint("user", i),
			Hash: []string{"cheap", "dear "}[i%2] + fmt.Sprint(i*7919%100)})
	}
	before := costs()
	require.Contains(t, before, "cheap")
	require.Contains(t, before, "dear ")
	require.Equal(t, before, costs())
	list = append(list, auth.User{Name: "new", Hash: "cheap50"})
	changed := 0
	for i, c := range costs() {
		if c != before[i] {
			changed++
		}
	}
	require.LessOrEqual(t, changed, 10)
}

func TestChecksLeaveProcessorsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		under, most := 0, 0
		release := make(chan struct{})
		lock := make(chan struct{}, 1)
		scheme := func(string) (auth.Verifier, error) {
			return func([]byte) bool {
				lock <- struct{}{}
				under++
				most = max(most, under)
				<-lock
				<-release
				lock <- struct{}{}
				under--
				<-lock
				return true
			}, nil
		}
		users, err := auth.NewUsers([]auth.User{{Name: "u", Hash: "h"}}, scheme)
		require.NoError(t, err)
		p := auth.NewPasswords(users)
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan error, 100)
		for range 50 {
			go func() { results <- p.Authenticate(t.Context(), connect("u", "p")) }()
			go func() { results <- p.Authenticate(ctx, connect("u", "p")) }()
		}
		synctest.Wait()
		cancel() // some of the clients go away while they wait
		synctest.Wait()
		close(release)
		gone := 0
		for range 100 {
			if err := <-results; err != nil {
				require.ErrorIs(t, err, context.Canceled)
				require.Equal(t, packets.ServerBusy, packets.CodeOf(err),
					"the password is neither right nor wrong")
				gone++
			}
		}
		require.Equal(t, max(1, runtime.GOMAXPROCS(0)/2), most)
		require.LessOrEqual(t, gone, 50)
		require.Positive(t, gone, "a client that has gone is not checked")
	})
}

// An address that tries many passwords loses those that wait for it, not the clients of others.
func TestAFullLineRefusesTheAddressWithTheMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		scheme := func(string) (auth.Verifier, error) {
			return func([]byte) bool { <-release; return true }, nil
		}
		users, err := auth.NewUsers([]auth.User{{Name: "u", Hash: "h"}}, scheme)
		require.NoError(t, err)
		p := auth.NewPasswords(users)
		from := func(ip string, known bool) error {
			r := connect("u", "p")
			r.Client.RemoteAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1))
			r.Known = known
			return p.Authenticate(t.Context(), r)
		}
		var all sync.WaitGroup
		var busy atomic.Int64
		for i := range 2000 {
			all.Go(func() { // waited for below
				if err := from(fmt.Sprintf("2001:db8::%x", i), false); err != nil {
					require.Equal(t, packets.ServerBusy, packets.CodeOf(err))
					busy.Add(1)
				}
			})
		}
		synctest.Wait()
		require.EqualValues(t, 2000-1024-max(1, runtime.GOMAXPROCS(0)/2), busy.Load())
		all.Go(func() { require.NoError(t, from("2001:db8:0:1::1", false)) })
		all.Go(func() {
			require.NoError(t, from("2001:db8::1", true),
				"known ones have a line of their own")
		})
		synctest.Wait()
		require.EqualValues(t, 2000-1024-max(1, runtime.GOMAXPROCS(0)/2)+1, busy.Load())
		close(release)
		all.Wait()
	})
}

func TestPasswordFileReload(t *testing.T) {
	name := filepath.Join(t.TempDir(), "passwords")
	write := func(s string) { require.NoError(t, os.WriteFile(name, []byte(s), 0o600)) }
	_, err := auth.Open(name)
	require.ErrorIs(t, err, os.ErrNotExist)
	write("alice\n")
	_, err = auth.Open(name)
	require.ErrorContains(t, err, name+":1: no colon")

	write(mosquittoFile)
	f, err := auth.Open(name)
	require.NoError(t, err)
	accepts := func(user, password string) bool {
		return f.Authenticate(t.Context(), connect(user, password)) == nil
	}
	require.True(t, accepts("alice", "secret"))

	write("frank:" + auth.Hash("p", 1) + "\nalice:plain\n")
	e, ok := errors.AsType[*hooks.ParseError](f.Reload())
	require.True(t, ok)
	require.Equal(t, 2, e.Line)
	require.True(t, accepts("alice", "secret"), "the users stay as they were")
	require.False(t, accepts("frank", "p"), "nothing is taken of a bad file")
	require.NoError(t, os.Remove(name))
	require.ErrorIs(t, f.Reload(), os.ErrNotExist)
	require.True(t, accepts("alice", "secret"))

	write("frank:" + auth.Hash("p", 1) + "\n")
	require.NoError(t, f.Reload())
	require.False(t, accepts("alice", "secret"))
	require.True(t, accepts("frank", "p"))
	write("")
	require.NoError(t, f.Reload())
	require.False(t, accepts("frank", "p"), "an empty file has no users")
}

func TestPasswordFileWatch(t *testing.T) {
	name := filepath.Join(t.TempDir(), "passwords")
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	synctest.Test(t, func(t *testing.T) {
		f, err := auth.Open(name)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		go f.Watch(ctx, 0, nil) // the bubble waits for it
		require.NoError(t, os.WriteFile(name, []byte("frank:"+auth.Hash("p", 1)+"\n"), 0o600))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.NoError(t, f.Authenticate(t.Context(), connect("frank", "p")))
		cancel()
	})
}

func TestFilesOfTheRealTool(t *testing.T) {
	tool, err := exec.LookPath("mosquitto_passwd")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no mosquitto_passwd")
		}
		t.Skip("there is no mosquitto_passwd: ", err)
	}
	name := filepath.Join(t.TempDir(), "passwords")
	run := func(args ...string) {
		out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	run("-c", "-b", name, "alice", "secret")
	run("-b", name, "bob", "")
	run("-H", "sha512", "-b", name, "old one", "$7$x")
	run("-b", name, "alice", "changed")
	f, err := auth.Open(name)
	require.NoError(t, err)
	accepts := func(user, password string) bool {
		return f.Authenticate(t.Context(), connect(user, password)) == nil
	}
	require.True(t, accepts("alice", "changed"))
	require.False(t, accepts("alice", "secret"))
	require.False(t, accepts("bob", ""), "an empty password lets nobody in")
	require.False(t, accepts("bob", "-"))
	require.True(t, accepts("old one", "$7$x"))

	run("-D", name, "alice")
	require.NoError(t, f.Reload())
	require.False(t, accepts("alice", "changed"))
	require.NoError(t, os.WriteFile(name, []byte("carl:plain\ndana:also plain\n"), 0o600))
	require.Error(t, f.Reload(), "plain passwords are not taken")
	run("-U", name)
	require.NoError(t, f.Reload())
	require.True(t, accepts("carl", "plain"))
	require.True(t, accepts("dana", "also plain"))
}

func FuzzParseUsers(f *testing.F) {
	f.Add(mosquittoFile)
	f.Add("u:" + auth.HashSCRAM("p", 1))
	f.Fuzz(func(t *testing.T, text string) {
		us, err := auth.ParseUsers(strings.NewReader(text), "f")
		if _, ok := errors.AsType[*hooks.ParseError](err); err != nil && (!ok || us != nil) {
			t.Errorf("%T is no *ParseError", err)
		}
	})
}
