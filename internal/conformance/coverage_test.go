package conformance

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/internal/script"
	"github.com/stretchr/testify/require"
)

// Each statement that binds servers has a script, a Go test that names it, or an excuse; and what
// is named exists.
func TestEveryStatementIsTestedOrExcused(t *testing.T) {
	all, err := Statements()
	require.NoError(t, err)
	exists := map[script.Citation]Statement{}
	for _, s := range all {
		exists[script.Citation{Version: s.Version, ID: s.ID}] = s
	}
	cited := map[script.Citation]string{} // where, first
	cite := func(c script.Citation, where string) {
		if _, ok := exists[c]; !ok {
			t.Errorf("%s: there is no statement %s", where, c)
		}
		if cited[c] == "" {
			cited[c] = where
		}
	}
	scripts, err := Scripts()
	require.NoError(t, err)
	for _, s := range scripts {
		if len(s.Cites) == 0 {
			t.Errorf("%s:%d: the scenario names no statement", s.File, s.Line)
		}
		for _, c := range s.Cites {
			cite(c, s.Name)
		}
	}
	citeGoTests(t, cite)

	excuses, err := Excuses()
	require.NoError(t, err)
	excused := map[script.Citation]bool{}
	for _, e := range excuses {
		switch _, ok := exists[e.Citation]; {
		case !ok:
			t.Errorf("excuses.txt: there is no statement %s", e.Citation)
		case excused[e.Citation]:
			t.Errorf("excuses.txt: %s stands there twice", e.Citation)
		case cited[e.Citation] != "":
			t.Errorf("excuses.txt: %s needs no excuse, %s shows it", e.Citation, cited[e.Citation])
		}
		excused[e.Citation] = true
	}
	if len(excuses) >= 15 {
		t.Errorf("%d excuses are too many, fewer than 15 are allowed", len(excuses))
	}

	done, total := map[string]int{}, map[string]int{}
	for _, s := range all {
		if s.Role == "client" {
			continue
		}
		c := script.Citation{Version: s.Version, ID: s.ID}
		total[s.Version]++
		if cited[c] != "" || excused[c] {
			done[s.Version]++
			continue
		}
		t.Errorf("%s %s has neither test nor excuse: %s", c, s.Level, s.Summary)
	}
	t.Logf("conformance: 3.1.1 %d/%d, 5.0 %d/%d server statements tested or excused, %d excuses",
		done["3.1.1"], total["3.1.1"], done["5.0"], total["5.0"], len(excuses))
}

var goCitation = regexp.MustCompile(`\[(3\.1\.1|5\.0) (MQTT[0-9A-Za-z.-]+)\]`)

// citeGoTests finds what the comments of Go tests name, in all modules of the repository.
func citeGoTests(t *testing.T, cite func(script.Citation, string)) {
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch rel, _ := filepath.Rel(root, path); rel {
			case ".git", filepath.Join("internal", "conformance"),
				filepath.Join("internal", "script"):
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.SplitSeq(string(text), "\n") {
			_, comment, ok := strings.Cut(line, "//")
			if !ok {
				continue
			}
			for _, m := range goCitation.FindAllStringSubmatch(comment, -1) {
				cite(script.Citation{Version: m[1], ID: m[2]}, path)
			}
		}
		return nil
	})
	require.NoError(t, err)
}
