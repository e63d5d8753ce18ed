package dunlin

import (
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file measures how the files of the root package hang together, and keeps that from
// getting worse: which files call each other, how many lines they have, how wide Broker is.
// `go test -run TestTheShapeOfTheRoot -v .` prints the figures.

// Ceilings. Lower them when the figures allow it.
const (
	maxCircle       = 29    // files of the largest circle of calls
	maxMutual       = 45    // pairs of files that call each other in both directions
	maxBrokerFields = 18    // fields of Broker
	maxTenFiles     = 4140  // lines of the files in tenFiles together
	maxRootLines    = 18400 // lines of all files of the root package that are not tests
)

// tenFiles are the files that a reader opens first.
var tenFiles = []string{
	"broker.go", "conn.go", "connect.go", "takeover.go", "publish.go",
	"subscribe.go", "topics.go", "deliver.go", "session.go", "qos.go",
}

func TestTheShapeOfTheRoot(t *testing.T) {
	root := loadRoot(t)
	calls := root.callsBetweenFiles()
	circle := slices.MaxFunc(components(calls), func(a, b []string) int { return len(a) - len(b) })
	var mutual []string
	for from, to := range calls {
		for other := range to {
			if from < other && calls[other][from] {
				mutual = append(mutual, from+" "+other)
			}
		}
	}
	slices.Sort(circle)
	slices.Sort(mutual)
	fields := root.fieldsOf(t, "Broker")
	lines, ten := 0, 0
	for name, n := range root.lines {
		lines += n
		if slices.Contains(tenFiles, name) {
			ten += n
		}
	}
	t.Logf("files: %d, lines: %d, of these in the ten first files: %d", len(root.lines), lines, ten)
	t.Logf("fields of Broker: %d", fields)
	t.Logf("largest circle of calling files: %d %v", len(circle), circle)
	t.Logf("pairs of files that call each other: %d\n%s", len(mutual), strings.Join(mutual, "\n"))

	require.LessOrEqual(t, len(circle), maxCircle, "the largest circle of calling files")
	require.LessOrEqual(t, len(mutual), maxMutual, "pairs of files that call each other")
	require.LessOrEqual(t, fields, maxBrokerFields, "fields of Broker")
	require.LessOrEqual(t, ten, maxTenFiles, "lines of the ten first files")
	require.LessOrEqual(t, lines, maxRootLines, "lines of the root package")
}

// A rootSource is the root package without its tests, with the types of its expressions.
type rootSource struct {
	fset  *token.FileSet
	files map[string]*ast.File
	lines map[string]int
	pkg   *types.Package
	info  *types.Info
}

// loadRoot parses and checks the files of this system and of no build tag.
func loadRoot(t *testing.T) *rootSource {
	r := &rootSource{
		fset: token.NewFileSet(), files: map[string]*ast.File{}, lines: map[string]int{},
		info: &types.Info{
			Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{},
		},
	}
	names, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var files []*ast.File
	for _, name := range names {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		if strings.HasSuffix(name, "_test.go") || !built(name, string(text)) {
			continue
		}
		f, err := parser.ParseFile(r.fset, name, text, parser.ParseComments)
		require.NoError(t, err)
		r.files[name], r.lines[name] = f, strings.Count(string(text), "\n")
		files = append(files, f)
	}
	conf := types.Config{Importer: importer.ForCompiler(r.fset, "gc", exported(t))}
	r.pkg, err = conf.Check(modulePath, r.fset, files, r.info)
	require.NoError(t, err)
	return r
}

// exported returns how to open what the compiler has exported of a package that the root imports.
func exported(t *testing.T) importer.Lookup {
	list := exec.Command("go", "list", "-deps", "-export", "-f", "{{.ImportPath}}={{.Export}}", ".")
	out, err := list.Output()
	require.NoError(t, err)
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		files[path] = file
	}
	return func(path string) (io.ReadCloser, error) { return os.Open(files[path]) }
}

// built says whether a file belongs to a build for Linux without tags.
func built(name, text string) bool {
	for _, other := range []string{"_windows.go", "_darwin.go", "_other.go"} {
		if strings.HasSuffix(name, other) {
			return false
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "package ") {
			break
		}
		if x, err := constraint.Parse(strings.TrimSpace(line)); err == nil {
			return x.Eval(func(tag string) bool {
				return tag == "linux" || tag == "unix" ||
					tag == "amd64"
			})
		}
	}
	return true
}

// callsBetweenFiles returns for each file the other files whose functions and methods it names.
func (r *rootSource) callsBetweenFiles() map[string]map[string]bool {
	calls := map[string]map[string]bool{}
	for name, f := range r.files {
		calls[name] = map[string]bool{}
		ast.Inspect(f, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if !ok {
				return true
			}
			fn, ok := r.info.Uses[id].(*types.Func)
			if !ok || fn.Pkg() != r.pkg {
				return true
			}
			if at := r.fset.Position(fn.Origin().Pos()).Filename; at != "" && at != name {
				calls[name][at] = true
			}
			return true
		})
	}
	return calls
}

// fieldsOf counts the fields of a struct type of the package.
func (r *rootSource) fieldsOf(t *testing.T, name string) int {
	obj := r.pkg.Scope().Lookup(name)
	require.NotNil(t, obj, name)
	s, ok := obj.Type().Underlying().(*types.Struct)
	require.True(t, ok, fmt.Sprintf("%s is not a struct", name))
	return s.NumFields()
}

// components returns the strongly connected parts of a graph (Tarjan).
func components(graph map[string]map[string]bool) (all [][]string) {
	index, low := map[string]int{}, map[string]int{}
	var stack []string
	var visit func(v string)
	visit = func(v string) {
		index[v] = len(index) + 1
		low[v] = index[v]
		stack = append(stack, v)
		for w := range graph[v] {
			switch {
			case index[w] == 0:
				visit(w)
				low[v] = min(low[v], low[w])
			case slices.Contains(stack, w):
				low[v] = min(low[v], index[w])
			}
		}
		if low[v] == index[v] {
			at := slices.Index(stack, v)
			all = append(all, slices.Clone(stack[at:]))
			stack = stack[:at]
		}
	}
	for v := range graph {
		if index[v] == 0 {
			visit(v)
		}
	}
	return all
}
