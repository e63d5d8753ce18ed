// Command segdump verifies a store of package store/segment, and shows what it holds:
//
//	go run ./store/segment/segdump [-verify] DIR
//
// The store must not be open. It exits with 1 if anything is damaged.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/dunlin-mqtt/dunlin/store/segment"
)

func main() {
	verify := flag.Bool("verify", false, "say only whether everything is as it was written")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: segdump [-verify] DIR")
		os.Exit(2)
	}
	if err := run(os.Stdout, flag.Arg(0), *verify); err != nil {
		fmt.Fprintln(os.Stderr, "segdump:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, dir string, verify bool) error {
	if !verify {
		return segment.Dump(w, dir)
	}
	r, err := segment.Verify(dir)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w,
		"whole: %d segments, %d records, %d operations, %d bytes, last commit %d, %d bytes torn "+
			"off at the end\n",
		r.Segments, r.Records, r.Operations, r.Bytes, r.LastCommit, r.Torn)
	return err
}
