package policies

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// units of size, largest first. Binary only: "64M" means two different
// numbers to two readers, so it is refused.
var units = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1},
}

// maxSize is 1 PiB: beyond it lies a mistake, and no sum can overflow.
const maxSize = 1 << 50

var sizeForm = regexp.MustCompile(`^([1-9][0-9]{0,15})(TiB|GiB|MiB|KiB|B)$`)

// parseSize reads a whole number with its unit, such as "64MiB".
func parseSize(s string) (int64, bool) {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, false
	}
	for _, u := range units {
		if u.name == m[2] && n <= maxSize/u.bytes {
			return n * u.bytes, true
		}
	}
	return 0, false
}

func formatSize(n int64) string {
	for _, u := range units {
		if n%u.bytes == 0 && n != 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// maxWall is a year of 365 days.
const maxWall = 8760 * time.Hour

// parseWall reads a duration of whole seconds, such as "2h" or "1h30m".
func parseWall(s string) (time.Duration, bool) {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second || d > maxWall || d%time.Second != 0 {
		return 0, false
	}
	return d, true
}

func formatWall(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func formatCPU(c float64) string {
	if c == 0 {
		return unlimited
	}
	return strconv.FormatFloat(c, 'f', -1, 64)
}

func formatBound(n int) string {
	if n == 0 {
		return unlimited
	}
	return strconv.Itoa(n)
}

// unlimited is the word that lifts a bound. A zero would read as "none at all".
const unlimited = "unlimited"
