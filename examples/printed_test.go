// Package examples_test runs every example as its README says.
package examples_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/stretchr/testify/require"
)

// ports are the arguments that move an example away from its fixed ports. {} is a folder of the
// test.
var ports = map[string][]string{
	"metrics":   {"-http", "127.0.0.1:0"},
	"push":      {"-http", "127.0.0.1:0"},
	"several":   {"-listen", "127.0.0.1:0,127.0.0.1:0"},
	"unix":      {"-listen", "{}/s"},
	"webhook":   {"-api", "127.0.0.1:0"},
	"websocket": {"-http", "127.0.0.1:0"},
}

// elsewhere are the examples with a test of their own that runs the printed command, or without one
// to run.
var elsewhere = []string{"internal", "ownstore", "server", "unittest"}

// printing are those to which anybody may publish, and which print what was published.
var printing = []string{"basic", "tcp", "persistence", "several", "systemd", "unix"}

// Each example runs by the command that its README begins with: it answers -h, says what to type
// next, prints what happens, and ends with exit code 0 on Control-C.
func TestExamplesRunAsPrinted(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a test cannot press Control-C on Windows")
	}
	pages, err := filepath.Glob("*/README.md")
	require.NoError(t, err)
	require.NotEmpty(t, pages)
	for _, page := range pages {
		name := filepath.Dir(page)
		if slices.Contains(elsewhere, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runAsPrinted(t, name, page)
		})
	}
}

// command finds environment and arguments in the first command of a page.
var command = regexp.MustCompile(`(?m)^    (?:cd \S+ && )?((?:[A-Z_]+=\S+ )*)go run (?:\./examples/\S+|\.)(.*)$`)

func runAsPrinted(t *testing.T, name, page string) {
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	found := command.FindSubmatch(text)
	require.NotNil(t, found, "%s has no command", page)
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil && !inWorkspace(t) {
		t.Skip("a module of its own, and this is not the workspace")
	}
	dir := short(t)
	program := filepath.Join(dir, name+".exe")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	build.Dir = name
	said, err := build.CombinedOutput()
	require.NoError(t, err, "%s", said)

	help, err := exec.CommandContext(t.Context(), program, "-h").CombinedOutput()
	require.NoError(t, err, "-h ends with exit code 0")
	require.Contains(t, string(help), "  -listen ")

	args := strings.Fields(string(found[2]))
	if !slices.Contains([]string{"several", "unix"}, name) {
		args = append(args, "-listen", "127.0.0.1:0")
	}
	for _, a := range ports[name] {
		args = append(args, strings.ReplaceAll(a, "{}", dir))
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), strings.Fields(string(found[1]))...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	late := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() }) // then the lines end
	defer late.Stop()
	lines := bufio.NewScanner(out)
	addr := look(t, lines, `(?:listening on|serving|listens on|devices at) (\S+)`)
	look(t, lines, `^ +(mosquitto_\S+|curl|sqlite3) |^read: `)
	if slices.Contains(printing, name) {
		try.Connect(t, addr, "someone").Publish("hello/world", "hi")
		look(t, lines, "hello/world.* hi$")
	}
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	for lines.Scan() { // to its end
	}
	require.NoError(t, cmd.Wait(), "Control-C ends it with exit code 0; it said: %s", &complaints)
}

// look reads lines until one matches, and returns its first group.
func look(t *testing.T, lines *bufio.Scanner, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var all strings.Builder
	for lines.Scan() {
		if found := re.FindStringSubmatch(lines.Text()); found != nil {
			return found[len(found)-1]
		}
		fmt.Fprintln(&all, lines.Text())
	}
	t.Fatalf("no line like %q but\n%s", pattern, &all)
	return ""
}

// inWorkspace says whether the modules of the examples are there together with the root.
func inWorkspace(t *testing.T) bool {
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOWORK").Output()
	require.NoError(t, err)
	work := strings.TrimSpace(string(out))
	return work != "" && work != "off"
}

// short makes a folder with a short name, since the path of a unix socket has a limit.
func short(t *testing.T) string {
	dir, err := os.MkdirTemp("", "dunlin")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
