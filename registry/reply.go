package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
)

// The error codes of distribution-spec, "Error codes"; the last two are
// registries' custom.
const (
	codeBlob         = "BLOB_UNKNOWN"
	codeUpload       = "BLOB_UPLOAD_INVALID"
	codeNoUpload     = "BLOB_UPLOAD_UNKNOWN"
	codeDigest       = "DIGEST_INVALID"
	codeMissing      = "MANIFEST_BLOB_UNKNOWN"
	codeManifest     = "MANIFEST_INVALID"
	codeNoManifest   = "MANIFEST_UNKNOWN"
	codeName         = "NAME_INVALID"
	codeNoName       = "NAME_UNKNOWN"
	codeSize         = "SIZE_INVALID"
	codeUnauthorized = "UNAUTHORIZED"
	codeDenied       = "DENIED"
	codeUnsupported  = "UNSUPPORTED"
	codeTooMany      = "TOOMANYREQUESTS"
	codePage         = "PAGINATION_NUMBER_INVALID"
	codeUnknown      = "UNKNOWN"
)

// problem is an error that the client is told.
type problem struct {
	status  int
	code    string
	message string
}

func (p *problem) Error() string { return p.code + ": " + p.message }

func refuse(status int, code, format string, args ...any) error {
	return &problem{status, code, fmt.Sprintf(format, args...)}
}

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
		return nil, refuse(http.StatusBadRequest, codePage, "n is %.20q, want a number, 0 or more", q.Get("n"))
	}
	if n >= len(all) {
		return all, nil
	}
	if n > 0 {
		next(w, r, url.Values{"n": {strconv.Itoa(n)}, "last": {all[n-1]}})
	}
	return all[:n], nil
}

// next links to the rest of a list (RFC 5988).
func next(w http.ResponseWriter, r *http.Request, q url.Values) {
	u := url.URL{Path: r.URL.Path, RawQuery: q.Encode()}
	w.Header().Set("Link", "<"+u.String()+`>; rel="next"`)
}
