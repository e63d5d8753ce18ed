package admin

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"
)

// This file holds openapi.json to the routes: its texts are those of the comments of the source,
// and its schemas those of the types. After a change: go test -run OpenAPI -update .

var update = flag.Bool("update", false, "write openapi.json anew")

// paramTexts describe the parameters of queries.
var paramTexts = map[string]string{
	"after":     "The field next of the page before.",
	"limit":     "How many things a page has, at most 500. Default 50.",
	"sort":      "The order: id (the default), or a figure, the largest first.",
	"id":        "A Client Identifier; in a list of clients, a part of it.",
	"prefix":    "What Client Identifiers begin with.",
	"user":      "The name of a user.",
	"address":   "An IP address or a network, such as 192.0.2.0/24.",
	"listener":  "The name of a listener.",
	"connected": "Whether the client is connected: true or false.",
	"filter":    "A Topic Filter. Default #.",
	"name":      "The name of a trace.",
	"file":      "The number of a file, 0 or none for the newest.",
	"topic":     "A Topic Name, with the mount point of its publisher.",
	"refused":   "true: only refused connections; false: only those that were accepted.",
	"below":     "A topic. Without it, the levels at the top.",
}

type object = map[string]any

func TestOpenAPIDescribesTheRoutes(t *testing.T) {
	h := New(nil, Options{})
	defer h.Close()
	want, err := json.MarshalIndent(describe(t, h), "", "\t")
	require.NoError(t, err)
	want = append(want, '\n')
	if *update {
		require.NoError(t, os.WriteFile("openapi.json", want, 0o644))
		return
	}
	if !bytes.Equal(want, openAPI) {
		t.Error("openapi.json does not describe the routes: run go test -run OpenAPI -update . " +
			"and look at the difference")
	}
}

// describe makes the document.
func describe(t *testing.T, h *Handler) object {
	src := readSource(t)
	paths, schemas := object{}, object{}
	src.schema(schemas, reflect.TypeFor[errorAnswer]())
	for i := range h.routes {
		x := &h.routes[i]
		if !strings.HasPrefix(x.path, api) && x.path != "/livez" && x.path != "/readyz" &&
			x.path != "/metrics" {
			continue // the dashboard
		}
		at, _ := paths[x.path].(object)
		if at == nil {
			at = object{}
			paths[x.path] = at
		}
		at[strings.ToLower(x.method)] = src.operation(t, x, schemas)
	}
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Dunlin admin", "version": "1",
			"description": "What an operator can ask and do. Lists come in pages: give the field " +
				"next of a page as after. Errors are JSON: see errorAnswer. A body needs " +
				"Content-Type: application/json.",
		},
		"security":   []any{object{"program": []any{}}},
		"paths":      paths,
		"components": object{"schemas": schemas, "securitySchemes": securitySchemes},
	}
}

var securitySchemes = object{"program": object{
	"type": "http", "scheme": "basic",
	"description": "What the program takes; by default HTTP Basic authentication.",
}}

// operation describes a route.
func (src *source) operation(t *testing.T, x *route, schemas object) object {
	text := src.methods[methodName(x)]
	require.NotEmpty(t, text, "%s has no comment", methodName(x))
	op := object{"summary": text, "x-role": x.role.String()}
	params := []any{}
	if strings.Contains(x.path, "{broker}") {
		params = append(params, object{"name": "broker", "in": "path", "required": true,
			"description": "The name of a broker.", "schema": object{"type": "string"}})
	}
	for _, name := range x.params {
		require.Contains(t, paramTexts, name)
		params = append(params, object{"name": name, "in": "query",
			"description": paramTexts[name], "schema": object{"type": "string"}})
	}
	if len(params) > 0 {
		op["parameters"] = params
	}
	if x.body != nil {
		op["requestBody"] = object{"required": true, "content": object{"application/json": object{
			"schema": src.schema(schemas, reflect.TypeOf(x.body))}}}
	}
	good := object{"description": "Done."}
	if x.answer != nil {
		good = object{"description": "The answer.", "content": object{"application/json": object{
			"schema": src.schema(schemas, reflect.TypeOf(x.answer))}}}
	}
	op["responses"] = object{"200": good, "default": object{"description": "It was refused.",
		"content": object{"application/json": object{
			"schema": object{"$ref": "#/components/schemas/errorAnswer"}}}}}
	return op
}

