package dunlin

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file holds that tests do not wait for time to pass. They run in the virtual time of a
// synctest bubble, or wait for what they want to see: a channel, a packet, the end of a process.
// How long that may take is bounded by a context or by a deadline of a connection, which cost no
// time while all is well, and in the end by the timeout of go test.

// sleepers is the package that may sleep; see its comment.
const sleepers = "internal/endtoend"

// What makes a test wait, by the import path of its package. Methods of an Assertions have the same
// names as the functions.
var waits = map[string][]string{
	"time": {"Sleep", "After", "Tick", "NewTicker", "NewTimer"},
	"github.com/stretchr/testify/assert": {"Eventually", "Eventuallyf", "EventuallyWithT",
		"EventuallyWithTf", "Never", "Neverf"},
	"github.com/stretchr/testify/require": {"Eventually", "Eventuallyf", "EventuallyWithT",
		"EventuallyWithTf", "Never", "Neverf"},
}

// What is in a bubble although the source of its tests does not show it, and why.
var inBubbles = map[string]string{
	"bypasses":                      "a table, whose functions TestBypasses runs in bubbles",
	"situations":                    "a table, whose functions TestExplainNamesTheCause runs in bubbles",
	"ends":                          "a table, whose functions run in bubbles (onStage)",
	"cluster/clustertest/logFaults": "a table, whose functions TestEachFaultIsFound runs in bubbles",
	"cluster/clustertest/nodeFaults": "a table, whose functions TestEachFaultIsFound runs in " +
		"bubbles",
	"hooks/audit/Handle": "a slog.Handler, which the audit trail calls in the bubble of " +
		"TestSlowHandler",
	"hooks/webhook/RoundTrip": "an http.RoundTripper, which an http.Client calls; those tests " +
		"that make it wait are in bubbles",
}

func TestTestsDoNotSleep(t *testing.T) {
	used := map[string]bool{}
	found, dirs := 0, 0
	err := filepath.WalkDir(".", func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		_, other := os.Stat(filepath.Join(dir, "go.mod"))
		if d.Name() == "testdata" || len(d.Name()) > 1 && d.Name()[0] == '.' || dir != "." &&
			other == nil || filepath.ToSlash(dir) == sleepers {
			return filepath.SkipDir
		}
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			return err
		}
		dirs++
		p := testSource{fset: token.NewFileSet(), virtual: map[string]bool{}}
		for _, name := range files {
			f, err := parser.ParseFile(p.fset, name, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			p.files = append(p.files, f)
		}
		p.study()
		p.sleeps(func(name, wait string, in bool, at token.Position) {
			found++
			name = filepath.ToSlash(filepath.Join(dir, name))
			if !in && inBubbles[name] == "" {
				t.Errorf("%s: %s outside of a bubble, in %s: wait for an event, use "+
					"testing/synctest, or move the test to %s", at, wait, name, sleepers)
			}
			used[name] = used[name] || !in
		})
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, dirs, 20)
	require.Greater(t, found, 50, "there are many in bubbles")
	for name := range inBubbles {
		if !used[name] {
			t.Errorf("inBubbles has %s, which needs no excuse", name)
		}
	}
}

