package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// pass runs the command with a password on standard input.
func pass(password string, args ...string) error {
	return passwd(args, strings.NewReader(password+"\n"), new(bytes.Buffer))
}

func TestPasswdChangesAFileThatTheServerReads(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwords")
	require.NoError(t, pass("pencil", "-iterations", "5", "create", file, "jane"))
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.ErrorContains(t, pass("x", "create", file, "joe"), "exists")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, append([]byte("# people\n"), text...), 0o600))

	require.NoError(t, pass("b", "-hash", "bcrypt", "-iterations", "4", "add", file, "by bcrypt"))
	require.NoError(t, pass("a", "-hash", "argon2id", "-iterations", "1", "add", file, "argon"))
	require.NoError(t, pass("s", "-hash", "scram", "-iterations", "4096", "add", file, "scram"))
	require.NoError(t, pass("pen", "-iterations", "5", "add", file, "joe"))
	addrs, _ := start(t, "-listen", "127.0.0.1:0", "-password-file", file)
	comes := func(name, password string) bool {
		nc := dial(t, addrs[0])
		defer nc.Close()
		_, code := connect(t, nc, login{"c of " + name, name, password})
		return code == packets.Success
	}
	for name, password := range map[string]string{"jane": "pencil", "by bcrypt": "b", "argon": "a",
		"scram": "s", "joe": "pen"} {
		require.True(t, comes(name, password), name)
		require.False(t, comes(name, password+"x"), name)
	}

	require.NoError(t, pass("brush", "-iterations", "5", "update", file, "jane"))
	require.NoError(t, pass("", "delete", file, "joe"))
	eventually(t, "the server has read it again", func() bool {
		return comes("jane", "brush") &&
			!comes("joe", "pen")
	})
	require.True(t, comes("argon", "a"), "the others are there still")
	text, err = os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(text), "# people\njane:$7$5$"), "%s", text)
	_, err = os.Stat(file + ".new")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestPasswdRefusesWhatMakesNoSense(t *testing.T) {
	file := write(t, "passwords", "jane:"+auth.Hash("pencil", 1))
	before, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, tt := range []struct {
		password string
		args     []string
		want     string
	}{
		{"x", []string{"add", file, "jane"}, "already"},
		{"x", []string{"update", file, "joe"}, "no user"},
		{"", []string{"delete", file, "joe"}, "no user"},
		{"", []string{"add", file, "joe"}, "empty"},
		{"x", []string{"add", file, "a:b"}, "colon"},
		{"x", []string{"add", file, "a\nb"}, "control"},
		{"x", []string{"add", file, "#a"}, "begin with #"},
		{"x", []string{"add", file, ""}, "empty"},
		{"x", []string{"add", file + "x", "a"}, "no such file"},
		{"x", []string{"rename", file, "a"}, "expected create, add, update or delete"},
		{"x", []string{"add", file}, "expected three words"},
		{"x", []string{"-hash", "md5", "add", file, "a"}, "expected pbkdf2"},
		{"x", []string{"-iterations", "99999999", "add", file, "a"}, "iterations"},
		{strings.Repeat("x", 73), []string{"-hash", "bcrypt", "add", file, "a"}, "72 bytes"},
	} {
		require.ErrorContains(t, pass(tt.password, tt.args...), tt.want, "%q", tt.args)
		after, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, before, after)
	}
	write(t, "x", "")
	require.NoError(t, os.WriteFile(file+".new", nil, 0o600))
	require.ErrorContains(t, pass("x", "add", file, "joe"), "changed by somebody else")
}

// A link stays one: what it leads to is replaced.
func TestPasswdFollowsALink(t *testing.T) {
	file := write(t, "passwords", "jane:"+auth.Hash("pencil", 1))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(file, link))
	require.NoError(t, pass("x", "-iterations", "5", "add", link, "joe"))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(text), "joe:")
	_, err = os.Readlink(link)
	require.NoError(t, err)
}

// Mosquitto takes what passwd makes.
func TestMosquittoTakesWhatPasswdMakes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwords")
	require.NoError(t, pass("pencil", "-iterations", "101", "create", file, "jane"))
	guarded, _ := startMosquitto(t, "false", file, "")
	login{"c", "jane", "pencil"}.at(t, dial(t, guarded))
	_, code := connect(t, dial(t, guarded), login{"c", "jane", "x"})
	require.True(t, code.Failed())
}

// The server, which is not root, can still read the file after it was changed.
func TestPasswdKeepsWhoMayRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	require.NoError(t, passwd([]string{"create", file, "ann"}, strings.NewReader("secret\n"),
		io.Discard))
	require.NoError(t, os.Chmod(file, 0o644))
	var out bytes.Buffer
	require.NoError(t, passwd([]string{"add", file, "ben"}, strings.NewReader("secret\n"), &out))
	require.Contains(t, out.String(), "note: everybody could read "+file)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode().Perm(), "its group, and nobody else")
	out.Reset()
	require.NoError(t, passwd([]string{"add", file, "cy"}, strings.NewReader("secret\n"), &out))
	require.Empty(t, out.String(), "this time nobody has lost anything")
}

// Flags that would hold for no listener are refused, and not dropped.
func TestAccessFlagsBesidePerListenerSettings(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "m.conf")
	text := "per_listener_settings true\nlistener 0 127.0.0.1\nallow_anonymous true\n"
	require.NoError(t, os.WriteFile(conf, []byte(text), 0o600))
	_, err := parse([]string{"-config", conf, "-acl-file", "rules"})
	require.ErrorContains(t, err, "below each listener")
	_, err = parse([]string{"-config", conf})
	require.NoError(t, err)
}
