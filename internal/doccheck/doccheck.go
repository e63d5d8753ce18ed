// Package doccheck holds a test: every block of Go in a Markdown page of this project compiles.
// Fragments are completed: packages are imported by their names, variables that a reader takes for
// granted (ctx, b, err and the like) are declared, and "..." stands for what was left out. A page
// declares further ones in a comment that is not seen:
//
//	<!-- go: var b *mqtttest.Broker -->
package doccheck

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strings"
)

// A block is one piece of Go in a page.
type block struct {
	line   int // of the page
	code   string
	extras []string // declarations of the page
}

var declared = regexp.MustCompile(`<!--\s*go:\s*(.*?)\s*-->`)

// blocks returns the pieces of Go in a page.
func blocks(page string) (found []block) {
	var extras []string
	var b *block
	var indent string
	for n, line := range strings.Split(page, "\n") {
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case b == nil && (trimmed == "```go" || strings.HasPrefix(trimmed, "```go ")):
			b, indent = &block{line: n + 2, extras: slices.Clone(extras)},
				line[:len(line)-len(trimmed)]
		case b != nil && strings.TrimSpace(line) == "```":
			found = append(found, *b)
			b = nil
		case b != nil:
			b.code += strings.TrimPrefix(line, indent) + "\n"
		default:
			for _, m := range declared.FindAllStringSubmatch(line, -1) {
				extras = append(extras, m[1])
			}
		}
	}
	return found
}

var (
	nothing = regexp.MustCompile(`\{\s*(\.\.\.|…)\s*\}`)
	alone   = regexp.MustCompile(`(?m)^(\s*)(\.\.\.|…)\s*$`)
	value   = regexp.MustCompile(`([:=,(]\s*)(\.\.\.|…)(\s*(?:[,)}\n]|//))`)
)

// complete makes a file of a fragment. packages has the import paths of packages by name, and usual
// the types of variables that need no declaration.
func complete(b block, packages, usual map[string]string) (string, error) {
	code := nothing.ReplaceAllString(b.code, "{}")
	code = alone.ReplaceAllString(code, "$1// what was left out")
	code = value.ReplaceAllString(code, "${1}nil$3")
	extras := strings.Join(b.extras, "\n")
	if strings.HasPrefix(strings.TrimSpace(code), "package ") || strings.Contains(code, "\npackage ") {
		return code, nil
	}
	body := code + extras
	file, err := parse(body)
	if err != nil {
		body = extras + "\nfunc _() {\n{\n" + code + "\n}\n}\n"
		var inner error
		if file, inner = parse(body); inner != nil {
			return "", fmt.Errorf("neither declarations (%v) nor statements (%v)", err, inner)
		}
	}
	var head strings.Builder
	imported := make(map[string]bool)
	for _, spec := range file.Imports {
		path := strings.Trim(spec.Path.Value, `"`)
		imported[path[strings.LastIndexByte(path, '/')+1:]] = true
	}
	use := func(name string) {
		if path, ok := packages[name]; ok && !imported[name] {
			imported[name] = true
			fmt.Fprintf(&head, "import %s %q\n", name, path)
		}
	}
	var vars strings.Builder
	seen := make(map[string]bool)
	for _, id := range file.Unresolved {
		if seen[id.Name] {
			continue
		}
		seen[id.Name] = true
		if typ, ok := usual[id.Name]; ok {
			fmt.Fprintf(&vars, "var %s %s\n", id.Name, typ)
			if pkg, _, ok := strings.Cut(strings.TrimLeft(typ, "*[]"), "."); ok {
				use(pkg)
			}
		} else {
			use(id.Name)
		}
	}
	// Imports come first in a file, those of the fragment before ours or after.
	return "package page\n" + head.String() + body + vars.String(), nil
}

func parse(body string) (*ast.File, error) {
	return parser.ParseFile(token.NewFileSet(), "page.go", "package page\n"+body, 0)
}
