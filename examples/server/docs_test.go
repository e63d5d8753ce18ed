package main

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin"
)

// elsewhere are flags that the pages name and that belong to other programs and commands.
var elsewhere = []string{"race", "storetest", "only", "from", "durable", "storecost", "curves",
	"sort", "once"}

// A page that names a flag names one that there is.
func TestFlagsInThePages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	fs, named := new(options).flags(), 0
	for _, page := range append(pages, "README.md", "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range regexp.MustCompile("`-([a-z][a-z0-9-]*)").FindAllStringSubmatch(string(text), -1) {
			if name := found[1]; fs.Lookup(name) == nil && !slices.Contains(elsewhere, name) {
				t.Errorf("%s names the flag -%s, which this program does not have", page, name)
			}
			named++
		}
	}
	if named < 40 {
		t.Errorf("only %d flags are named in %d pages", named, len(pages))
	}
}

// The default that the usage of a flag tells is the one that the comment of its field in dunlin.Config tells.
func TestDefaultsOfFlagsAreThoseOfConfig(t *testing.T) {
	comments := commentsOfConfig(t)
	var o options
	fields := make(map[uintptr]string)
	cfg := reflect.ValueOf(&o.cfg).Elem()
	for i := range cfg.NumField() {
		fields[cfg.Field(i).Addr().Pointer()] = cfg.Type().Field(i).Name
	}
	told := regexp.MustCompile(`(?:\(default|Default) ([0-9](?:[0-9,.]*[0-9])?(?: [KMG]iB|h|m|s| s| ms| times)?)`)
	compared := 0
	o.flags().VisitAll(func(f *flag.Flag) {
		v := reflect.ValueOf(f.Value)
		if v.Kind() != reflect.Pointer || fields[v.Pointer()] == "" {
			return
		}
		name := fields[v.Pointer()]
		usage, comment := told.FindStringSubmatch(f.Usage), told.FindStringSubmatch(comments[name])
		if usage == nil || comment == nil {
			return
		}
		compared++
		if plain(usage[1]) != plain(comment[1]) {
			t.Errorf("-%s tells the default %s, Config.%s tells %s", f.Name, usage[1], name, comment[1])
		}
	})
	if compared < 10 {
		t.Errorf("only %d defaults were compared", compared)
	}
}

// plain makes numbers comparable.
func plain(s string) string {
	s = strings.NewReplacer(",", "", "168h", "7", " s", "s").Replace(s)
	return strings.TrimRight(s, ".")
}

// commentsOfConfig returns the comment of each field of dunlin.Config.
func commentsOfConfig(t *testing.T) map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "../../config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != reflect.TypeFor[dunlin.Config]().Name() {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			for _, name := range f.Names {
				all[name.Name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
			}
		}
		return false
	})
	if len(all) < 40 {
		t.Fatalf("only %d fields have been found", len(all))
	}
	return all
}
