package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Kind is what a file of a model is for.
type Kind string

// The kinds of files.
const (
	Weight Kind = "weight" // tensors
	Config Kind = "config" // anything that an engine reads beside them
	Doc    Kind = "doc"    // for people
	Code   Kind = "code"   // programs and libraries: listed, never run
	Pickle Kind = "pickle" // runs code when it is loaded
)

// File is one file of a model.
type File struct {
	Name   string // slash path within the model
	Size   int64  // bytes
	Kind   Kind
	Format string  // of weights: "gguf", "safetensors" or "pickle"
	Digest v1.Hash // zero before it is in a store
}

// names says what a file is by its base name, in lower case; the first pattern
// of path.Match that fits wins, and what fits none is configuration.
var names = []struct {
	pattern string
	kind    Kind
	format  string
}{
	{"*.safetensors", Weight, "safetensors"},
	{"*.gguf", Weight, "gguf"},
	{"*.bin", Pickle, "pickle"},
	{"*.pt", Pickle, "pickle"},
	{"*.pth", Pickle, "pickle"},
	{"*.pkl", Pickle, "pickle"},
	{"*.pickle", Pickle, "pickle"},
	{"*.ckpt", Pickle, "pickle"},
	{"*.joblib", Pickle, "pickle"},
	{"*.dill", Pickle, "pickle"},
	{"*.npy", Pickle, "pickle"},
	{"*.npz", Pickle, "pickle"},
	{"*.h5", Pickle, "pickle"},
	{"*.keras", Pickle, "pickle"}, // may carry objects and code
	{"*.py", Code, ""},
	{"*.pyc", Code, ""},
	{"*.so", Code, ""},
	{"*.so.*", Code, ""},
	{"*.dll", Code, ""},
	{"*.sh", Code, ""},
	{"*.ipynb", Code, ""},
	{"*.js", Code, ""},
	{"*.cu", Code, ""},
	{"*.cpp", Code, ""},
	{"*.c", Code, ""},
	{"*.exe", Code, ""},
	{"readme*", Doc, ""},
	{"license*", Doc, ""},
	{"licence*", Doc, ""},
	{"notice*", Doc, ""},
	{"copying*", Doc, ""},
	{"*.md", Doc, ""},
	{"*.pdf", Doc, ""},
	{"*.png", Doc, ""},
	{"*.jpg", Doc, ""},
	{"*.jpeg", Doc, ""},
	{"*.svg", Doc, ""},
}

// marks says what a file is by its first bytes, whatever it is called.
var marks = []struct {
	prefix string
	kind   Kind
	format string
}{
	{"\x80\x02", Pickle, "pickle"},
	{"\x80\x03", Pickle, "pickle"},
	{"\x80\x04", Pickle, "pickle"},
	{"\x80\x05", Pickle, "pickle"},
	{"PK\x03\x04", Pickle, "pickle"}, // PyTorch's archives are ZIP files of pickles
	{"\x7fELF", Code, ""},
	{"#!", Code, ""},
	{"MZ\x90\x00", Code, ""},
	{"GGUF", Weight, "gguf"},
}

// skipped are what download tools leave beside a model.
var skipped = map[string]bool{".git": true, ".cache": true, ".huggingface": true, ".gitattributes": true, ".gitignore": true, ".DS_Store": true}

// MaxFiles bounds the files of one model; its manifest must stay small.
const MaxFiles = 4096

// Options say what Scan lets through.
type Options struct {
	// Pickles lets files through that run code when they are loaded.
	Pickles bool
	// Exclude holds patterns of path.Match; a file whose path, base name or
	// a folder above it matches stays out.
	Exclude []string
}

// Folder is a model's folder that was looked at. Its files are opened below one
// root, which no symbolic link leaves.
type Folder struct {
	Path  string // as it was given
	Files []File // by name
	Facts Facts

	root   *os.Root
	prefix string            // of the model within root
	links  map[string]string // a single file's path within root
}

// Close gives the folder's descriptor back.
func (f *Folder) Close() error { return f.root.Close() }

// Open opens one of the files.
func (f *Folder) Open(x File) (*os.File, error) {
	name := path.Join(f.prefix, x.Name)
	if real, ok := f.links[x.Name]; ok {
		name = real
	}
	return f.openFile(name)
}

// openFile opens what is below the root; a FIFO doesn't hold it up.
func (f *Folder) openFile(name string) (*os.File, error) {
	return f.root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// Scan looks at a folder, a snapshot in a Hugging Face cache, the cache's folder
// of one model, or a single weight file.
func Scan(p string, o Options) (*Folder, error) {
	f, err := open(p)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", p, err)
	}
	if err = f.list(o); err == nil {
		f.Facts, err = inspect(f.Files, func(x File) (*os.File, error) { return f.Open(x) })
	}
	if err == nil {
		err = f.allowed(o)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("model %s: %w", p, err), f.root.Close())
	}
	return f, nil
}

