package doccheck

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const modulePath = "github.com/dunlin-mqtt/dunlin"

// published returns the folders of the nested modules that others may import.
func published(t *testing.T) (folders []string) {
	text, err := os.ReadFile(filepath.Join(root, "go.work"))
	require.NoError(t, err)
	for _, m := range regexp.MustCompile(`(?m)^\t\./(\S+)$`).FindAllStringSubmatch(string(text), -1) {
		top, _, _ := strings.Cut(m[1], "/")
		if top != "examples" && top != "internal" && m[1] != "mqtttest/pahotest" {
			folders = append(folders, m[1])
		}
	}
	slices.Sort(folders)
	require.NotEmpty(t, folders)
	return folders
}

// docs/release.md names every published module three times: in its table, where tags are set, and
// where the release is tried.
func TestThePageAboutReleasesNamesTheModules(t *testing.T) {
	page, want := pages(t)["docs/release.md"], published(t)
	rows := regexp.MustCompile("(?m)^\\| `…/(\\S+)` \\| `(\\S+)/v[0-9.]+` \\|$")
	var table []string
	for _, row := range rows.FindAllStringSubmatch(page, -1) {
		require.Equal(t, row[1], row[2])
		table = append(table, row[1])
	}
	require.Equal(t, want, table)
	loops := regexp.MustCompile(`for m in (.*); do`).FindAllStringSubmatch(page, -1)
	require.Len(t, loops, 2)
	require.Equal(t, strings.Join(want, " "), loops[0][1])
	require.Equal(t, `"" /`+strings.Join(want, " /"), loops[1][1])
}

// Each nested module builds in a module that requires it, outside of the workspace, and names what it
// needs in its own go.mod. In the workspace the go.mod of another module can hide that it does not.
func TestNestedModulesBuildForOutsiders(t *testing.T) {
	top, err := filepath.Abs(root)
	require.NoError(t, err)
	for _, folder := range published(t) {
		t.Run(folder, func(t *testing.T) {
			module := modulePath + "/" + folder
			goMod := fmt.Sprintf("module example.test/outsider\n\ngo 1.26.0\n\n"+
				"require %s v0.0.0\n\nreplace %s => %s\n\nreplace %s => %s\n", module, module,
				filepath.Join(top, folder), modulePath, top)
			own, err := os.ReadFile(filepath.Join(top, folder, "go.mod"))
			require.NoError(t, err)
			// the versions that the workspace has chosen are on the machine
			for _, m := range required(t, filepath.Join(top, folder)) {
				name, _, _ := strings.Cut(m, " ")
				require.Regexp(t, `(?m)^(require|\t) *`+regexp.QuoteMeta(name)+" v", string(own),
					"what it is built from stands in its go.mod")
				goMod += "require " + m + "\n"
			}
			dir := t.TempDir()
			for name, text := range map[string]string{"go.mod": goMod,
				"main.go": "package main\n\nimport _ \"" + module + "\"\n\nfunc main() {}\n"} {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
			}
			cmd := exec.CommandContext(t.Context(), "go", "vet", ".")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod", "GOPROXY=off",
				"GOSUMDB=off")
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}

// required returns the modules that a module is built from, each with its version, except ours.
func required(t *testing.T, folder string) (modules []string) {
	const each = "{{with .Module}}{{if .Version}}{{.Path}} {{.Version}}{{end}}{{end}}"
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", each, ".")
	cmd.Dir = folder
	out, err := cmd.Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		m := strings.TrimSpace(line)
		if m != "" && !strings.HasPrefix(m, modulePath) && !slices.Contains(modules, m) {
			modules = append(modules, m)
		}
	}
	return modules
}
