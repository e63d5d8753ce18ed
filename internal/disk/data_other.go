//go:build !linux

package disk

import "os"

func allocate(*os.File, int64) error { return nil }

func syncData(f *os.File) error { return f.Sync() }
