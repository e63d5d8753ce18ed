package crash

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A test that cannot fail proves nothing: with each of the faults that the build tags plant, the
// tests of crashes have to find something.
func TestPlantedFaultsAreFound(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the broker several times")
	}
	for _, tt := range []struct{ name, tag, pkg, run string }{
		{"the simulation finds acknowledgements before the commit", "canary_ack",
			"github.com/dunlin-mqtt/dunlin", "TestModel"},
		{"the simulation finds PUBRECs that are not recorded", "canary_release",
			"github.com/dunlin-mqtt/dunlin", "TestModel"},
		{"the kill test finds acknowledgements before the commit", "canary_ack",
			"github.com/dunlin-mqtt/dunlin/internal/crash", "TestKill"},
		{"the kill test finds PUBRECs that are not recorded", "canary_release",
			"github.com/dunlin-mqtt/dunlin/internal/crash", "TestKill"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			findsPlanted(t, tt.tag, tt.pkg, tt.run)
		})
	}
}

// findsPlanted checks that a test finds the fault that the tag plants.
func findsPlanted(t *testing.T, tag, pkg, run string) {
	t.Helper()
	cmd := exec.Command("go", "test", "-count=1", "-tags", tag, "-run", "^"+run+"$", pkg)
	cmd.Env = append(os.Environ(), "DUNLIN_KILLS=20")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("nothing was found:\n%s", out)
	}
	if !strings.Contains(string(out), "never got") && !strings.Contains(string(out), " times") {
		t.Fatalf("it failed for another reason:\n%s", out)
	}
}
