package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lockFolder makes sure that one server works in a storage folder: SQLite files and this process's view of them must
// not be shared. The lock goes with the process, however it ends.
func lockFolder(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the storage folder cannot be made: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "memoryd.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the storage folder cannot be locked: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w in %s: stop it, or set STORAGE_PATH to another folder", errFolderTaken, dir)
		}
		return nil, fmt.Errorf("the storage folder cannot be locked: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// folderTaken reports whether a server, or a command that keeps the folder for itself, works in it. It holds the lock for
// the moment of asking.
func folderTaken(dir string) bool {
	unlock, err := lockFolder(dir)
	if err == nil {
		unlock()
	}
	return errors.Is(err, errFolderTaken)
}
