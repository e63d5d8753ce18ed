package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// docs/migrating.md has commands that copy retained messages from Mosquitto. They copy all of them,
// with their QoS and whatever bytes they have.
func TestTheCopyOfRetainedMessages(t *testing.T) {
	for _, name := range []string{"mosquitto", "mosquitto_sub", "mosquitto_pub", "xxd", "sh"} {
		program(t, name)
	}
	page, err := os.ReadFile("../../docs/migrating.md")
	require.NoError(t, err)
	commands := regexp.MustCompile(`(?ms)^    mosquitto_sub .*?^    done$`).FindString(string(page))
	require.NotEmpty(t, commands)
	passwords := users(t, "admin", "PASSWORD")
	theirs, ours := freePort(t), freePort(t)
	config := "listener " + theirs + " 127.0.0.1\npassword_file " + passwords + "\n"
	if os.Geteuid() == 0 {
		config = "user root\n" + config
	}
	_, ok := runs(t, "127.0.0.1:"+theirs, "-c", write(t, "c", config))
	require.True(t, ok)
	start(t, "-listen", "127.0.0.1:"+ours, "-password-file", passwords)
	for topic, about := range map[string][2]string{"home/room 1/°C": {"0", "21 °C"},
		"at/least": {"1", "a\x00b\nc"}, "exactly": {"2", " x "}} {
		cmd := exec.CommandContext(t.Context(), "mosquitto_pub", "-p", theirs, "-u", "admin", "-P",
			"PASSWORD", "-r", "-q", about[0], "-t", topic, "-s")
		cmd.Stdin = strings.NewReader(about[1])
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	// the time that the page gives is for a server elsewhere
	run := strings.NewReplacer("1883", theirs, "1884", ours, "-W 5", "-W 1").Replace(commands)
	out, err := exec.CommandContext(t.Context(), "sh", "-c", run).CombinedOutput()
	require.NoError(t, err, "%s", out)
	cmd := exec.CommandContext(t.Context(), "mosquitto_sub", "-p", ours, "-u", "admin", "-P",
		"PASSWORD", "-q", "2", "-t", "#", "-C", "3", "-W", "10", "-F", "%r %q %x %t")
	got, err := cmd.Output()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"1 0 323120c2b043 home/room 1/°C", "1 1 6100620a63 at/least",
		"1 2 207820 exactly"}, strings.Split(strings.TrimSpace(string(got)), "\n"))
}