// open finds the root for a path.
func open(p string) (*Folder, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return nil, err
	}
	fi, err := os.Stat(abs)
	if err != nil {
		return nil, err
	}
	f := &Folder{Path: p, prefix: "."}
	switch {
	case !fi.IsDir():
		return f, f.single(abs)
	case isCache(abs):
		if f.root, err = os.OpenRoot(abs); err != nil {
			return nil, err
		}
		rev, err := f.revision()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("it is a model's folder in a Hugging Face cache, but: %w; name the snapshot itself", err), f.root.Close())
		}
		f.prefix = path.Join("snapshots", rev)
		return f, nil
	case path.Base(filepath.Dir(abs)) == "snapshots" && isCache(filepath.Dir(filepath.Dir(abs))):
		f.prefix = path.Join("snapshots", filepath.Base(abs))
		abs = filepath.Dir(filepath.Dir(abs))
	}
	f.root, err = os.OpenRoot(abs)
	return f, err
}

// maxRevision bounds refs/main, in bytes: a commit is named by 40 or 64 digits.
const maxRevision = 128

// revision is the snapshot that refs/main names.
func (f *Folder) revision() (string, error) {
	const ref = "refs/main"
	if fi, err := f.root.Lstat(ref); err != nil {
		return "", err
	} else if !fi.Mode().IsRegular() {
		return "", fmt.Errorf("%s is a link or a %s, want a regular file", ref, what(fi.Mode()))
	}
	h, err := f.openFile(ref)
	if err != nil {
		return "", err
	}
	defer h.Close()
	b, err := io.ReadAll(io.LimitReader(h, maxRevision+1))
	if err != nil {
		return "", err
	}
	rev := strings.TrimSpace(string(b))
	if len(b) > maxRevision || !revisionForm.MatchString(rev) {
		return "", fmt.Errorf("%s begins with %.40q, want the name of a snapshot in at most %d bytes", ref, rev, maxRevision)
	}
	return rev, nil
}

var revisionForm = regexp.MustCompile(`^[0-9A-Za-z_-][0-9A-Za-z._-]*$`)

// isCache knows the layout of Hugging Face's cache: models--ORG--NAME/{blobs,
// refs,snapshots}, whose snapshots are links into blobs.
func isCache(dir string) bool {
	for _, sub := range []string{"blobs", "snapshots"} {
		if fi, err := os.Lstat(filepath.Join(dir, sub)); err != nil || !fi.IsDir() {
			return false
		}
	}
	return strings.HasPrefix(filepath.Base(dir), "models--")
}

// single makes a model of one file. A link is followed: the user named it.
func (f *Folder) single(abs string) error {
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return err
	}
	name := filepath.Base(abs)
	if fit(name).kind != Weight {
		return fmt.Errorf("it is a single file, want *.gguf or *.safetensors, or a model's folder")
	}
	f.links = map[string]string{name: filepath.Base(real)}
	f.root, err = os.OpenRoot(filepath.Dir(real))
	return err
}

func fit(name string) (out struct {
	kind   Kind
	format string
},
) {
	out.kind = Config
	for _, n := range names {
		if ok, _ := path.Match(n.pattern, strings.ToLower(path.Base(name))); ok {
			out.kind, out.format = n.kind, n.format
			return out
		}
	}
	return out
}

// list finds the files.
func (f *Folder) list(o Options) error {
	if f.links != nil {
		for name := range f.links {
			return f.add(name)
		}
	}
	sub, err := f.root.OpenRoot(filepath.FromSlash(f.prefix))
	if err != nil {
		return err
	}
	defer sub.Close()
	return fs.WalkDir(sub.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p == ".":
			return nil
		case skipped[e.Name()] || o.excludes(p):
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case e.IsDir():
			return nil
		}
		return f.add(p)
	})
}

func (o Options) excludes(p string) bool {
	for _, x := range o.Exclude {
		whole, _ := path.Match(x, p)
		base, _ := path.Match(x, path.Base(p))
		if whole || base {
			return true
		}
	}
	return false
}

