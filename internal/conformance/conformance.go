// Package conformance holds what the two standards demand of a broker, and scripts that show it.
//
// Statements.json lists the normative statements of MQTT 3.1.1 and 5.0 in our own words, the ones
// that the standards number by their numbers and others as MQTT5-NOID-<section>-<n> and
// MQTT311-NOID-<section>-<n>. The scripts in testdata, in the notation of internal/script, name in
// their comments the statements that they show. So may any Go test, with a comment such as "[5.0
// MQTT-2.2.1-4]". What no test of a broker can observe stands in excuses.txt with the reason. A
// test here fails when a statement that binds servers has none of the three.
package conformance

import (
	"bufio"
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/dunlin-mqtt/dunlin/internal/script"
)

//go:embed testdata/*.txt
var scripts embed.FS

//go:embed statements.json
var statements []byte

//go:embed excuses.txt
var excuses []byte

// A Statement is one rule of a standard.
type Statement struct {
	Version string `json:"version"` // "3.1.1" or "5.0"
	ID      string `json:"id"`      // the same id means different things in the two versions
	Role    string `json:"role"`    // who is bound: "server", "client" or "both"
	Level   string `json:"level"`   // "MUST", "MUST NOT", "SHOULD" or "MAY"
	Summary string `json:"summary"`
}

// Statements returns all statements, those of 3.1.1 first.
func Statements() ([]Statement, error) {
	var all []Statement
	err := json.Unmarshal(statements, &all)
	return all, err
}

// Scripts returns the scenarios of testdata, in the order of files and lines.
func Scripts() ([]*script.Script, error) {
	files, err := fs.Glob(scripts, "testdata/*.txt")
	if err != nil {
		return nil, err
	}
	var all []*script.Script
	var errs []error
	for _, f := range files {
		text, err := scripts.ReadFile(f)
		if err != nil {
			return nil, err
		}
		some, err := script.Parse(path.Join("internal/conformance", f), string(text))
		all = append(all, some...)
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

// An Excuse says why a statement has no test.
type Excuse struct {
	script.Citation
	Reason string
}

// Excuses returns what stands in excuses.txt.
func Excuses() ([]Excuse, error) {
	var all []Excuse
	lines := bufio.NewScanner(bytes.NewReader(excuses))
	for n := 1; lines.Scan(); n++ {
		l := strings.TrimSpace(lines.Text())
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		words := strings.SplitN(l, " ", 3)
		if len(words) < 3 {
			return nil, fmt.Errorf("excuses.txt:%d: want a version, a statement and a reason", n)
		}
		all = append(all, Excuse{script.Citation{Version: words[0], ID: words[1]}, words[2]})
	}
	return all, lines.Err()
}
