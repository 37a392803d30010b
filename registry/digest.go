package registry

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// algorithms are those that content may be named by, with the number of hex
// digits of each (image-spec, descriptor.md). The store keeps all content
// under its sha256; a sha512 is one more name for it.
var algorithms = map[string]int{"sha256": 64, "sha512": 128}

var (
	digestForm = regexp.MustCompile(`^[a-z0-9]+([+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+$`)
	hexForm    = regexp.MustCompile(`^[0-9a-f]+$`)
)

// parseDigest tells a malformed digest, which is an error, from a well-formed
// one of an algorithm that is not known here, which is just not there.
func parseDigest(s string) (v1.Hash, error) {
	if !digestForm.MatchString(s) {
		return v1.Hash{}, refuse(http.StatusBadRequest, codeDigest, "digest %.80q: want algorithm:encoded", s)
	}
	alg, hex, _ := strings.Cut(s, ":")
	if n, ok := algorithms[alg]; ok && (len(hex) != n || !hexForm.MatchString(hex)) {
		return v1.Hash{}, refuse(http.StatusBadRequest, codeDigest, "digest %.80q: want %d lower-case hex digits after %s", s, n, alg)
	}
	return v1.Hash{Algorithm: alg, Hex: hex}, nil
}

// ownDigest is parseDigest for content that is to be kept here.
func ownDigest(s string) (v1.Hash, error) {
	h, err := parseDigest(s)
	if err != nil {
		return h, err
	}
	return h, checkAlgorithm(h.Algorithm)
}

func checkAlgorithm(alg string) error {
	if _, ok := algorithms[alg]; !ok {
		return refuse(http.StatusBadRequest, codeDigest, "digest algorithm %.40q: want sha256 or sha512", alg)
	}
	return nil
}

// fileOf is a digest as a file name. Tags have no such limits on their first
// character, and live in another directory.
func fileOf(h v1.Hash) string { return h.Algorithm + "-" + h.Hex }

// digestOf is fileOf's inverse; false for names that are no digest.
func digestOf(file string) (v1.Hash, bool) {
	alg, hex, _ := strings.Cut(file, "-")
	h, err := ownDigest(fmt.Sprintf("%s:%s", alg, hex))
	return h, err == nil
}
