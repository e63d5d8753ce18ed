package doccheck

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../.."

// usual are the variables that pages take for granted.
var usual = map[string]string{
	"ctx": "context.Context", "b": "*dunlin.Broker", "err": "error", "l": "net.Listener",
	"nc": "net.Conn", "t": "*testing.T", "mux": "*http.ServeMux",
	"cfg": "dunlin.Config",
}

// others are packages outside of this project and of the standard library, by the name that pages
// use.
var others = map[string]string{
	"mqtt":        "github.com/eclipse/paho.mqtt.golang",
	"autopaho":    "github.com/eclipse/paho.golang/autopaho",
	"paho":        "github.com/eclipse/paho.golang/paho",
	"pahopackets": "github.com/eclipse/paho.golang/packets",
	"require":     "github.com/stretchr/testify/require",
	"assert":      "github.com/stretchr/testify/assert",
}

// A listed is what go list says of a package.
type listed struct{ ImportPath, Name, Export string }

func list(t *testing.T, args ...string) (all []listed) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go",
		append([]string{"list", "-e", "-json=ImportPath,Name,Export"}, args...)...)
	cmd.Dir = root
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), errs.String())
	for d := json.NewDecoder(&out); ; {
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestTheGoInPagesCompiles(t *testing.T) {
	if out, err := exec.Command("go", "env", "GOWORK").Output(); err != nil ||
		strings.TrimSpace(string(out)) == "" || strings.TrimSpace(string(out)) == "off" {
		t.Skip("pages use packages of nested modules: it takes the workspace (GOWORK is off)")
	}
	packages := map[string]string{}
	for _, p := range list(t, "std") {
		if strings.Contains(p.ImportPath, "internal") ||
			strings.HasPrefix(p.ImportPath, "vendor/") {
			continue
		}
		if old, ok := packages[p.Name]; !ok || len(p.ImportPath) < len(old) ||
			p.ImportPath == "crypto/rand" {
			packages[p.Name] = p.ImportPath
		}
	}
	for name, path := range others {
		packages[name] = path
	}
	for _, p := range list(t, "work") {
		if p.Name != "main" && !strings.Contains(p.ImportPath, "/internal/") {
			packages[p.Name] = p.ImportPath
		}
	}
	paths := map[string]bool{}
	type file struct{ name, text string }
	var files []file
	for name, page := range pages(t) {
		for _, b := range blocks(page) {
			where := fmt.Sprintf("%s:%d", name, b.line)
			text, err := complete(b, packages, usual)
			if err != nil {
				t.Errorf("%s: %v", where, err)
				continue
			}
			files = append(files, file{where, text})
			f, err := parser.ParseFile(token.NewFileSet(), where, text, parser.ImportsOnly)
			if err != nil {
				t.Errorf("%s: %v\n%s", where, err, text)
				continue
			}
			for _, spec := range f.Imports {
				paths[strings.Trim(spec.Path.Value, `"`)] = true
			}
		}
	}
	args := []string{"-export", "-deps"}
	for p := range paths {
		args = append(args, p)
	}
	exports := map[string]string{}
	if len(paths) > 0 {
		for _, p := range list(t, args...) {
			exports[p.ImportPath] = p.Export
		}
	}
	t.Logf("%d blocks", len(files))
	for _, f := range files {
		for _, err := range check(f.text, exports) {
			t.Errorf("%s: %v", f.name, err)
		}
		if t.Failed() && testing.Verbose() {
			t.Logf("%s is\n%s", f.name, f.text)
		}
	}
}

// check returns the errors of a file, but for what is declared or imported and not used.
func check(text string, exports map[string]string) (errs []error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "page.go", text, 0)
	if err != nil {
		return []error{err}
	}
	conf := types.Config{
		Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
			if exports[path] == "" {
				return nil, fmt.Errorf("package %s is not there", path)
			}
			return os.Open(exports[path])
		}),
		Error: func(err error) {
			if e, ok := err.(types.Error); !ok || !e.Soft {
				errs = append(errs, err)
			}
		},
	}
	conf.Check("page", fset, []*ast.File{f}, nil) // its errors have gone to Error
	return errs
}

