package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// problem is an error that the client is told (distribution-spec, "Error
// codes").
type problem struct {
	status  int
	code    string
	message string
}

func (p *problem) Error() string { return p.code + ": " + p.message }

func (p *problem) write(w http.ResponseWriter) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	b, err := json.Marshal(map[string][]item{"errors": {{p.code, p.message}}})
	if err != nil { // two strings always encode
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(p.status)
	_, _ = w.Write(b) // the client is gone: nobody to tell
}

func reply(w http.ResponseWriter, mediaType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // the client is gone: nobody to tell
	return nil
}

func tags(w http.ResponseWriter, r *http.Request, repo *repo, name string) error {
	all := make([]string, 0, len(repo.tags))
	for t := range repo.tags {
		all = append(all, t)
	}
	some, err := page(w, r, all)
	if err != nil {
		return err
	}
	return reply(w, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{name, some})
}

func (s *server) catalog(w http.ResponseWriter, r *http.Request, v *view) error {
	all := make([]string, 0, len(v.repos))
	for n := range v.repos {
		all = append(all, n)
	}
	some, err := page(w, r, all)
	if err != nil {
		return err
	}
	return reply(w, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{some})
}

// page sorts all and cuts out what the query asks for: n entries after last.
// When more follow it sets the Link header to them.
func page(w http.ResponseWriter, r *http.Request, all []string) ([]string, error) {
	slices.Sort(all)
	q := r.URL.Query()
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(all, last)
		if found {
			i++
		}
		all = all[i:]
	}
	if !q.Has("n") {
		return all, nil
	}
	n, err := strconv.Atoi(q.Get("n"))
	if err != nil || n < 0 {
		return nil, &problem{http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", fmt.Sprintf("n is %.20q, want a number, 0 or more", q.Get("n"))}
	}
	if n >= len(all) {
		return all, nil
	}
	if n > 0 {
		next := url.URL{Path: r.URL.Path, RawQuery: url.Values{"n": {strconv.Itoa(n)}, "last": {all[n-1]}}.Encode()}
		w.Header().Set("Link", "<"+next.String()+`>; rel="next"`)
	}
	return all[:n], nil
}

// referrers lists the manifests whose subject is ref. As the specification
// wants, it never answers 404: nothing refers to what isn't here.
func referrers(w http.ResponseWriter, r *http.Request, repo *repo, ref string) error {
	h, err := parseDigest(ref)
	if err != nil {
		return err
	}
	out := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	want := r.URL.Query().Get("artifactType")
	if want != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if repo != nil {
		for _, d := range repo.referrers[h] {
			if want == "" || want == d.ArtifactType {
				out.Manifests = append(out.Manifests, d)
			}
		}
	}
	return reply(w, string(types.OCIImageIndex), out)
}