// What the test above finds and what it lets pass.
func TestSleepsAreFound(t *testing.T) {
	for _, tt := range []struct{ name, source, want string }{
		{"a sleep", "func TestX(t *testing.T) { time.Sleep(1) }", "TestX Sleep"},
		{"a loop that waits", "func TestX(t *testing.T) { for range time.Tick(1) {} }",
			"TestX Tick"},
		{"a timer that is handed on", "func TestX(t *testing.T) { f := time.NewTimer; f(1) }",
			"TestX NewTimer"},
		{"a condition that is asked for again and again",
			"func TestX(t *testing.T) { require.Eventually(t, f, 1, 1) }", "TestX Eventually"},
		{"the same as a method",
			"func TestX(t *testing.T) { r := require.New(t); r.Never(f, 1, 1) }", "TestX Never"},
		{"a package by another name",
			"import clock \"time\"\nfunc TestX(t *testing.T) { clock.Sleep(1) }", "TestX Sleep"},
		{"a package without a name", "import . \"time\"\nfunc TestX(t *testing.T) { Sleep(1) }",
			"import time"},
		{"a variable", "var now = <-time.After(1)", "now After"},
		{"no sleep", "func TestX(t *testing.T) { d.Sleep(1); _ = time.Now(); <-ctx.Done() }", ""},
		{"a bubble", "func TestX(t *testing.T) { synctest.Test(t, func(t *testing.T) { go func() " +
			"{ time.Sleep(1) }() }) }", ""},
		{"behind a bubble", "func TestX(t *testing.T) { synctest.Test(t, f); time.Sleep(1) }",
			"TestX Sleep"},
		{"a helper of bubbles",
			"func nap() { nod() }\nfunc nod() { time.Sleep(1) }\nfunc TestX(t *testing.T) { " +
				"synctest.Test(t, func(*testing.T) { nap() }) }", ""},
		{"a helper of others, too",
			"func nap() { time.Sleep(1) }\nfunc TestX(t *testing.T) { synctest.Test(t, " +
				"func(*testing.T) { nap() }); nap() }", "nap Sleep"},
		{"a helper of nobody", "func (x) Write() { time.Sleep(1) }", "Write Sleep"},
		{"a function as the bubble",
			"func body(*testing.T) { time.Sleep(1) }\nfunc TestX(t *testing.T) { " +
				"synctest.Test(t, body) }", ""},
		{"a helper that makes bubbles",
			"func in(t *testing.T, f func()) { synctest.Test(t, func(*testing.T) { f() }) }\n" +
				"func TestX(t *testing.T) { in(t, func() { time.Sleep(1) }); again := func(f func()) " +
				"{ in(t, f) }; again(func() { time.Sleep(1) }) }", ""},
		{"a helper that makes one now and then",
			"func in(t *testing.T, f func()) { synctest.Test(t, func(*testing.T) { f() }); f() " +
				"}\n" +
				"func TestX(t *testing.T) { in(t, func() { time.Sleep(1) }) }", "TestX Sleep"},
		{"another argument of that helper",
			"func in(t *testing.T, f, g func()) { g(); synctest.Test(t, func(*testing.T) { f() " +
				"}) }\n" +
				"func TestX(t *testing.T) { in(t, f, func() { time.Sleep(1) }) }", "TestX Sleep"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			imports := "import \"time\"\n"
			if strings.HasPrefix(tt.source, "import") {
				imports = ""
			}
			p := testSource{fset: token.NewFileSet(), virtual: map[string]bool{}}
			f, err := parser.ParseFile(p.fset, "x_test.go",
				"package x\nimport \"github.com/stretchr/testify/require\"\n"+imports+tt.source,
				parser.SkipObjectResolution)
			require.NoError(t, err)
			p.files = []*ast.File{f}
			p.study()
			var got []string
			p.sleeps(func(function, wait string, in bool, _ token.Position) {
				if !in {
					got = append(got, function+" "+wait)
				}
			})
			require.Equal(t, tt.want, strings.Join(got, ", "))
		})
	}
}

// A testSource is the test files of a folder, with what of them runs in bubbles. Functions and
// methods are told apart by their names alone, which errs on the side of finding too much: a name
// counts as in a bubble if all that mentions it is.
type testSource struct {
	fset  *token.FileSet
	files []*ast.File
	// Of these functions, the parameters that are called in bubbles only
	params  map[string]map[int]bool
	virtual map[string]bool // functions that are mentioned in bubbles only
}

// An item is a function, or variables, of a package.
type item struct {
	name string
	node ast.Node
}

// items returns what a file declares.
func items(f *ast.File) (of []item) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			of = append(of, item{d.Name.Name, d})
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if v, ok := s.(*ast.ValueSpec); ok {
					of = append(of, item{v.Names[0].Name, v})
				}
			}
		}
	}
	return of
}