// pages returns all Markdown pages by name.
func pages(t *testing.T) map[string]string {
	found := map[string]string{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == "testdata" ||
			d.Name() == ".git"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(name) != ".md":
			return nil
		}
		text, err := os.ReadFile(name)
		found[filepath.ToSlash(strings.TrimPrefix(name,
			root+string(filepath.Separator)))] = string(text)
		return err
	})
	require.NoError(t, err)
	require.NotEmpty(t, found, "there are no pages under %s", root)
	return found
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

func TestLinksWithinTheProjectLeadSomewhere(t *testing.T) {
	for name, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(page, -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: the link to %s: %v", name, m[1], err)
			}
		}
	}
}

// docs/README.md lists every page in the order to read them, and each page ends with a link to the
// next one.
func TestThePagesReadFromStartToEnd(t *testing.T) {
	all := pages(t)
	var order []string
	row := regexp.MustCompile(`(?m)^\|.*?\| \[[^]]+\]\(([^)]+)\) \|`)
	for _, m := range row.FindAllStringSubmatch(all["docs/README.md"], -1) {
		order = append(order, path.Join("docs", m[1]))
	}
	for name := range all {
		if path.Dir(name) == "docs" && name != "docs/README.md" && !slices.Contains(order, name) {
			t.Errorf("%s is not in the table of docs/README.md", name)
		}
	}
	require.Greater(t, len(order), 10, "the table of docs/README.md")
	for i, name := range order[:len(order)-1] {
		next := order[i+1]
		if i == 0 {
			next = "docs/README.md" // the README of the project leads to the table
		}
		lines := strings.Split(strings.TrimSpace(all[name]), "\n")
		last := link.FindStringSubmatch(lines[len(lines)-1])
		if last == nil || path.Join(path.Dir(name), last[1]) != next {
			t.Errorf("%s: expected a last line with a link to %s, got %q", name, next,
				lines[len(lines)-1])
		}
	}
}

// Each example says in its README with which one command it runs.
func TestExamplesHaveTheirCommand(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(root, "examples", "*", "main.go"))
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	for _, main := range dirs {
		name := filepath.Base(filepath.Dir(main))
		page, err := os.ReadFile(filepath.Join(filepath.Dir(main), "README.md"))
		if err != nil || !regexp.MustCompile(`go (run|build|test) .*examples/`+name+`\b|cd examples/`+name+` && .*go run \.`).Match(page) {
			t.Errorf("examples/%s has no README.md with the command that runs it (%v)", name, err)
		}
	}
}

func TestBlocksAndWhatCompletesThem(t *testing.T) {
	page := "<!-- go: var x int -->\n```go\nb, err := dunlin.New(dunlin.Config{Authenticator: " +
		"...})\nif err != nil { ... }\n```\n" +
		"```sh\nno go\n```\n- list\n\n  ```go\n  fmt.Println(x)\n  ```\n"
	got := blocks(page)
	require.Len(t, got, 2)
	require.Equal(t, 3, got[0].line)
	require.Equal(t, "fmt.Println(x)\n", got[1].code)
	packages := map[string]string{"fmt": "fmt"}
	text, err := complete(got[1], packages, usual)
	require.NoError(t, err)
	exports := map[string]string{}
	for _, p := range list(t, "-export", "-deps", "fmt") {
		exports[p.ImportPath] = p.Export
	}
	require.Empty(t, check(text, exports))

	got[1].code = "fmt.Println(y)\n"
	text, err = complete(got[1], packages, usual)
	require.NoError(t, err)
	require.NotEmpty(t, check(text, exports), "what is not declared is an error")
	got[1].code = "fmt.Printn(x)\n"
	text, err = complete(got[1], packages, usual)
	require.NoError(t, err)
	require.NotEmpty(t, check(text, exports), "what a package does not have is an error")
	got[1].code = "this is no Go\n"
	_, err = complete(got[1], packages, usual)
	require.Error(t, err)
}
