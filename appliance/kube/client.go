package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"sync"
	"time"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 8 << 20

// Client speaks to one namespace of one server. It is safe for concurrent use.
type Client struct {
	file, namespace string

	mu   sync.Mutex // guards the rest
	read os.FileInfo
	a    *access
}

// Error is the server's refusal (meta/v1's Status).
type Error struct {
	Code    int    `json:"code"` // HTTP's
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("the Kubernetes API says %d %s: %s", e.Code, e.Reason, e.Message)
}

// IsNotFound says that an object is not there.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == http.StatusNotFound
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Open reads a kubeconfig file. Nothing is sent yet.
func Open(file, namespace string) (*Client, error) {
	if !label.MatchString(namespace) {
		return nil, fmt.Errorf("kube: namespace %q; want 1 to 63 of a-z, 0-9 and -", namespace)
	}
	c := &Client{file: file, namespace: namespace}
	if _, err := c.access(); err != nil {
		return nil, fmt.Errorf("kube: %w", err)
	}
	return c, nil
}

// access is the way to the server by the file as it is now.
func (c *Client) access() (*access, error) {
	st, err := os.Stat(c.file)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.a != nil && os.SameFile(st, c.read) && st.ModTime().Equal(c.read.ModTime()) {
		return c.a, nil
	}
	a, err := readAccess(c.file)
	if err != nil {
		return nil, err
	}
	c.a, c.read = a, st
	return a, nil
}

// Create makes a pod and returns it as the server has it. The server's answer
// is all there is: a request that was cut off may have made it.
func (c *Client) Create(ctx context.Context, p *Pod) (*Pod, error) {
	in := *p
	in.APIVersion, in.Kind, in.Metadata.Namespace = "v1", "Pod", c.namespace
	var out Pod
	return &out, c.do(ctx, "POST", "", nil, &in, &out)
}

// Get returns a pod; see IsNotFound.
func (c *Client) Get(ctx context.Context, name string) (*Pod, error) {
	var out Pod
	return &out, c.do(ctx, "GET", name, nil, nil, &out)
}

// List returns the pods with a label.
func (c *Client) List(ctx context.Context, key, value string) ([]Pod, error) {
	var out struct {
		Items []Pod `json:"items"`
	}
	err := c.do(ctx, "GET", "", url.Values{"labelSelector": {key + "=" + value}}, nil, &out)
	return out.Items, err
}

// deletion is meta/v1's DeleteOptions.
type deletion struct {
	APIVersion    string         `json:"apiVersion"`
	Kind          string         `json:"kind"`
	Grace         int64          `json:"gracePeriodSeconds"`
	Preconditions map[string]any `json:"preconditions"`
}

// Delete deletes the pod of that name and UID at once, and returns when it is
// gone. One that is gone already, or another of the name, is no error.
func (c *Client) Delete(ctx context.Context, name, uid string) error {
	// Grace 0 would forget the pod before its node has ended it.
	d := deletion{"v1", "DeleteOptions", 1, map[string]any{"uid": uid}}
	err := c.do(ctx, "DELETE", name, nil, d, nil)
	for {
		var e *Error
		if errors.As(err, &e) && (e.Code == http.StatusNotFound || e.Code == http.StatusConflict) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pod %s is deleted and not gone yet: %w", name, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
		var p *Pod
		if p, err = c.Get(ctx, name); err == nil && p.Metadata.UID != uid {
			return nil
		}
	}
}

// do sends one request about the namespace's pods.
func (c *Client) do(ctx context.Context, method, name string, q url.Values, in, out any) error {
	if name != "" && !label.MatchString(name) {
		return fmt.Errorf("kube: pod name %q; want 1 to 63 of a-z, 0-9 and -", name)
	}
	a, err := c.access()
	if err != nil {
		return fmt.Errorf("kube: %w", err)
	}
	r, err := a.request(ctx, method, "/api/v1/namespaces/"+c.namespace+"/pods", name, q, in)
	if err != nil {
		return fmt.Errorf("kube: %w", err)
	}
	res, err := a.http.Do(r)
	if err != nil {
		return fmt.Errorf("kube: %w; does K3s run, and is %s its kubeconfig?", err, c.file)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil || len(b) > maxAnswer {
		return errors.Join(fmt.Errorf("kube: %s %s: the answer has no end within %d bytes", method, name, maxAnswer), err)
	}
	if res.StatusCode/100 != 2 {
		e := &Error{Code: res.StatusCode, Message: string(b[:min(len(b), 200)])}
		_ = json.Unmarshal(b, e) // what is no Status is shown as it came
		e.Code = res.StatusCode
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("kube: %s %s: %w", method, name, err)
	}
	return nil
}

func (a *access) request(ctx context.Context, method, path, name string, q url.Values, in any) (*http.Request, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	if name != "" {
		path += "/" + name
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, method, a.server+path, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	if a.token != "" {
		r.Header.Set("Authorization", "Bearer "+a.token)
	}
	return r, nil
}
