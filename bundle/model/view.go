package model

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/internal/durable"
)

// Link makes dir a folder of the model: its files, under their names, as hard
// links to the store's blobs. It takes inode entries and no bytes. dir must not
// exist, and must be on the store's file system. A process that is killed leaves
// a folder .DIR.view-NUMBER beside it.
//
// A hard link is the blob itself, so nobody may be able to write through it: the
// files are root's, mode 0444, and a consumer that is root in its container must
// see the folder through a read-only mount, as Place makes one.
func Link(s *content.Store, m Model, dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("view of %s: %s exists: choose another folder, or remove it", m.Ref, dir)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("view of %s: %w", m.Ref, err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".view-*")
	if err != nil {
		return fmt.Errorf("view of %s: %w", m.Ref, err)
	}
	if err = os.Chmod(tmp, 0o755); err == nil {
		err = link(s, m, tmp)
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("view of %s: %w", m.Ref, err), os.RemoveAll(tmp))
	}
	return durable.SyncDir(filepath.Dir(dir))
}

func link(s *content.Store, m Model, dir string) error {
	for _, f := range m.Files {
		n, err := s.Stat(f.Digest)
		if err != nil {
			return err
		}
		if n != f.Size {
			return fmt.Errorf("%s: blob %s has %d bytes, want %d: the store is damaged", f.Name, f.Digest, n, f.Size)
		}
		to := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Link(s.Path(f.Digest), to); err != nil {
			return fmt.Errorf("%w (the folder must be on the store's file system: models are not copied)", err)
		}
	}
	return nil
}

// Consumer says how an engine wants a model: where it is mounted, what is set
// and what is passed. {dir} stands for where the model lies in the container,
// {name} for its name, {profile} for the chosen profile of NIM.
type Consumer struct {
	Name string
	// Dir is where the model is mounted in the container.
	Dir string
	// Writable folders get an overlay: writes go to an upper folder of UID, the
	// model below is not changed.
	Writable bool
	UID      int
	Env      map[string]string
	Args     []string
	// Formats that the engine can read; none means what the image brings.
	Formats []string
}

// offline keeps Hugging Face's libraries and vLLM from asking the network. That
// no credential is among the variables of any consumer is a rule: NIM and the
// libraries go looking online when they find one.
var offline = map[string]string{"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

// Consumers are the engines that read models of a store. NIM has three cache
// contracts, told apart by its image; see NIMContract.
var Consumers = []Consumer{
	{Name: "vllm", Dir: "/models/{name}", Env: offline, Args: []string{"--model", "{dir}", "--served-model-name", "{name}"}, Formats: []string{"safetensors", "gguf"}},
	{Name: "nim-cache", Dir: "/opt/nim/.cache", Writable: true, UID: 1000, Env: map[string]string{"NIM_CACHE_PATH": "{dir}", "NIM_MODEL_PROFILE": "{profile}"}},
	{Name: "nim-path", Dir: "/opt/nim/models/{name}", UID: 1000, Env: with(offline, "NIM_MODEL_PATH", "{dir}"), Formats: []string{"safetensors"}},
	{Name: "nim-native", Dir: "/opt/nim/models/{name}", UID: 1000, Env: with(offline, "NIM_ENGINE_MODEL_PATH", "{dir}")},
}

func with(m map[string]string, k, v string) map[string]string {
	out := map[string]string{k: v}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// NIMContract tells from an image's configuration which of NIM's contracts it
// keeps: its labels and its environment as KEY=VALUE.
func NIMContract(labels map[string]string, env []string) (string, error) {
	if p := labels["com.nvidia.nim.model_download_protocol"]; p == "native-v1" {
		return "nim-native", nil
	} else if p != "" {
		return "", fmt.Errorf("NIM download protocol %.40q: want native-v1 or none; this image needs a newer clawbox", p)
	}
	for _, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); k == "NIM_MODEL_PATH" {
			return "nim-path", nil
		}
	}
	for _, kv := range env {
		if strings.HasPrefix(kv, "NIM_") {
			return "nim-cache", nil
		}
	}
	return "", errors.New("no NIM_ variable and no NIM label: is it a NIM image?")
}

// For fills a consumer's placeholders for a model. profile is NIM's, and may be
// empty elsewhere.
func For(consumer string, m Model, profile string) (Consumer, error) {
	var known []string
	for _, c := range Consumers {
		if c.Name != consumer {
			known = append(known, c.Name)
			continue
		}
		return c.fill(m, profile)
	}
	return Consumer{}, fmt.Errorf("consumer %.40q: want one of %s", consumer, strings.Join(known, ", "))
}

func (c Consumer) fill(m Model, profile string) (Consumer, error) {
	fits := len(c.Formats) == 0
	for _, f := range c.Formats {
		fits = fits || f == m.Facts.Format
	}
	if !fits {
		return c, fmt.Errorf("%s reads %s, model %s is %s", c.Name, strings.Join(c.Formats, " and "), m.Ref, m.Facts.Format)
	}
	if !nameForm.MatchString(m.Name) {
		return c, fmt.Errorf("model %s is named %.80q, which can't be a folder's name: import it with --name", m.Ref, m.Name)
	}
	c.Dir = strings.ReplaceAll(c.Dir, "{name}", m.Name)
	r := strings.NewReplacer("{dir}", c.Dir, "{name}", m.Name, "{profile}", profile)
	env := map[string]string{}
	for k, v := range c.Env {
		if v = r.Replace(v); v != "" {
			env[k] = v
		} else if profile == "" {
			return c, fmt.Errorf("%s needs a profile: name the one that the cache was filled for", c.Name)
		}
	}
	c.Env = env
	args := make([]string, len(c.Args))
	for i, a := range c.Args {
		args[i] = r.Replace(a)
	}
	c.Args = args
	return c, nil
}

// Place mounts a folder that Link made for the consumer at target: read-only, or
// as the lower half of an overlay whose upper half lies in scratch. undo takes
// the mount away. Both need CAP_SYS_ADMIN.
func (c Consumer) Place(view, target, scratch string) (undo func() error, err error) {
	const hard = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if !c.Writable {
		if err := unix.Mount(view, target, "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("bind %s on %s: %w", view, target, err)
		}
		undo = func() error { return unix.Unmount(target, 0) }
		if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|hard, ""); err != nil {
			return nil, errors.Join(fmt.Errorf("make %s read-only: %w", target, err), undo())
		}
		return undo, nil
	}
	upper, work := path.Join(scratch, "upper"), path.Join(scratch, "work")
	for _, p := range []string{view, upper, work} {
		if strings.ContainsAny(p, ",:\\") {
			return nil, fmt.Errorf("%q: an overlay's paths can't hold ',', ':' and '\\': choose another folder", p)
		}
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, err
	}
	if err := c.folders(view, upper); err != nil {
		return nil, err
	}
	if err := unix.Mount("overlay", target, "overlay", hard, "lowerdir="+view+",upperdir="+upper+",workdir="+work); err != nil {
		return nil, fmt.Errorf("overlay of %s on %s: %w", view, target, err)
	}
	return func() error { return unix.Unmount(target, 0) }, nil
}

// folders makes the view's folders in the upper half, as the consumer's own: in
// a merged folder the upper one's owner counts, so it may write beside the
// model's files and the view below stays root's.
func (c Consumer) folders(view, upper string) error {
	return filepath.WalkDir(view, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(view, p)
		if err != nil {
			return err
		}
		d := filepath.Join(upper, rel)
		return errors.Join(os.MkdirAll(d, 0o755), os.Chmod(d, 0o755), os.Lchown(d, c.UID, c.UID))
	})
}
