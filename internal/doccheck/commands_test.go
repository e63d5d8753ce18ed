package doccheck

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A command of Go in a page: go run, with what stands before and behind it.
var goCommand = regexp.MustCompile(
	`(?m)^(?: {4,}|\t)(?:[A-Z_]+=\S+ |cd (\S+) && )?go (run|build|test) (.*)$`)

// folderOf returns the folder that a command is about, and the words behind it. ok is false if it
// names none.
func folderOf(page, cd, rest string) (folder string, words []string, ok bool) {
	rest, _, _ = strings.Cut(rest, " #")
	words = strings.Fields(rest)
	for i, w := range words {
		switch {
		case strings.HasPrefix(w, "./"):
			return filepath.Join(root, cd, w), words[i+1:], true
		case w == "." && cd != "":
			return filepath.Join(root, cd), words[i+1:], true
		case w == "." && strings.HasPrefix(page, "docs"): // they say that they are in that folder
			return filepath.Join(root, "examples", "server"), words[i+1:], true
		case w == ".":
			return filepath.Join(root, filepath.Dir(page)), words[i+1:], true
		}
	}
	return "", nil, false
}

// programs returns the source of a folder.
func programs(t *testing.T, folder string) string {
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	require.NoError(t, err)
	var all strings.Builder
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		all.Write(text)
	}
	return all.String()
}

// Each "go run", "go build" and "go test" in a page names a folder with a program or package, and
// flags that it has.
func TestCommandsInPagesNameProgramsAndTheirFlags(t *testing.T) {
	flags, n := regexp.MustCompile(`^--?([a-z][a-z0-9-]*)`), 0
	for page, text := range pages(t) {
		for _, m := range goCommand.FindAllStringSubmatch(text, -1) {
			folder, words, ok := folderOf(page, m[1], m[3])
			if !ok {
				continue
			}
			n++
			source := programs(t, folder)
			if source == "" {
				t.Errorf("%s: %q: there is no program in %s", page, strings.TrimSpace(m[0]), folder)
				continue
			}
			if m[2] == "run" && !strings.Contains(source, "package main\n") {
				t.Errorf("%s: %q: %s is not a program", page, strings.TrimSpace(m[0]), folder)
			}
			for _, w := range words {
				found := flags.FindStringSubmatch(w)
				if m[2] == "run" && found != nil && found[1] != "h" &&
					!strings.Contains(source, `"`+found[1]+`"`) {
					t.Errorf("%s: %q: the program has no flag -%s", page, strings.TrimSpace(m[0]),
						found[1])
				}
			}
		}
	}
	require.Greater(t, n, 30, "commands that were found")
}
