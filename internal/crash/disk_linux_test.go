package crash

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// mountEnv is the directory that the process is to mount a small disk on, and its size.
const mountEnv = "DUNLIN_CRASH_MOUNT"

func init() { roles[mountEnv] = holdDisk }

// A smallDisk is a tmpfs in namespaces of its own, which end with the process that holds them,
// whatever becomes of the test.
type smallDisk struct{ dir string }

// newSmallDisk mounts a tmpfs of the size, until the test ends. Where the system does not allow
// that, the test is skipped.
func newSmallDisk(t *testing.T, size string) *smallDisk {
	t.Helper()
	dir := t.TempDir()
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), mountEnv+"="+dir+" "+size)
	holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		holder.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		holder.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		holder.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := "it did not start"
	if err = holder.Start(); err == nil {
		t.Cleanup(func() {
			stdin.Close() // ends it
			holder.Wait()
		})
		said, err = bufio.NewReader(stdout).ReadString('\n')
	}
	if said = strings.TrimSpace(said); err != nil || said != "mounted" {
		t.Skipf("a tmpfs cannot be mounted here: %s (%v)", said, err)
	}
	return &smallDisk{fmt.Sprintf("/proc/%d/root%s", holder.Process.Pid, dir)}
}

// holdDisk is the process that mounts, and holds what it has mounted until standard input ends.
func holdDisk(what string) error {
	dir, size, _ := strings.Cut(what, " ")
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		fmt.Println(err)
		return err
	}
	fmt.Println("mounted")
	io.Copy(io.Discard, os.Stdin)
	return nil
}

func (d *smallDisk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill fills the disk, with so many bytes at most.
func (d *smallDisk) fill(most int) error {
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	page := make([]byte, 4<<10)
	for n := 0; n < most; n += len(page) {
		if _, err := f.Write(page); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// free takes away what fill has put there.
func (d *smallDisk) free() error { return os.Remove(d.ballast()) }