// methodName is the name of the method that serves a route.
func methodName(x *route) string {
	name := runtime.FuncForPC(reflect.ValueOf(x.serve).Pointer()).Name()
	return name[strings.LastIndexByte(name, '.')+1:]
}

// schema describes a type, and puts that of a struct among schemas.
func (src *source) schema(schemas object, of reflect.Type) object {
	switch {
	case of == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case of.Kind() == reflect.Pointer:
		return src.schema(schemas, of.Elem())
	case of.Kind() == reflect.Slice && of.Elem().Kind() == reflect.Uint8:
		return object{"type": "string", "contentEncoding": "base64"}
	case of.Kind() == reflect.Slice:
		return object{"type": "array", "items": src.schema(schemas, of.Elem())}
	case of.Kind() == reflect.Map:
		return object{"type": "object",
			"additionalProperties": src.schema(schemas, of.Elem())}
	case of.Kind() != reflect.Struct:
		return plainSchema(of)
	}
	name := of.Name()
	if i := strings.IndexByte(name, '['); i >= 0 { // page[path/to.item]
		item := strings.TrimRight(name[i+1:], "]")
		name = name[:i] + "_" + item[strings.LastIndexByte(item, '.')+1:]
	}
	if schemas[name] == nil {
		schemas[name] = object{} // for a type that has itself as a field
		properties, required := object{}, []any{}
		for field := range of.Fields() {
			tag, options, _ := strings.Cut(field.Tag.Get("json"), ",")
			p := src.schema(schemas, field.Type)
			base, _, _ := strings.Cut(of.Name(), "[")
			if text := src.fields[base+"."+field.Name]; text != "" {
				p["description"] = text
			}
			properties[tag] = p
			if options == "" {
				required = append(required, tag)
			}
		}
		schemas[name] = object{"type": "object", "properties": properties, "required": required,
			"additionalProperties": false}
	}
	return object{"$ref": "#/components/schemas/" + name}
}

func plainSchema(of reflect.Type) object {
	switch of.Kind() {
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.String:
		return object{"type": "string"}
	}
	if of.PkgPath() != "" { // slog.Level
		return object{"type": "string"}
	}
	return object{"type": "integer"}
}

// A source has the comments of this package.
type source struct{ methods, fields map[string]string }

func readSource(t *testing.T) *source {
	src := &source{map[string]string{}, map[string]string{}}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		require.NoError(t, err)
		for n := range ast.Preorder(f) {
			switch n := n.(type) {
			case *ast.FuncDecl:
				text, _, _ := strings.Cut(n.Doc.Text(), "\n\n")
				text = strings.Join(strings.Fields(text), " ")
				src.methods[n.Name.Name] = sentence(strings.TrimPrefix(text, n.Name.Name+" "))
			case *ast.TypeSpec:
				src.readFields(n)
			}
		}
	}
	return src
}

func (src *source) readFields(n *ast.TypeSpec) {
	s, ok := n.Type.(*ast.StructType)
	if !ok {
		return
	}
	for _, field := range s.Fields.List {
		for _, name := range field.Names {
			text := strings.TrimSpace(field.Doc.Text() + field.Comment.Text())
			src.fields[n.Name.Name+"."+name.Name] = strings.Join(strings.Fields(text), " ")
		}
	}
}

// sentence begins with a capital letter.
func sentence(s string) string {
	for i, r := range s {
		return string(unicode.ToUpper(r)) + s[i+len(string(r)):]
	}
	return s
}