// add looks at one file. Root.Stat follows a link, and fails where it leaves
// the root.
func (f *Folder) add(name string) error {
	if !fs.ValidPath(name) || strings.ContainsAny(name, "\\") || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
		return fmt.Errorf("file %q: want a name without control characters and backslashes", name)
	}
	h, err := f.openRegular(File{Name: name})
	if err != nil {
		return err
	}
	defer h.Close()
	fi, err := h.Stat()
	if err != nil {
		return err
	}
	x := File{Name: name, Size: fi.Size()}
	k := fit(name)
	x.Kind, x.Format = k.kind, k.format
	if err := x.sniff(h); err != nil {
		return err
	}
	if f.Files = append(f.Files, x); len(f.Files) > MaxFiles {
		return fmt.Errorf("more than %d files: is it a model's folder?", MaxFiles)
	}
	return nil
}

// openRegular refuses FIFOs, devices and links to folders, without blocking.
func (f *Folder) openRegular(x File) (*os.File, error) {
	name := path.Join(f.prefix, x.Name)
	if real, ok := f.links[x.Name]; ok {
		name = real
	}
	fi, err := f.root.Stat(filepath.FromSlash(name))
	if err != nil {
		return nil, fmt.Errorf("%w (a link must end inside the model's folder: copy the file into it)", err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is a %s, want regular files only", x.Name, what(fi.Mode()))
	}
	return f.Open(x)
}

func what(m fs.FileMode) string {
	if m.IsDir() {
		return "link to a folder"
	}
	return "special file (" + m.Type().String() + ")"
}

// sniff looks at the first bytes of what the name made no weight. Caches name
// files by digest, so a weight may have no extension either.
func (x *File) sniff(r io.ReaderAt) error {
	var b [16]byte
	n, err := r.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", x.Name, err)
	}
	if x.Kind == Weight {
		return nil
	}
	// A header's length, below 2^32, and the brace of its JSON: no pickle goes on so.
	if n > 8 && bytes.Equal(b[4:9], []byte("\x00\x00\x00\x00{")) && (x.Kind == Config || x.Kind == Doc) {
		x.Kind, x.Format = Weight, "safetensors"
		return nil
	}
	for _, m := range marks {
		if bytes.HasPrefix(b[:n], []byte(m.prefix)) {
			x.Kind, x.Format = m.kind, m.format
			return nil
		}
	}
	return nil
}

// PickleError names the files that run code when they are loaded.
type PickleError struct{ Names []string }

func (e *PickleError) Error() string {
	return fmt.Sprintf("%s: pickles run code when they are loaded, so they are refused; take the model's safetensors or GGUF files, leave them out (exclude), or allow them (pickles; --allow-pickle on the command line)",
		strings.Join(e.Names, ", "))
}

// allowed refuses what the options don't let through.
func (f *Folder) allowed(o Options) error {
	var bad []string
	weights := false
	for _, x := range f.Files {
		weights = weights || x.Kind == Weight || x.Kind == Pickle
		if x.Kind == Pickle && !o.Pickles {
			bad = append(bad, x.Name)
		}
	}
	if len(bad) > 0 {
		return &PickleError{bad[:min(len(bad), 8)]}
	}
	if !weights {
		return errors.New("it holds no .gguf and no .safetensors file: is it a model's folder?")
	}
	return nil
}

// askers are the files in which a model can ask its engine to run code.
var askers = []string{"config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json", "model_index.json"}

// maxJSON bounds a configuration file that is looked into, in bytes.
const maxJSON = 16 << 20

// Facts are what the files say of the model.
type Facts struct {
	Format       string   `json:"format"`                 // ModelPack's: gguf, safetensors, pickle
	Architecture string   `json:"architecture,omitempty"` // of config.json or GGUF
	Precision    string   `json:"precision,omitempty"`    // the tensor type that most elements have
	Quantization string   `json:"quantization,omitempty"` // config.json's quantization_config.quant_method
	Params       int64    `json:"params,omitempty"`       // elements of all tensors; packed types count as stored
	Tensors      int      `json:"tensors,omitempty"`
	Weights      int64    `json:"weightBytes"`    // bytes of the weight files
	Code         []File   `json:"-"`              // files that could be run
	Asks         []string `json:"asks,omitempty"` // configuration that asks to run code
	Notes        []string `json:"notes,omitempty"`
}

// inspect reads headers and configuration of files, wherever they are kept.
func inspect(files []File, open func(File) (*os.File, error)) (Facts, error) {
	x := inspector{open: open, byType: map[string]int64{}, tensors: map[string]map[string]bool{}}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range files {
		if err := x.file(f); err != nil {
			return x.Facts, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name, ".safetensors.index.json") {
			if err := x.index(f, files); err != nil {
				return x.Facts, fmt.Errorf("%s: %w", f.Name, err)
			}
		}
	}
	if err := complete(files); err != nil {
		return x.Facts, err
	}
	most := int64(-1)
	for _, t := range sortedKeys(x.byType) {
		if n := x.byType[t]; n > most {
			most, x.Precision = n, strings.ToLower(t)
		}
	}
	return x.Facts, nil
}

