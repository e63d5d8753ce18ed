package dunlin

import (
	"bufio"
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// This file holds the shape of the source: who imports whom, how long files and functions are, and
// that each goroutine has somebody who waits for it.

const modulePath = "github.com/dunlin-mqtt/dunlin"

// What each package of the root module may import of this project; it and what is below it.
var allowedImports = []struct {
	pkg     string
	imports []string
}{
	{"packets", nil},
	{"listeners", []string{"listeners"}}, // what they share below listeners/internal
	// adapters of the whole broker stand above the root, which imports nothing of them
	{"hooks/admin", []string{"", "packets", "hooks"}},
	{"hooks/httpgw", []string{"", "packets", "hooks"}},
	{"hooks/internal/metrics", []string{"", "packets", "hooks"}},
	{"hooks", []string{"packets", "hooks"}},
	{"store", []string{"packets", "store", "internal"}},
	// the seam for several nodes: neither internal rooms nor the root
	{"cluster", []string{"packets", "store", "cluster"}},
	{"internal", []string{"packets", "hooks", "store", "internal"}},
	{"examples", []string{"", "packets", "hooks", "store", "listeners", "mqtttest", "examples"}},
	{"mqtttest", []string{"", "packets", "hooks", "store", "listeners", "internal", "mqtttest"}},
	// the root: not listeners, not mqtttest
	{"", []string{"packets", "hooks", "store", "internal"}},
}

// plainRoom needs the standard library only, and everybody but packets may import it.
const plainRoom = "internal/safelog"

// Every package that takes a Logger from the program makes it safe where it takes it: the broker
// logs on goroutines of its own, on which a panic would end the process.
func TestEachLoggerIsMadeSafe(t *testing.T) {
	takes, safe := map[string]bool{}, map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		test := strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "examples/")
		if err != nil || d.IsDir() || test || filepath.Ext(path) != ".go" {
			return err
		}
		text, err := os.ReadFile(path)
		dir := filepath.Dir(path)
		takes[dir] = takes[dir] || bytes.Contains(text, []byte("\tLogger *slog.Logger"))
		safe[dir] = safe[dir] || bytes.Contains(text, []byte("safelog.Logger("))
		return err
	})
	require.NoError(t, err)
	n := 0
	for dir, takes := range takes {
		if takes {
			n++
			require.True(t, safe[dir], "%s takes a Logger and does not use package safelog", dir)
		}
	}
	require.GreaterOrEqual(t, n, 5)
}

// The modules that the root module may need outside of tests.
var allowedModules = []string{"github.com/google/btree", "golang.org/x/sync", "golang.org/x/sys"}

func TestDependenciesPointOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}:{{join .Imports " "}}`,
		"./...").CombinedOutput()
	require.NoError(t, err, "%s", out)
	lines := bufio.NewScanner(bytes.NewReader(out))
	n := 0
	for lines.Scan() {
		pkg, imports, _ := strings.Cut(lines.Text(), ":")
		pkg = inside(pkg)
		i := slices.IndexFunc(allowedImports, func(a struct {
			pkg     string
			imports []string
		}) bool {
			return pkg == a.pkg || a.pkg != "" && strings.HasPrefix(pkg, a.pkg+"/")
		})
		if i < 0 {
			t.Errorf("package %q is in no place that DESIGN knows", pkg)
			continue
		}
		n++
		for imp := range strings.FieldsSeq(imports) {
			if !strings.HasPrefix(imp, modulePath) {
				if first, _, _ := strings.Cut(imp, "/"); pkg == "packets" &&
					strings.Contains(first, ".") {
					t.Errorf("packets imports %s: it needs the standard library only", imp)
				}
				continue
			}
			first, _, _ := strings.Cut(inside(imp), "/")
			if inside(imp) == plainRoom && pkg != "packets" {
				continue
			}
			if pkg == plainRoom {
				t.Errorf("%s imports %s: it needs the standard library only", pkg, imp)
			}
			if !slices.Contains(allowedImports[i].imports, first) {
				t.Errorf("%q must not import %q", pkg, inside(imp))
			}
		}
	}
	require.Greater(t, n, 5)
}

// inside returns an import path without that of the module.
func inside(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, modulePath), "/")
}

// An importer of the broker pulls in few modules.
func TestTheBrokerNeedsFewModules(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f",
		`{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}`, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for path := range strings.FieldsSeq(string(out)) {
		if !slices.Contains(allowedModules, path) && !strings.HasPrefix(path, modulePath) {
			t.Errorf("the broker needs %s", path)
		}
	}
}

const (
	maxFileLines     = 800
	maxFunctionLines = 80
)

// narrow reports lines of more than 100 columns, but for tables in comments, URLs and raw strings.
func narrow(t *testing.T, path string, text []byte, fset *token.FileSet, f *ast.File) {
	raw := map[int]bool{} // lines that a raw string is on
	ast.Inspect(f, func(n ast.Node) bool {
		if x, ok := n.(*ast.BasicLit); ok && x.Kind == token.STRING && x.Value[0] == '`' {
			for l := fset.Position(x.Pos()).Line; l <= fset.Position(x.End()).Line; l++ {
				raw[l] = true
			}
		}
		return true
	})
	for i, l := range strings.Split(string(text), "\n") {
		table := strings.HasPrefix(l, "//\t") || strings.HasPrefix(l, "//go:")
		if n := utf8.RuneCountInString(l); n > 100 && !table && !raw[i+1] &&
			!strings.Contains(l, "://") {
			t.Errorf("%s:%d: %d columns, 100 are allowed", path, i+1, n)
		}
	}
}

func TestFilesAndFunctionsAreShortAndGoroutinesAreWaitedFor(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || len(d.Name()) > 1 && d.Name()[0] == '.'):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		if n := bytes.Count(text, []byte("\n")); n > maxFileLines {
			t.Errorf("%s has %d lines, %d are allowed", path, n, maxFileLines)
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, text, parser.ParseComments)
		if err != nil {
			return err
		}
		commented := map[int]bool{} // lines that a comment is on
		for _, group := range f.Comments {
			for l := fset.Position(group.Pos()).Line; l <= fset.Position(group.End()).Line; l++ {
				commented[l] = true
			}
		}
		if !strings.HasSuffix(path, "_test.go") {
			narrow(t, path, text, fset, f)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			line := func(p token.Pos) int { return fset.Position(p).Line }
			switch n := n.(type) {
			case *ast.FuncDecl:
				if lines := line(n.End()) - line(n.Pos()) + 1; lines > maxFunctionLines &&
					!strings.HasSuffix(path, "_test.go") {
					t.Errorf("%s:%d: %s has %d lines, %d are allowed", path, line(n.Pos()),
						n.Name.Name, lines, maxFunctionLines)
				}
			case *ast.GoStmt:
				if l := line(n.Pos()); !strings.HasSuffix(path, "_test.go") && !commented[l] &&
					!commented[l-1] {
					t.Errorf("%s:%d: who waits for this goroutine?", path, l)
				}
			}
			return true
		})
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, files, 50)
}
