package dunlin

import (
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// This file holds the shape of the API: what a program that imports Dunlin sees of it.

// apiPackages are the packages of the root module that a program may import.
func apiPackages(t *testing.T) []*types.Package {
	list := exec.Command("go", "list", "-deps", "-export", "-f",
		`{{.ImportPath}} {{.Export}} {{with .Module}}{{if .Main}}main{{end}}{{end}}`,
		".", "./mqtttest", "./hooks/...", "./store/...", "./cluster/...", "./packets",
		"./listeners/...")
	out, err := list.Output()
	require.NoError(t, err)
	files := map[string]string{}
	var ours []string
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimRight(line, "\n"), " ")
		files[f[0]] = f[1]
		if f[2] == "main" && !internalPath(f[0]) {
			ours = append(ours, f[0])
		}
	}
	open := func(path string) (io.ReadCloser, error) { return os.Open(files[path]) }
	imp := importer.ForCompiler(token.NewFileSet(), "gc", open)
	var all []*types.Package
	for _, path := range ours {
		pkg, err := imp.Import(path)
		require.NoError(t, err, path)
		all = append(all, pkg)
	}
	require.Greater(t, len(all), 10)
	return all
}

// internalPath says whether programs of other modules cannot import a package of this one.
func internalPath(path string) bool {
	return strings.Contains(path+"/", "/internal/")
}

// exportedMembers yields each exported name of a package, each method and field of an exported
// type with it, and its type.
func exportedMembers(pkg *types.Package, yield func(name string, of types.Type)) {
	for _, name := range pkg.Scope().Names() {
		obj := pkg.Scope().Lookup(name)
		if !obj.Exported() {
			continue
		}
		name = pkg.Name() + "." + name
		decl, ok := obj.(*types.TypeName)
		if !ok {
			yield(name, obj.Type())
			continue
		}
		named, ok := decl.Type().(*types.Named)
		if !ok || decl.IsAlias() {
			yield(name, types.Unalias(decl.Type()))
			continue
		}
		for i := range named.TypeParams().Len() {
			yield(name, named.TypeParams().At(i).Constraint())
		}
		for i := range named.NumMethods() {
			if m := named.Method(i); m.Exported() {
				yield(name+"."+m.Name(), m.Type())
			}
		}
		yield(name, named.Underlying())
	}
}

// unnameable returns the types in t that a program cannot write: they have no exported name, or
// their package is internal.
func unnameable(t types.Type) (found []string) {
	seen := map[types.Type]bool{}
	var walk func(t types.Type)
	tuple := func(of *types.Tuple) {
		for v := range of.Variables() {
			walk(v.Type())
		}
	}
	walk = func(t types.Type) {
		if seen[t] {
			return
		}
		seen[t] = true
		switch t := t.(type) {
		case *types.Alias:
			walk(types.Unalias(t))
		case *types.Named:
			obj := t.Obj()
			if p := obj.Pkg(); p != nil && strings.HasPrefix(p.Path(), modulePath) &&
				(!obj.Exported() || internalPath(p.Path())) {
				found = append(found, t.String())
			}
			for arg := range t.TypeArgs().Types() {
				walk(arg)
			}
		case interface{ Elem() types.Type }:
			walk(t.Elem())
			if m, ok := t.(*types.Map); ok {
				walk(m.Key())
			}
		case *types.Signature:
			for i := range t.TypeParams().Len() {
				walk(t.TypeParams().At(i).Constraint())
			}
			tuple(t.Params())
			tuple(t.Results())
		case *types.Struct:
			for f := range t.Fields() {
				if f.Exported() || f.Embedded() && shows(f.Type()) {
					walk(f.Type())
				}
			}
		case *types.Interface:
			for m := range t.ExplicitMethods() {
				if m.Exported() {
					walk(m.Type())
				}
			}
			for e := range t.EmbeddedTypes() {
				walk(e)
			}
		case *types.Union:
			for term := range t.Terms() {
				walk(term.Type())
			}
		}
	}
	walk(t)
	return found
}