type inspector struct {
	Facts
	open    func(File) (*os.File, error)
	byType  map[string]int64
	tensors map[string]map[string]bool // by file: for the shard index
}

func (x *inspector) file(f File) error {
	switch {
	case f.Kind == Weight:
		return x.weight(f)
	case f.Kind == Pickle:
		x.Weights += f.Size
		if x.Format == "" {
			x.Format = f.Format
		}
	case f.Kind == Code:
		x.Code = append(x.Code, f)
	case slices.Contains(askers, path.Base(f.Name)):
		return x.config(f)
	}
	return nil
}

func (x *inspector) weight(f File) error {
	in, err := x.open(f)
	if err != nil {
		return err
	}
	defer in.Close()
	parse := map[string]func(io.ReaderAt, int64) (*Header, error){"gguf": GGUF, "safetensors": Safetensors}[f.Format]
	if parse == nil {
		x.Weights += f.Size
		x.Notes = append(x.Notes, f.Name+" is of a format that this version can't check")
		return nil
	}
	h, err := parse(in, f.Size)
	if err != nil {
		return err
	}
	if h.Split > 1 && !shardName.MatchString(path.Base(f.Name)) {
		return fmt.Errorf("it is one of %d files of a split model, but is not named NAME-00001-of-%05d.gguf: import their folder, with the names that they were published under", h.Split, h.Split)
	}
	x.Format = f.Format
	if h.Architecture != "" {
		x.Architecture = h.Architecture
	}
	x.Weights += f.Size
	x.Tensors += len(h.Tensors)
	set := make(map[string]bool, len(h.Tensors))
	for _, t := range h.Tensors {
		x.Params += t.Elements
		x.byType[t.Type] += t.Elements
		set[t.Name] = true
	}
	x.tensors[f.Name] = set
	return nil
}

// config looks for requests to run code, at any depth.
func (x *inspector) config(f File) error {
	b, err := x.read(f, maxJSON)
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("want JSON: %w", err)
	}
	x.asks(f.Name, v)
	top, _ := v.(map[string]any)
	if path.Base(f.Name) != "config.json" || top == nil {
		return nil
	}
	if as, ok := top["architectures"].([]any); ok && len(as) > 0 {
		x.Architecture, _ = as[0].(string)
	}
	if q, ok := top["quantization_config"].(map[string]any); ok {
		x.Quantization, _ = q["quant_method"].(string)
	}
	return nil
}

func (x *inspector) asks(at string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range sortedKeys(v) {
			if k == "auto_map" || k == "trust_remote_code" && v[k] != false && v[k] != nil {
				said, _ := json.Marshal(v[k])
				x.Asks = append(x.Asks, fmt.Sprintf("%s: %s: %.200s", at, k, said))
			}
			x.asks(at, v[k])
		}
	case []any:
		for _, e := range v {
			x.asks(at, e)
		}
	}
}

func (x *inspector) read(f File, limit int64) ([]byte, error) {
	if f.Size > limit {
		return nil, fmt.Errorf("%d bytes, want at most %d", f.Size, limit)
	}
	in, err := x.open(f)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return io.ReadAll(io.LimitReader(in, limit))
}

// index holds a shard index against the shards beside it.
func (x *inspector) index(f File, files []File) error {
	b, err := x.read(f, maxIndex)
	if err != nil {
		return err
	}
	ix, err := ParseIndex(b)
	if err != nil {
		return err
	}
	dir, named := path.Dir(f.Name), map[string]int{}
	for _, t := range sortedKeys(ix.Shards) {
		shard := path.Join(dir, ix.Shards[t])
		set, ok := x.tensors[shard]
		if !ok {
			return fmt.Errorf("tensor %.80q is in %s, which is not here: the download is not complete", t, shard)
		}
		if !set[t] {
			return fmt.Errorf("tensor %.80q is not in %s: index and shards are of different models", t, shard)
		}
		named[shard]++
	}
	for _, shard := range sortedKeys(named) {
		if n := len(x.tensors[shard]); n != named[shard] {
			return fmt.Errorf("%s has %d tensors, the index names %d of them: index and shards are of different models", shard, n, named[shard])
		}
	}
	for _, o := range files {
		if o.Format == "safetensors" && path.Dir(o.Name) == dir && named[o.Name] == 0 {
			x.Notes = append(x.Notes, o.Name+" is not in the shard index: engines leave it unread")
		}
	}
	return nil
}
