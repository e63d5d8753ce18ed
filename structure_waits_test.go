package dunlin

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file holds that whatever waits for another goroutine says so to the build that checks the
// locks, and that each lock is one of those that this build knows.

// What waits as a method, or is one of a hook or of the Store, whatever it is called of. Close,
// Load, Start and Next are not here: others have methods of these names.
var waitingMethods = map[string]bool{
	"Wait": true, "Do": true, "Sleep": true, "Accept": true,
	"Authenticate": true, "Authorize": true, "AuthorizeDelivery": true, "Intercept": true,
	"InterceptDelivery": true,
	"OnReload":          true, "Stable": true, "Commit": true, "Checkpoint": true,
}

func TestEveryWaitIsMarkedForTheBuildThatChecksLocks(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	journal, err := filepath.Glob("internal/journal/*.go")
	require.NoError(t, err)
	found := 0
	for _, name := range append(files, journal...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		waitsIn := func(body *ast.BlockStmt) {
			for _, at := range unmarkedWaits(body, &found) {
				t.Errorf("%s waits, and no lock.NoneHeld before it in its function says so",
					fset.Position(at))
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Body != nil {
					waitsIn(n.Body)
				}
			case *ast.FuncLit:
				waitsIn(n.Body)
			}
			return true
		})
	}
	require.Greater(t, found, 20)
}

func TestEveryLockHasAPlaceInTheOrder(t *testing.T) {
	ranked := 0
	for _, dir := range []string{
		".", "internal/budget", "internal/fifo", "internal/guard", "internal/holders",
		"internal/journal", "internal/link", "internal/logins", "internal/loop", "internal/owners",
		"internal/retained", "internal/room", "internal/subs", "internal/timers",
		"internal/traffic",
	} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			plain, n := locksIn(f)
			ranked += n
			for _, at := range plain {
				t.Errorf("%s: a lock of package sync has no place in the order, take one of "+
					"internal/lock",
					fset.Position(at))
			}
		}
	}
	require.GreaterOrEqual(t, ranked, 18)
}

// locksIn returns where f names the locks of package sync, and how often it names those that have a
// place in the order.
func locksIn(f *ast.File) (plain []token.Pos, ranked int) {
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		switch x.Name + "." + sel.Sel.Name {
		case "sync.Mutex", "sync.RWMutex", "sync.Cond", "sync.NewCond":
			plain = append(plain, sel.Pos())
		case "lock.Mutex", "lock.RWMutex":
			ranked++
		}
		return true
	})
	return plain, ranked
}

func TestLocksWithoutAPlaceInTheOrderAreFound(t *testing.T) {
	source := "package x\nvar a sync.Mutex; var b lock.Mutex[r]; type c struct { sync.RWMutex; " +
		"*sync.Cond }"
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", source, parser.SkipObjectResolution)
	require.NoError(t, err)
	plain, ranked := locksIn(f)
	require.Len(t, plain, 3)
	require.Equal(t, 1, ranked)
}

// unmarkedWaits returns the places of a function, not of those inside of it, that wait without a
// mark before them. It adds to found how many places wait.
func unmarkedWaits(body *ast.BlockStmt, found *int) (places []token.Pos) {
	marked := token.Pos(-1)
	waits := func(at token.Pos) {
		*found++
		if marked < 0 || at < marked {
			places = append(places, at)
		}
	}
	var walk func(n ast.Node) bool
	walk = func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.SelectStmt:
			inspectSelect(n, waits, walk)
			return false
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				waits(n.Pos())
			}
		case *ast.SendStmt:
			waits(n.Pos())
		case *ast.CallExpr:
			sel, ok := n.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if sel.Sel.Name == "NoneHeld" && marked < 0 {
				marked = n.Pos()
			}
			if waitingMethods[sel.Sel.Name] {
				waits(n.Pos())
			}
		}
		return true
	}
	ast.Inspect(body, walk)
	return places
}

// inspectSelect looks at a select statement, which waits unless it has a default, and at what
// follows in it.
func inspectSelect(n *ast.SelectStmt, waits func(token.Pos), walk func(ast.Node) bool) {
	waiting := true
	for _, s := range n.Body.List {
		waiting = waiting && s.(*ast.CommClause).Comm != nil
	}
	if waiting {
		waits(n.Pos())
	}
	for _, s := range n.Body.List {
		for _, inner := range s.(*ast.CommClause).Body {
			ast.Inspect(inner, walk)
		}
	}
}

// What the test above finds, and what it lets pass.
func TestUnmarkedWaitsAreFound(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       int
	}{
		{"a receive", "<-c", 1},
		{"a receive that is marked", "lock.NoneHeld(\"a wait\"); <-c", 0},
		{"a mark that comes too late", "<-c; lock.NoneHeld(\"a wait\")", 1},
		{"a mark in another function", "func() { lock.NoneHeld(\"a wait\") }(); <-c", 1},
		{"a receive in another function", "f := func() { <-c }; f()", 0},
		{"a send", "c <- 1", 1},
		{"a select", "select { case <-c: case d <- 1: }", 1},
		{"a select that does not wait", "select { case <-c: case d <- 1: default: }", 0},
		{"a receive inside of one", "select { case <-c: <-d; default: }", 1},
		{"a WaitGroup", "g.Wait()", 1},
		{"a Once", "o.Do(f)", 1},
		{"a hook", "a.Authorize(ctx, r)", 1},
		{"the Store", "s.Commit(ctx, ops)", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, "x.go", "package x\nfunc x() { "+tt.body+" }", 0)
			require.NoError(t, err)
			n := 0
			places := unmarkedWaits(f.Decls[0].(*ast.FuncDecl).Body, &n)
			require.Len(t, places, tt.want)
		})
	}
}
