//go:build unix

package main

import (
	"os"
	"syscall"
)

// keepOwner gives f the owner of the file that it takes the place of: the server, which is not
// root, has to read it.
func keepOwner(f *os.File, name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() ||
		int(st.Gid) != os.Getegid()) {
		return f.Chown(int(st.Uid), int(st.Gid))
	}
	return nil
}
