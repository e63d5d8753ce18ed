package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// program returns the path of one that Debian's packages mosquitto and mosquitto-clients bring.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path = "/usr/sbin/" + name; exists(path) {
			return path
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("there is no %s to compare with", name)
		}
		t.Skipf("there is no %s to compare with: %v", name, err)
	}
	return path
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// users makes a password file with mosquitto_passwd. Names and passwords alternate.
func users(t *testing.T, of ...string) string {
	t.Helper()
	passwd := program(t, "mosquitto_passwd")
	file := filepath.Join(t.TempDir(), "passwords")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for i := 0; i < len(of); i += 2 {
		out, err := exec.CommandContext(t.Context(), passwd, "-b", file, of[i],
			of[i+1]).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	return file
}

func TestPasswordFile(t *testing.T) {
	file := users(t, "jane", "pencil", "joe", "päß:wörd")
	for _, tt := range []struct {
		name      string
		anonymous string
		login     login
		want      packets.ReasonCode
	}{
		{"the right password", "false", login{"c", "jane", "pencil"}, packets.Success},
		{"a password with a colon and beyond ASCII", "false", login{"c", "joe", "päß:wörd"},
			packets.Success},
		{"a wrong password", "false", login{"c", "jane", "pencils"}, packets.BadUserNameOrPassword},
		{"an empty password", "false", login{"c", "jane", ""}, packets.BadUserNameOrPassword},
		{"no password", "false", login{"c", "jane", "-"}, packets.BadUserNameOrPassword},
		{"nobody's name", "false", login{"c", "jack", "pencil"}, packets.BadUserNameOrPassword},
		{"an empty name", "false", login{"c", "", "pencil"}, packets.NotAuthorized},
		{"an empty name where no name is allowed", "true", login{"c", "", "pencil"},
			packets.Success},
		{"no name", "false", login{"c", "-", "-"}, packets.NotAuthorized},
		{"no name where that is allowed", "true", login{"c", "-", "-"}, packets.Success},
		{"a wrong password where no name is allowed", "true", login{"c", "jane", "x"},
			packets.BadUserNameOrPassword},
		{"nobody's name where no name is allowed", "true", login{"c", "jack", "x"},
			packets.BadUserNameOrPassword},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addrs, _ := start(t, "-listen", "127.0.0.1:0", "-password-file", file,
				"-allow-anonymous="+tt.anonymous)
			_, code := connect(t, dial(t, addrs[0]), tt.login)
			require.Equal(t, tt.want, code)
		})
	}
}

func TestNobodyIsAccepted(t *testing.T) {
	addrs, _ := start(t, "-listen", "127.0.0.1:0", "-allow-anonymous=false")
	for _, l := range []login{{"c", "-", "-"}, {"c", "jane", "-"}, {"c", "jane", "pencil"}} {
		_, code := connect(t, dial(t, addrs[0]), l)
		require.Equal(t, packets.NotAuthorized, code, "%+v", l)
	}
}

func TestAPasswordFileAloneLetsNobodyAnonymousIn(t *testing.T) {
	file := write(t, "passwords", "jane:"+auth.Hash("pencil", 1))
	for _, args := range [][]string{
		{"-password-file", file},
		{"-config", write(t, "server.conf", "password-file "+file)},
	} {
		addrs, printed := start(t, append(args, "-listen", "127.0.0.1:0")...)
		for _, l := range []login{{"c", "-", "-"}, {"c", "", "pencil"}} {
			_, code := connect(t, dial(t, addrs[0]), l)
			require.Equal(t, packets.NotAuthorized, code, "%q %+v", args, l)
		}
		_, code := connect(t, dial(t, addrs[0]), login{"c", "jane", "pencil"})
		require.Equal(t, packets.Success, code)
		require.Contains(t, printed.String(), "users in "+file, "the log says who may connect")
	}
}

// The secret of -password-secret is made once. With it SCRAM tells a name without a user the same
// salt after a restart.
func TestAPasswordSecretIsKept(t *testing.T) {
	file := write(t, "passwords", "jane:"+auth.HashSCRAM("pencil", 1))
	told := func(args ...string) string {
		addrs, _ := start(t, append(args, "-listen", "127.0.0.1:0", "-password-file", file)...)
		nc := dial(t, addrs[0])
		p := &packets.Connect{Version: packets.V5, ClientID: "c", CleanStart: true}
		p.Properties = p.Properties.AppendText(packets.AuthenticationMethod, auth.SCRAMSHA256).
			AppendBytes(packets.AuthenticationData, []byte("n,,n=nobody,r=x"))
		wire, err := p.Append(nil, p.Version)
		require.NoError(t, err)
		_, err = nc.Write(wire)
		require.NoError(t, err)
		r := packets.NewReader(nc, packets.Limits{})
		r.SetVersion(packets.V5)
		answer, err := r.ReadPacket()
		require.NoError(t, err)
		data, _ := answer.(*packets.Auth).Properties.Bytes(packets.AuthenticationData)
		_, salt, _ := strings.Cut(string(data), ",")
		require.NotEmpty(t, salt)
		return salt
	}
	secret := filepath.Join(t.TempDir(), "secret")
	first := told("-password-secret", secret)
	require.Equal(t, first, told("-password-secret", secret))
	require.NotEqual(t, first, told())
}