// shows says whether a struct that embeds t has exported fields or methods by that.
func shows(t types.Type) bool {
	all := types.NewMethodSet(types.NewPointer(t))
	for i := range all.Len() {
		if all.At(i).Obj().Exported() {
			return true
		}
	}
	s, is := t.Underlying().(*types.Struct)
	if !is {
		return true
	}
	for f := range s.Fields() {
		if f.Exported() || f.Embedded() && shows(f.Type()) {
			return true
		}
	}
	return false
}

func TestEachTypeInTheAPIHasANameThatProgramsCanWrite(t *testing.T) {
	members := 0
	for _, pkg := range apiPackages(t) {
		exportedMembers(pkg, func(name string, of types.Type) {
			members++
			for _, bad := range unnameable(of) {
				t.Errorf("%s shows %s, which a program cannot name", name, bad)
			}
		})
	}
	require.Greater(t, members, 500)
}

// ownNames are the types whose constants have names of their own: those of the standard, and plain
// words.
var ownNames = []string{
	"packets.ReasonCode", "packets.Property", "packets.Version", "mqtttest.Direction",
}

// beginsAsItsType says whether the name of a constant begins with the name of its type, or with the
// first word of that.
func beginsAsItsType(constant, of string) bool {
	word := strings.IndexFunc(of[1:], unicode.IsUpper) + 1
	return strings.HasPrefix(constant, of) || word > 1 && strings.HasPrefix(constant, of[:word])
}

// plainConstants are those that belong to no enumeration.
var plainConstants = []string{
	"dunlin.Version", "listeners.DefaultBuffer", "auth.SCRAMSHA256", "cluster.MaxKey",
	"cluster.MaxOnce",
}

func TestEachConstantOfAnEnumerationInTheAPIHasItsType(t *testing.T) {
	constants := 0
	for _, pkg := range apiPackages(t) {
		for _, name := range pkg.Scope().Names() {
			c, ok := pkg.Scope().Lookup(name).(*types.Const)
			if !ok || !c.Exported() {
				continue
			}
			constants++
			name = pkg.Name() + "." + name
			named, ok := types.Unalias(c.Type()).(*types.Named)
			if !ok {
				if !slices.Contains(plainConstants, name) {
					t.Errorf("%s has the type %s: give it that of its enumeration", name, c.Type())
				}
				continue
			}
			if named.Obj().Pkg().Path() == "time" { // a Duration
				continue
			}
			of := named.Obj().Pkg().Name() + "." + named.Obj().Name()
			if !beginsAsItsType(c.Name(), named.Obj().Name()) && !slices.Contains(ownNames, of) {
				t.Errorf("%s does not begin with the name of its type, %s", name, of)
			}
		}
	}
	require.Greater(t, constants, 100)
}

// What the broker counts in the values that it shares with programs is not for them to read or set.
func TestNoFieldInTheAPIIsALockOrACounter(t *testing.T) {
	fields := 0
	for _, pkg := range apiPackages(t) {
		for _, name := range pkg.Scope().Names() {
			obj, ok := pkg.Scope().Lookup(name).(*types.TypeName)
			if !ok || !obj.Exported() {
				continue
			}
			s, ok := obj.Type().Underlying().(*types.Struct)
			if !ok {
				continue
			}
			for f := range s.Fields() {
				fields++
				of, named := types.Unalias(f.Type()).(*types.Named)
				if f.Exported() && named && of.Obj().Pkg() != nil &&
					strings.HasPrefix(of.Obj().Pkg().Path(), "sync") {
					t.Errorf("%s.%s.%s is a %s: do not export it", pkg.Name(), name, f.Name(), of)
				}
			}
		}
	}
	require.Greater(t, fields, 300)
}

// `type A b` shows b in the documentation of A, where nobody can look it up. The export data does
// not have it any more, so this reads the source, that of nested modules too.
func TestNoExportedTypeStandsOverAnUnexportedOne(t *testing.T) {
	declared := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "internal" || d.Name() == "examples"):
			return filepath.SkipDir
		case filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for n := range ast.Preorder(f) {
			decl, ok := n.(*ast.TypeSpec)
			if !ok || !decl.Name.IsExported() {
				continue
			}
			declared++
			over, ok := decl.Type.(*ast.Ident)
			if ok && !over.IsExported() && types.Universe.Lookup(over.Name) == nil {
				t.Errorf("%s: %s stands over %s", path, decl.Name, over)
			}
		}
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, declared, 100)
}
