package registry

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/clawbox/clawbox/internal/durable"
)

var (
	errPassword = errors.New("no such user, or another password")
	errCrowd    = errors.New("too many passwords to check")
)

const (
	// bcryptCost is what AddUser writes. A check takes some 50 ms of CPU.
	bcryptCost = 10
	maxUsers   = 1 << 20 // bytes of the file
	maxProven  = 1024    // passwords that are remembered
	checkers   = 2       // checked at a time
	waiters    = 32      // and waiting for that
)

// Users are names and passwords, from a file as `htpasswd -B` writes it: lines
// of NAME:BCRYPT. The file is read again when it has changed.
//
// A bcrypt check is slow on purpose, and clients send the password with each
// request. So a proven one is remembered for a while, as a keyed hash, and
// the number that is checked at a time is bounded.
type Users struct {
	path string
	key  []byte
	slow chan struct{}
	wait chan struct{}

	mu     sync.Mutex // guards what follows
	at     os.FileInfo
	hashes map[string][]byte
	proven map[[sha256.Size]byte]time.Time // when it ends
}

// OpenUsers reads the users in path.
func OpenUsers(path string) (*Users, error) {
	u := &Users{path: path, key: make([]byte, 32), slow: make(chan struct{}, checkers), wait: make(chan struct{}, waiters)}
	if _, err := rand.Read(u.key); err != nil {
		return nil, err
	}
	_, err := u.hash("")
	return u, err
}

var (
	userForm   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}$`)
	bcryptForm = regexp.MustCompile(`^\$2[aby]\$(0[4-9]|1[0-4])\$[./A-Za-z0-9]{53}$`)
)

func parseUsers(b []byte) (map[string][]byte, error) {
	out := map[string][]byte{}
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, hash, _ := strings.Cut(line, ":")
		switch {
		case !userForm.MatchString(name):
			return nil, fmt.Errorf("line %d: user %.80q: want letters, digits and . _ @ -, 64 at most", i+1, name)
		case !bcryptForm.MatchString(hash):
			return nil, fmt.Errorf("line %d: user %s: want a bcrypt hash ($2y$…) with a cost from 4 to 14; write it with htpasswd -B", i+1, name)
		case out[name] != nil:
			return nil, fmt.Errorf("line %d: user %s a second time", i+1, name)
		}
		out[name] = []byte(hash)
	}
	return out, nil
}

// hash returns the hash of a user, nil for none, from the file as it is now.
func (u *Users) hash(name string) ([]byte, error) {
	fi, err := os.Stat(u.path)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.at != nil && os.SameFile(u.at, fi) && u.at.ModTime().Equal(fi.ModTime()) && u.at.Size() == fi.Size() {
		return u.hashes[name], nil
	}
	if fi.Size() > maxUsers {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", u.path, fi.Size(), maxUsers)
	}
	b, err := os.ReadFile(u.path)
	if err != nil {
		return nil, err
	}
	hashes, err := parseUsers(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u.path, err)
	}
	u.at, u.hashes, u.proven = fi, hashes, map[[sha256.Size]byte]time.Time{}
	return hashes[name], nil
}

// nobody is the hash that unknown users are compared with, so that they take
// as long as known ones.
var nobody = sync.OnceValue(func() []byte {
	h, err := bcrypt.GenerateFromPassword([]byte("nobody"), bcryptCost)
	if err != nil {
		panic(err)
	}
	return h
})

const provenFor = 5 * time.Minute

// Verify returns nil when name has that password.
func (u *Users) Verify(ctx context.Context, name, password string) error {
	hash, err := u.hash(name)
	if err != nil {
		return err
	}
	if hash == nil {
		hash, name = nobody(), ""
	}
	m := hmac.New(sha256.New, u.key)
	fmt.Fprintf(m, "%s\x00%s\x00%s", name, hash, password)
	key := [sha256.Size]byte(m.Sum(nil))
	u.mu.Lock()
	proven := time.Now().Before(u.proven[key])
	u.mu.Unlock()
	if proven {
		return nil
	}
	if err := u.compare(ctx, hash, password); err != nil || name == "" {
		return errors.Join(errPassword, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.proven) >= maxProven {
		clear(u.proven)
	}
	u.proven[key] = time.Now().Add(provenFor)
	return nil
}

// compare is bcrypt's comparison, when it is its turn.
func (u *Users) compare(ctx context.Context, hash []byte, password string) error {
	select {
	case u.wait <- struct{}{}:
		defer func() { <-u.wait }()
	default:
		return errCrowd
	}
	select {
	case u.slow <- struct{}{}:
		defer func() { <-u.slow }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return bcrypt.CompareHashAndPassword(hash, []byte(password))
}

// SetUser gives name a password in the users' file, which it makes when there
// is none; an empty password takes the user away. The change is atomic and
// durable.
func SetUser(path, name, password string) error {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	users, err := parseUsers(b)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if password == "" && users[name] == nil {
		return fmt.Errorf("%s has no user %.80q: %w", path, name, fs.ErrNotExist)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if n, _, _ := strings.Cut(strings.TrimSpace(line), ":"); n != name {
			out.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	if password != "" {
		line, err := UserLine(name, password)
		if err != nil {
			return err
		}
		out.WriteString(line + "\n")
	}
	return durable.WriteFile(path, []byte(out.String()), 0o600)
}

// UserLine makes the line of the users' file that gives name a password.
func UserLine(name, password string) (string, error) {
	if !userForm.MatchString(name) {
		return "", fmt.Errorf("user %.80q: want letters, digits and . _ @ -, 64 at most", name)
	}
	if len(password) < 8 || len(password) > 72 { // bcrypt reads no more
		return "", fmt.Errorf("password of %d bytes: want 8 to 72", len(password))
	}
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcryptCost)
	return name + ":" + string(h), err
}
