package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/semver"
)

// ErrSkipped says that a release may not follow directly on what is installed:
// one in between has to be installed first.
var ErrSkipped = errors.New("can't follow directly on the installed release")

// Component is a part of a release that has rules of its own about what may
// follow on what.
type Component struct {
	Name    string `json:"name"`
	Version string `json:"version"` // semantic, without "v"
}

// oneMinor are the components that go up by one minor version at a time and
// never down, and who says so.
var oneMinor = map[string]string{
	"k3s": "Kubernetes' version skew policy: a minor version can't be left out",
}

// Step is what decides whether one release may follow on another.
type Step struct {
	Sequence     int64
	UpgradesFrom int64 // 0: from every earlier one
	Components   []Component
}

// Step returns what decides whether r may follow on another release.
func (r Release) Step() Step { return Step{r.Sequence, r.UpgradesFrom, r.Components} }

// CheckStep refuses to upgrade a host from one release to another: to an older
// one (ErrRollback), or to one that may not follow directly (ErrSkipped).
func CheckStep(installed, offered Step) error {
	if err := CheckSequence(installed.Sequence, offered.Sequence); err != nil {
		return err
	}
	if installed.Sequence < offered.UpgradesFrom {
		return fmt.Errorf("%w: the release with sequence %d upgrades from sequence %d or later, installed is %d: install a release in between first, one of sequence %d to %d",
			ErrSkipped, offered.Sequence, offered.UpgradesFrom, installed.Sequence, offered.UpgradesFrom, offered.Sequence-1)
	}
	for _, c := range installed.Components {
		i := slices.IndexFunc(offered.Components, func(o Component) bool { return o.Name == c.Name })
		why, stepwise := oneMinor[c.Name]
		if !stepwise || i < 0 {
			continue
		}
		if err := oneUp(c, offered.Components[i], why); err != nil {
			return err
		}
	}
	return nil
}

// oneUp wants the same major version, the same or the next minor, and nothing
// older.
func oneUp(from, to Component, why string) error {
	a, b := minor(from.Version), minor(to.Version)
	if semver.Major("v"+from.Version) == semver.Major("v"+to.Version) && b <= a+1 && semver.Compare("v"+to.Version, "v"+from.Version) >= 0 {
		return nil
	}
	return fmt.Errorf("%w: it brings %s %s, installed is %s; wanted %s to %s.%d (%s): install a release in between first",
		ErrSkipped, to.Name, to.Version, from.Version, from.Version, strings.TrimPrefix(semver.Major("v"+from.Version), "v"), a+1, why)
}

// minor is the second number of a version that check has passed.
func minor(version string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(semver.MajorMinor("v"+version), semver.Major("v"+version)+"."))
	return n
}

// maxComponents bounds the list; a release has a handful.
const maxComponents = 64

// CheckComponents refuses a list that can't be held against another.
func CheckComponents(cs []Component) error {
	if len(cs) > maxComponents {
		return fmt.Errorf("%d components, want at most %d", len(cs), maxComponents)
	}
	seen := map[string]bool{}
	for _, c := range cs {
		if err := errors.Join(CheckName(c.Name), CheckVersion(c.Version)); err != nil {
			return fmt.Errorf("component %.80q: %w", c.Name, err)
		}
		if seen[c.Name] {
			return fmt.Errorf("component %s a second time", c.Name)
		}
		seen[c.Name] = true
	}
	return nil
}

// checkStep holds the release's own fields about it against their rules.
func (r Release) checkStep() error {
	if r.UpgradesFrom < 0 || r.UpgradesFrom >= r.Sequence && r.UpgradesFrom != 0 {
		return fmt.Errorf("release: upgradesFrom %d, want a sequence below %d, or nothing", r.UpgradesFrom, r.Sequence)
	}
	if err := CheckComponents(r.Components); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}