func TestWithoutCredentialsOnlyThisMachineMayConnect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	addrs, printed := start(t, "-listen", "127.0.0.1:0", "-listen", "unix:"+path, "-ws",
		"localhost:0")
	_, code := connect(t, dial(t, addrs[0]), login{"c", "-", "-"})
	require.Equal(t, packets.Success, code)
	require.Contains(t, printed.String(), "local only mode")

	for _, args := range [][]string{
		{"-listen", "0.0.0.0:0"},
		{"-listen", ":0"},
		{"-listen", "127.0.0.1:0", "-ws", "0.0.0.0:0"},
		{"-quic", "0.0.0.0:0"},
	} {
		o, err := parse(args)
		require.NoError(t, err)
		o.logTo(io.Discard)
		err = o.serve(t.Context())
		require.ErrorContains(t, err, "not listening on ", "%q", args)
		require.ErrorContains(t, err, "-allow-anonymous", "the error says what opens it")
		require.ErrorContains(t, err, "-password-file")
	}
	for _, args := range [][]string{
		{"-listen", "127.0.0.1:0", "-proxy-protocol", "2"},
		{"-ws", "127.0.0.1:0", "-ws-trusted-proxy", "127.0.0.1"},
	} {
		_, err := parse(args)
		require.ErrorContains(t, err, "clients from elsewhere", "%q", args)
	}
	start(t, "-listen", ":0", "-allow-anonymous") // said by name it listens everywhere
}

// TestReload changes both files under connected clients: on SIGHUP, and because they look
// different.
func TestReload(t *testing.T) {
	passwords := write(t, "passwords", "jane:"+auth.Hash("pencil", 1))
	rules := write(t, "rules", "user jane", "topic a")
	addrs, printed := start(t, "-listen", "127.0.0.1:0", "-password-file", passwords, "-acl-file",
		rules, "-allow-anonymous=false")
	jane := login{"j", "jane", "pencil"}.at(t, dial(t, addrs[0]))
	require.Equal(t, packets.Success, jane.subscribe("a"))
	require.Equal(t, packets.NotAuthorized, jane.subscribe("b"))
	require.Equal(t, packets.NotAuthorized, jane.publish("b", "x"))

	replace := func(name, content string) {
		t.Helper()
		require.NoError(t, os.WriteFile(name+".new", []byte(content), 0o600))
		require.NoError(t, os.Rename(name+".new", name))
	}
	replace(rules, "user jane\ntopic b\n")
	replace(passwords, "jane:"+auth.Hash("brush", 1)+"\n")
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	eventually(t, "a publish to b is allowed", func() bool { return jane.publish("b", "x") < 0x80 })
	require.Equal(t, packets.NotAuthorized, jane.publish("a", "x"))
	eventually(t, "the new password is in force", func() bool {
		_, code := connect(t, dial(t, addrs[0]), login{"k", "jane", "brush"})
		return code == packets.Success
	})

	replace(rules, "user jane\ntopic c\n") // nobody says so
	eventually(t, "a publish to c is allowed", func() bool { return jane.publish("c", "x") < 0x80 })

	replace(rules, "user jane\ntopic #\nnonsense here\n")
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	eventually(t, "what is wrong is said with file and line", func() bool {
		return strings.Contains(printed.String(), rules+":3: ")
	})
	require.Equal(t, packets.NotAuthorized, jane.publish("d", "x"),
		"the rules from before are in force")
	require.Less(t, jane.publish("c", "x"), packets.UnspecifiedError)
}

func TestFilesThatMakeNoSense(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		say  string
	}{
		{"no password file", []string{"-password-file", "nowhere"}, "nowhere"},
		{"a password that is not hashed", []string{"-password-file",
			write(t, "passwords", "# comment", "jane:pencil")}, "passwords:2: "},
		{"no acl file", []string{"-acl-file", "nowhere"}, "nowhere"},
		{"an unknown word in the acl file", []string{"-acl-file",
			write(t, "rules", "topic a", "topics b")}, "rules:2: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse(tt.args)
			require.ErrorContains(t, err, tt.say)
		})
	}
}

func TestAuditLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit")
	rules := write(t, "rules", "topic a")
	addrs, _ := start(t, "-listen", "127.0.0.1:0", "-password-file",
		write(t, "passwords", "jane:"+auth.Hash("pencil", 1)), "-allow-anonymous", "-acl-file",
		rules, "-audit-log", file)
	_, code := connect(t, dial(t, addrs[0]), login{"c1", "jane", "wrong password"})
	require.True(t, code.Failed())
	c := login{"c2", "-", "-"}.at(t, dial(t, addrs[0]))
	require.True(t, c.publish("b", "x").Failed())
	require.False(t, c.subscribe("a").Failed())
	require.NoError(t, os.WriteFile(rules+".new", []byte("topic b\n"), 0o600))
	require.NoError(t, os.Rename(rules+".new", rules))
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	eventually(t, "everything is written down", func() bool {
		b, err := os.ReadFile(file)
		return err == nil &&
			containsAll(string(b), `"connect refused","client_id":"c1","user":"jane"`, `"code":134`,
				`"connect accepted","client_id":"c2"`,
				`"access denied"`, `"topic":"b"`, `"access revoked","client_id":"c2"`, `"topic":"a"`,
				`"reloaded","what":"acl file"`, `"reloaded","what":"password file"`)
	})
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NotContains(t, string(b), "wrong password")
}
