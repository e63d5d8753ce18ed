package pahotest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// lamp is a unit test of fifteen lines, as a user of the library would write it.
const lamp = `package lamp

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/mqtttest"
	mqtt "github.com/eclipse/paho.mqtt.golang"
)

func TestLampReportsThatItIsOn(t *testing.T) {
	b := mqtttest.NewBroker(t)
	c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(b.URL()).SetClientID("lamp"))
	c.Connect().Wait()
	defer c.Disconnect(250)
	c.Subscribe("lamp/set", 1, func(c mqtt.Client, m mqtt.Message) { c.Publish("lamp/state", 1, true, m.Payload()) }).Wait()
	b.Publish("lamp/set", "on")
	b.WaitFor(t, "lamp/state", mqtttest.Payload("on"))
}
`

// A module outside of the workspace that requires the library, and a client, and nothing else of
// ours.
func TestAFreshModule(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	require.NoError(t, err)
	dir := t.TempDir()
	goMod := "module example.test/lamp\n\ngo 1.26.0\n\n"
	for _, m := range usedHere(t) {
		goMod += "require " + m + "\n"
	}
	goMod += "require github.com/dunlin-mqtt/dunlin v0.0.0\nreplace " +
		"github.com/dunlin-mqtt/dunlin => " + root + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte(goMod), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lamp_test.go"), []byte(lamp), 0o644))
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		// The modules that this test was built from are on the machine, and checked. Nothing else
		// is needed, and nothing is asked of the network.
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod", "GOPROXY=off",
			"GOSUMDB=off")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "go %s:\n%s", strings.Join(args, " "), out)
		return string(out)
	}
	out := run("test", "-v", "./...")
	require.Contains(t, out, "--- PASS: TestLampReportsThatItIsOn")

	// What the library brings along is what it says.
	for pkg := range strings.FieldsSeq(run("list", "-deps", "-f",
		"{{if not .Standard}}{{.ImportPath}}{{end}}", "github.com/dunlin-mqtt/dunlin")) {
		allowed := false
		for _, prefix := range []string{"github.com/dunlin-mqtt/dunlin", "github.com/google/btree",
			"golang.org/x/sync"} {
			allowed = allowed || pkg == prefix || strings.HasPrefix(pkg, prefix+"/")
		}
		require.True(t, allowed, "package dunlin depends on %s", pkg)
	}
}

// usedHere returns the modules that this test is built from, each with its version, except ours. In
// a workspace they may be newer than those of this module's go.mod, and those of go.mod are then
// not on a machine that was clean.
func usedHere(t *testing.T) (modules []string) {
	t.Helper()
	const each = "{{with .Module}}{{if .Version}}{{.Path}} {{.Version}}{{end}}{{end}}"
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-test", "-f", each, ".").
		Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		m := strings.TrimSpace(line)
		if m != "" && !strings.HasPrefix(m, "github.com/dunlin-mqtt/") &&
			!slices.Contains(modules, m) {
			modules = append(modules, m)
		}
	}
	require.NotEmpty(t, modules)
	return modules
}
