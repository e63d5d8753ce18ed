package pahotest

import (
	"os"
	"os/exec"
	"path/filepath"
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

// A module outside of the workspace that requires the library, and a client, and nothing else of ours.
func TestAFreshModule(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	require.NoError(t, err)
	sums, err := os.ReadFile("go.sum")
	require.NoError(t, err)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"lamp_test.go": lamp,
		"go.sum":       string(sums),
		"go.mod": `module example.test/lamp

go 1.26.0

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/eclipse/paho.mqtt.golang v1.5.1
)

replace github.com/dunlin-mqtt/dunlin => ` + root + "\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		// What the test module here needs has been downloaded, and that is all that a fresh one needs.
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod", "GOPROXY=off")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "go %s:\n%s", strings.Join(args, " "), out)
		return string(out)
	}
	out := run("test", "-v", "./...")
	require.Contains(t, out, "--- PASS: TestLampReportsThatItIsOn")

	// What the library brings along is what it says.
	for pkg := range strings.FieldsSeq(run("list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "github.com/dunlin-mqtt/dunlin")) {
		allowed := false
		for _, prefix := range []string{"github.com/dunlin-mqtt/dunlin", "github.com/google/btree", "golang.org/x/sync"} {
			allowed = allowed || pkg == prefix || strings.HasPrefix(pkg, prefix+"/")
		}
		require.True(t, allowed, "package dunlin depends on %s", pkg)
	}
}
