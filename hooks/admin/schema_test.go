package admin

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file asks for everything that openapi.json describes, and compares the answers with it.

// A document is openapi.json.
type document struct {
	Paths      map[string]map[string]operation
	Components struct{ Schemas map[string]object }
}

type operation struct {
	Role       string `json:"x-role"`
	Parameters []struct{ Name, In string }
	Responses  map[string]struct {
		Content map[string]struct{ Schema object }
	}
}

func TestAnswersAreWhatTheDescriptionSays(t *testing.T) {
	var doc document
	require.NoError(t, json.Unmarshal(openAPI, &doc))
	b := newBench(t)
	b.subscribe("c", "home/#")
	b.broker.Client(t, "gone", asAnn).Disconnect()
	b.retain("home/kitchen", "home")
	b.act(1, "ban", `{"kind":"client","value":"x","seconds":60,"reason":"why"}`)
	values := map[string]string{"id": "c", "topic": "home/kitchen", "filter": "home/#",
		"below": "home", "limit": "10"}
	asked := 0
	for path, operations := range doc.Paths {
		op, ok := operations["get"]
		content, hasJSON := op.Responses["200"].Content["application/json"]
		if !ok || !hasJSON {
			continue
		}
		var query []string
		for _, p := range op.Parameters {
			if v := values[p.Name]; p.In == "query" && v != "" {
				query = append(query, p.Name+"="+strings.ReplaceAll(v, "#", "%23"))
			}
		}
		address := strings.ReplaceAll(path, "{broker}", "main") + "?" + strings.Join(query, "&")
		text := b.do(b.request("GET", strings.TrimSuffix(address, "?"), ""), 200)
		var v any
		require.NoError(t, json.Unmarshal([]byte(text), &v))
		doc.check(t, path, content.Schema, v)
		asked++
	}
	require.Greater(t, asked, 15)
	var v any
	text := b.do(b.request("GET", at("clients", "limit", "0"), ""), 400)
	require.NoError(t, json.Unmarshal([]byte(text), &v))
	doc.check(t, "an error", object{"$ref": "#/components/schemas/errorAnswer"}, v)
}

// Each route of the description is refused without a user, without a role, and with a role that is
// not enough.
func TestTheDescriptionNamesTheRoles(t *testing.T) {
	var doc document
	require.NoError(t, json.Unmarshal(openAPI, &doc))
	b := newBench(t)
	routes := 0
	for path, operations := range doc.Paths {
		for method, op := range operations {
			for role, want := range map[string]int{"": 401, "nobody": 403, "reader": 403} {
				if role == "reader" && op.Role != "act" {
					continue
				}
				b.role = role
				b.do(b.request(strings.ToUpper(method),
					strings.ReplaceAll(path, "{broker}", "main"), "{}"), want)
			}
			routes++
		}
	}
	t.Logf("%d routes", routes)
	require.Greater(t, routes, 35)
}

// check compares a value with its schema.
func (doc *document) check(t *testing.T, at string, schema object, v any) {
	t.Helper()
	if ref, ok := schema["$ref"].(string); ok {
		schema = doc.Components.Schemas[ref[strings.LastIndexByte(ref, '/')+1:]]
		require.NotEmpty(t, schema, "%s: %s", at, ref)
	}
	switch v := v.(type) {
	case map[string]any:
		require.Equal(t, "object", schema["type"], at)
		properties, _ := schema["properties"].(object)
		more, _ := schema["additionalProperties"].(object)
		for name, value := range v {
			of, known := properties[name].(object)
			if !known {
				of = more
			}
			require.NotNil(t, of, "%s has %s, which is not described", at, name)
			doc.check(t, at+"."+name, of, value)
		}
		required, _ := schema["required"].([]any)
		for _, name := range required {
			require.Contains(t, v, name, at)
		}
	case []any:
		require.Equal(t, "array", schema["type"], at)
		for i, value := range v {
			doc.check(t, fmt.Sprintf("%s[%d]", at, i), schema["items"].(object), value)
		}
	case string:
		require.Equal(t, "string", schema["type"], at)
	case bool:
		require.Equal(t, "boolean", schema["type"], at)
	case float64:
		require.Contains(t, []any{"number", "integer"}, schema["type"], at)
	default:
		t.Errorf("%s is %v", at, v)
	}
}
