package dunlin

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file holds what a reader can take in at a call: few arguments, and none that is true or
// false and does not say of what.

const maxParams = 5

// A paramList is a function with its parameters, wherever a type of a function stands.
type paramList struct {
	name   string // empty for a function literal
	at     token.Pos
	params *ast.FieldList
}

// paramLists yields the parameters of all functions, methods, function types and literals of a
// file.
func paramLists(f *ast.File, yield func(paramList)) {
	names := map[*ast.FuncType]string{}
	name := func(of string, t ast.Expr) {
		if t, ok := t.(*ast.FuncType); ok {
			names[t] = of
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			name(n.Name.Name, n.Type)
		case *ast.TypeSpec:
			name(n.Name.Name, n.Type)
		case *ast.Field:
			if len(n.Names) > 0 {
				name(n.Names[0].Name, n.Type)
			}
		case *ast.FuncType:
			yield(paramList{names[n], n.Pos(), n.Params})
		}
		return true
	})
}

// each yields the parameters one by one.
func (l paramList) each(yield func(i int, t ast.Expr)) (n int) {
	for _, field := range l.params.List {
		for range max(len(field.Names), 1) {
			yield(n, field.Type)
			n++
		}
	}
	return n
}

// bools are the places of the parameters that are bools.
func (l paramList) bools() (at []int) {
	l.each(func(i int, t ast.Expr) {
		if t, ok := t.(*ast.Ident); ok && t.Name == "bool" {
			at = append(at, i)
		}
	})
	return at
}

// parseProduct parses the Go files of this project that are not tests, those of the nested modules
// with them, or only those of the given folders.
func parseProduct(t *testing.T, fset *token.FileSet, dirs ...string) map[string]*ast.File {
	files := map[string]*ast.File{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || len(d.Name()) > 1 && d.Name()[0] == '.'):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		case len(dirs) > 0 && !slices.Contains(dirs, filepath.ToSlash(filepath.Dir(path))):
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil,
			parser.ParseComments|parser.SkipObjectResolution)
		files[filepath.ToSlash(path)] = f
		return err
	})
	require.NoError(t, err)
	return files
}

func TestNoFunctionHasManyParameters(t *testing.T) {
	fset := token.NewFileSet()
	found := 0
	for _, f := range parseProduct(t, fset) {
		paramLists(f, func(l paramList) {
			found++
			n := l.each(func(int, ast.Expr) {})
			if n > maxParams {
				t.Errorf("%s: %s has %d parameters, %d are allowed: make some of them a struct",
					fset.Position(l.at), l.name, n, maxParams)
			}
		})
	}
	require.Greater(t, found, 3000)
}

func TestNoCallSaysOnlyTrueOrFalse(t *testing.T) {
	for _, dir := range []string{".", "packets"} {
		fset := token.NewFileSet()
		files := parseProduct(t, fset, dir)
		bools := map[string][]int{} // of the functions of the package, by name
		for _, f := range files {
			paramLists(f, func(l paramList) {
				at := l.bools()
				if len(at) > 1 {
					t.Errorf("%s: %s takes %d bools: give them types, or make two functions",
						fset.Position(l.at), l.name, len(at))
				}
				if l.name != "" && len(at) > 0 {
					bools[l.name] = append(bools[l.name], at...)
				}
			})
		}
		require.NotEmpty(t, bools)
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && saysOnlyBool(call, bools) {
					t.Errorf("%s: a call with true or false does not say what it asks for",
						fset.Position(call.Pos()))
				}
				return true
			})
		}
	}
}

// saysOnlyBool says whether a call has true or false for a parameter that is a bool.
func saysOnlyBool(call *ast.CallExpr, bools map[string][]int) bool {
	var name string
	switch f := call.Fun.(type) {
	case *ast.Ident:
		name = f.Name
	case *ast.SelectorExpr:
		name = f.Sel.Name
	}
	return slices.ContainsFunc(bools[name], func(i int) bool {
		if i >= len(call.Args) {
			return false
		}
		x, ok := call.Args[i].(*ast.Ident)
		return ok && (x.Name == "true" || x.Name == "false")
	})
}
