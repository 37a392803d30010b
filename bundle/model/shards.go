package model

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
)

// shardName is how both formats number the files of a model that is split.
var shardName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.(gguf|safetensors)$`)

// complete refuses a split model of which a file is missing.
func complete(files []File) error {
	type set struct{ stem, of, ext string }
	have := map[set]map[string]bool{}
	for _, f := range files {
		if m := shardName.FindStringSubmatch(f.Name); m != nil {
			k := set{m[1], m[3], m[4]}
			if have[k] == nil {
				have[k] = map[string]bool{}
			}
			have[k][m[2]] = true
		}
	}
	for k, got := range have {
		n, _ := strconv.Atoi(k.of)
		for i := 1; i <= n; i++ {
			if num := fmt.Sprintf("%05d", i); !got[num] {
				return fmt.Errorf("%s-%s-of-%s.%s is missing: the download is not complete", k.stem, num, k.of, k.ext)
			}
		}
	}
	return nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