// study fills params and virtual.
func (p *testSource) study() {
	for range 3 { // a helper of a helper of synctest.Test
		next := map[string]map[int]bool{}
		for _, f := range p.files {
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					p.bubbled(next, n.Name.Name, n.Type, n.Body)
				case *ast.AssignStmt: // name := func
					if name, ok := n.Lhs[0].(*ast.Ident); ok {
						if f, ok := n.Rhs[0].(*ast.FuncLit); ok {
							p.bubbled(next, name.Name, f.Type, f.Body)
						}
					}
				}
				return true
			})
		}
		p.params = next
	}
	// For each item, what it mentions, and whether always in a bubble.
	mentions := map[item]map[string]bool{}
	for _, f := range p.files {
		for _, it := range items(f) {
			mentions[it] = p.mentions(it.node)
			if _, ok := it.node.(*ast.FuncDecl); ok {
				p.virtual[it.name] = it.name != "init"
			}
		}
	}
	for again := true; again; {
		again = false
		for name, in := range p.virtual {
			mentioned := false // if nothing does, go test calls it, or others by an interface
			for it, names := range mentions {
				if bubble, ok := names[name]; ok && it.name != name {
					mentioned = true
					in = in && (bubble || p.virtual[it.name])
				}
			}
			if in = in && mentioned; in != p.virtual[name] {
				p.virtual[name], again = in, true
			}
		}
	}
}

// bubbled notes which parameters a function, and all others of its name, call in bubbles only.
func (p *testSource) bubbled(params map[string]map[int]bool, name string, typ *ast.FuncType,
	body *ast.BlockStmt) {
	if body == nil {
		return
	}
	if params[name] == nil {
		params[name] = map[int]bool{}
	}
	names := p.mentions(body)
	i := 0
	for _, field := range typ.Params.List {
		for _, param := range field.Names {
			was, known := params[name][i]
			params[name][i] = names[param.Name] && (was || !known)
			i++
		}
	}
}

// mentions returns the names that are used below n, and for each whether all its uses are in
// bubbles.
func (p *testSource) mentions(n ast.Node) map[string]bool {
	names := map[string]bool{}
	p.walk(n, func(n ast.Node, bubble bool) {
		if x, ok := n.(*ast.Ident); ok {
			was, known := names[x.Name]
			names[x.Name] = bubble && (was || !known)
		}
	})
	return names
}

// walk visits all below n, and tells of each whether it is in, or is, a function that is given to
// synctest.Test or to a parameter in params.
func (p *testSource) walk(n ast.Node, visit func(n ast.Node, bubble bool)) {
	var path []bool // for each node above, whether it is in a bubble
	given := map[ast.Expr]bool{}
	ast.Inspect(n, func(n ast.Node) bool {
		if n == nil {
			path = path[:len(path)-1]
			return true
		}
		in := len(path) > 0 && path[len(path)-1]
		switch n := n.(type) {
		case *ast.CallExpr:
			for i, arg := range n.Args {
				given[arg] = p.bubbles(n.Fun, i)
			}
		case ast.Expr:
			in = in || given[n]
		}
		path = append(path, in)
		visit(n, in)
		return true
	})
}

// bubbles says whether a function calls its i-th argument in a bubble, and nowhere else.
func (p *testSource) bubbles(f ast.Expr, i int) bool {
	switch f := f.(type) {
	case *ast.Ident:
		return p.params[f.Name][i]
	case *ast.SelectorExpr:
		x, ok := f.X.(*ast.Ident)
		return ok && x.Name == "synctest" && f.Sel.Name == "Test" && i == 1 ||
			p.params[f.Sel.Name][i]
	}
	return false
}

// sleeps finds everything in waits, the function that it is in, and whether that is in a bubble.
func (p *testSource) sleeps(found func(function, wait string, in bool, at token.Position)) {
	for _, f := range p.files {
		imports := map[string][]string{}
		var methods []string
		for _, i := range f.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			name := filepath.Base(path)
			if i.Name != nil {
				name = i.Name.Name
			}
			imports[name] = waits[path]
			if name == "." && waits[path] != nil {
				found("import", path, false, p.fset.Position(i.Pos()))
			}
			if path != "time" {
				methods = append(methods, waits[path]...)
			}
		}
		for _, it := range items(f) {
			p.walk(it.node, func(n ast.Node, bubble bool) {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return
				}
				x, ok := s.X.(*ast.Ident)
				if ok && slices.Contains(imports[x.Name], s.Sel.Name) ||
					slices.Contains(methods, s.Sel.Name) {
					found(it.name, s.Sel.Name, bubble || p.virtual[it.name],
						p.fset.Position(s.Pos()))
				}
			})
		}
	}
}
