package dunlin

import (
	"go/ast"
	"go/token"
	"go/types"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file holds that a function which needs a lock says so where its reader looks first: in its
// name, …Locked, or in the first line of its comment.

// lockHeld finds the words with which a comment says that its function needs a lock.
var lockHeld = regexp.MustCompile(`(\bmu|numbers|[Ll]ock of \w+|whose lock)( is)? held`)

// guardedFields are the fields of a Session that its lock guards, but for what never changes while
// others know the Session.
var guardedFields = strings.Fields(
	"conn local seq subs weight expiry gen walking ended most will out" +
		" in cursors quota endsAt extra due")

func TestFunctionsThatNeedALockSaySoFirst(t *testing.T) {
	fset := token.NewFileSet()
	files := parseProduct(t, fset, ".", "internal/journal", "internal/link", "internal/retained",
		"internal/owners", "internal/guard", "internal/timers", "internal/subs", "internal/logins")
	found := 0
	for _, f := range files {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Doc == nil || strings.HasSuffix(fn.Name.Name, "Locked") {
				continue
			}
			words := strings.Join(strings.Fields(fn.Doc.Text()), " ")
			if !lockHeld.MatchString(words) {
				continue
			}
			found++
			first := fn.Doc.List[0].Text
			if !lockHeld.MatchString(first) {
				t.Errorf("%s: %s needs a lock: say so in the first line, or call it %[2]sLocked",
					fset.Position(fn.Pos()), fn.Name.Name)
			}
		}
	}
	require.Greater(t, found, 60)
}

func TestFunctionsThatUseASessionLockItOrSayThatItIsLocked(t *testing.T) {
	root := loadRoot(t)
	session := root.pkg.Scope().Lookup("session").Type().Underlying().(*types.Struct)
	guarded := map[types.Object]bool{}
	for f := range session.Fields() {
		if slices.Contains(guardedFields, f.Name()) {
			guarded[f] = true
		}
	}
	require.Len(t, guarded, len(guardedFields))
	found := 0
	for name, f := range root.files {
		if name == "load.go" { // nobody else knows the Sessions yet
			continue
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil || strings.HasSuffix(fn.Name.Name, "Locked") {
				continue
			}
			uses, locks := "", false
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if x, ok := n.(*ast.SelectorExpr); ok {
					if guarded[root.info.Uses[x.Sel]] {
						uses = types.ExprString(x)
					}
					of := types.ExprString(x.X)
					locks = locks || x.Sel.Name == "Lock" && of != "b.mu" && of != "j.mu"
				}
				return true
			})
			if uses == "" || locks {
				continue
			}
			found++
			if doc := fn.Doc.Text(); !lockHeld.MatchString(doc) &&
				!strings.Contains(doc, "nobody else knows") {
				t.Errorf(
					"%s: %s uses %s: lock the Session, or say in the first line that it is locked",
					root.fset.Position(fn.Pos()), fn.Name.Name, uses)
			}
		}
	}
	require.Greater(t, found, 40)
}
