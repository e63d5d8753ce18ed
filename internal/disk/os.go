package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Make returns the directory at path, and makes it and those above it if it is not there, for this
// user alone.
func Make(path string) (Dir, error) {
	if err := makeDir(filepath.Clean(path), syncDir); err != nil {
		return nil, err
	}
	return Existing(path)
}

// makeDir makes a directory and those above it that are not there. It calls sync for each directory
// in which it has made one, as each name is durable by itself.
func makeDir(path string, sync func(path string) error) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(path)
	if above != path {
		if err := makeDir(above, sync); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil &&
		!errors.Is(err, fs.ErrExist) { // somebody else may be faster
		return err
	}
	return sync(above)
}

// Existing returns the directory at path. It is an error if there is none.
func Existing(path string) (Dir, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", path)
	}
	return osDir(path), nil
}

// FileOf returns a File that is f.
func FileOf(f *os.File) File { return osFile{f} }

type osDir string

type osFile struct{ *os.File }

func (d osDir) path(name string) string { return filepath.Join(string(d), name) }

func (d osDir) Create(name string) (File, error) {
	return wrap(os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600))
}

func (d osDir) Open(name string) (File, error) { return wrap(os.Open(d.path(name))) }

func (d osDir) Reopen(name string) (File, error) {
	return wrap(os.OpenFile(d.path(name), os.O_RDWR, 0))
}

func wrap(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d osDir) Remove(name string) error { return os.Remove(d.path(name)) }

func (d osDir) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d osDir) Names() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (d osDir) Sync() error { return syncDir(string(d)) }

func (d osDir) Lock(name string) (io.Closer, error) {
	l, err := lock(d.path(name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.path(name), err)
	}
	return l, nil
}

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f osFile) Allocate(size int64) error { return allocate(f.File, size) }

func (f osFile) Sync() error { return syncData(f.File) }
