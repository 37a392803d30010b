package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func sample() Config {
	c := Default("/")
	c.Release = Release{Name: "demo", Version: "0.1.0", Sequence: 1, Digest: "sha256:" + strings.Repeat("ab", 32)}
	c.Paths.Slot = "/opt/clawbox/slots/0.1.0-1"
	c.Engine = Engine{Binary: c.Paths.Slot + "/bin/ollama", Listen: "127.0.0.1:11434", Models: []string{"tiny"}, UID: DefaultUIDBase + UIDCount}
	c.Upstreams = map[string]Upstream{"cloud": {URL: "https://api.example.com/v1", KeyFile: "/etc/clawbox/cloud.key"}}
	c.Hosts = map[string]string{"api.example.com": "10.0.0.7"}
	c.Cluster = &Cluster{Kubeconfig: "/etc/clawbox/cluster.kubeconfig", Namespace: "clawbox-agents", Node: "node-1", Registry: "clawbox.internal"}
	c.Agents = []Agent{{Name: "openclaw", Image: "openclaw", Policy: "openclaw.yaml", Args: []string{"--x", "no"}, Env: []string{"A=1"}}}
	return c
}

func TestRoundTrip(t *testing.T) {
	b, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	f := filepath.Join(t.TempDir(), "appliance.yaml")
	if err := os.WriteFile(f, b, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Load(f)
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	if !reflect.DeepEqual(got, sample()) {
		t.Fatalf("got %+v\nwant %+v", got, sample())
	}
}

func TestClusterPrefixes(t *testing.T) {
	c := sample()
	if got := fmt.Sprint(c.ClusterPrefixes()); got != "[10.42.0.0/16 10.43.0.0/16]" {
		t.Errorf("of a node: %s", got)
	}
	c.Cluster = nil
	if got := c.ClusterPrefixes(); got != nil {
		t.Errorf("of no node: %v", got)
	}
	c.ClusterNetworks = []string{"fd42::/56"} // before the cluster is joined, or one's own
	if got := fmt.Sprint(c.ClusterPrefixes()); got != "[fd42::/56]" {
		t.Errorf("named: %s", got)
	}
}

func TestDefaultPrefix(t *testing.T) {
	c := Default("/srv/box")
	for _, p := range []string{c.Paths.Store, c.Paths.State, c.Paths.Ledger, c.Paths.Run, c.Paths.Keys, c.Paths.Receipts, File("/srv/box")} {
		if !strings.HasPrefix(p, "/srv/box/") {
			t.Errorf("%s is outside the prefix", p)
		}
	}
	if err := c.Validate(); err == nil {
		t.Error("a configuration without a release was accepted")
	}
}

// Each row breaks one thing in a good configuration and names words that the
// refusal must hold.
func TestValidate(t *testing.T) {
	rows := map[string]struct {
		mod  func(*Config)
		want string
	}{
		"version":         {func(c *Config) { c.APIVersion = "clawbox.io/v2" }, "apiVersion"},
		"kind":            {func(c *Config) { c.Kind = "Answers" }, "kind"},
		"release name":    {func(c *Config) { c.Release.Name = "a\nb" }, "release.name"},
		"release version": {func(c *Config) { c.Release.Version = "" }, "release.version"},
		"sequence":        {func(c *Config) { c.Release.Sequence = 0 }, "release.sequence"},
		"digest":          {func(c *Config) { c.Release.Digest = "sha256:ABC" }, "release.digest"},
		"relative":        {func(c *Config) { c.Paths.State = "var/lib" }, "paths.state"},
		"dot dot":         {func(c *Config) { c.Paths.Slot = "/opt/../etc" }, "paths.slot"},
		"root":            {func(c *Config) { c.Paths.Keys = "/" }, "paths.keys"},
		"shared folder":   {func(c *Config) { c.Paths.Keys = c.Paths.State }, "paths.state is there already"},
		"open registry":   {func(c *Config) { c.Registry = "0.0.0.0:5000" }, "loopback"},
		"named registry":  {func(c *Config) { c.Registry = "localhost:5000" }, "loopback"},
		"port zero":       {func(c *Config) { c.Registry = "127.0.0.1:0" }, "loopback"},
		"port range":      {func(c *Config) { c.Registry = "127.0.0.1:70000" }, "loopback"},
		"engine open":     {func(c *Config) { c.Engine.Listen = "[::]:1" }, "engine.listen"},
		"engine relative": {func(c *Config) { c.Engine.Binary = "ollama" }, "engine.binary"},
		"engine missing":  {func(c *Config) { c.Engine.Binary = "" }, "engine.binary"},
		"engine uid":      {func(c *Config) { c.Engine.UID = c.UIDBase + 5 }, "engine.uid"},
		"engine uid root": {func(c *Config) { c.Engine.UID = 0 }, "engine.uid"},
		"engine nobody":   {func(c *Config) { c.Engine.UID = 65534 }, "engine.uid"},
		"same port":       {func(c *Config) { c.Engine.Listen = c.Registry }, "another port"},
		"model":           {func(c *Config) { c.Engine.Models = []string{""} }, "engine.models[0]"},
		"hold":            {func(c *Config) { c.HoldSeconds = 0 }, "holdSeconds"},
		"warm":            {func(c *Config) { c.Warm = -2 }, "warm"},
		"hold long":       {func(c *Config) { c.HoldSeconds = 86401 }, "holdSeconds"},
		"uid low":         {func(c *Config) { c.UIDBase = 999 }, "uidBase"},
		"uid nobody":      {func(c *Config) { c.UIDBase = 65000 }, "uidBase"},
		"uid noUID":       {func(c *Config) { c.UIDBase = 65535 }, "uidBase"},
		"uid high":        {func(c *Config) { c.UIDBase = 1<<31 - 100 }, "uidBase"},
		"tier":            {func(c *Config) { c.AcceptTier = "T0" }, "acceptTier"},
		"upstream local":  {func(c *Config) { c.Upstreams["local"] = Upstream{URL: "https://x"} }, "embedded engine"},
		"upstream http":   {func(c *Config) { c.Upstreams["cloud"] = Upstream{URL: "http://x/v1"} }, "https"},
		"upstream ftp":    {func(c *Config) { c.Upstreams["cloud"] = Upstream{URL: "ftp://x/v1", Local: true} }, "https"},
		"upstream user":   {func(c *Config) { c.Upstreams["cloud"] = Upstream{URL: "https://u:secret@x/v1"} }, "without user"},
		"key file":        {func(c *Config) { c.Upstreams["cloud"] = Upstream{URL: "https://x", KeyFile: "k"} }, "keyFile"},
		"host name":       {func(c *Config) { c.Hosts["A.example"] = "10.0.0.1" }, "hosts"},
		"host address":    {func(c *Config) { c.Hosts["a.example"] = "b.example" }, "IP address"},
		"cluster file":    {func(c *Config) { c.Cluster.Kubeconfig = "k3s.yaml" }, "cluster.kubeconfig"},
		"cluster default": {func(c *Config) { c.Cluster.Namespace = "default" }, "cluster.namespace"},
		"cluster system":  {func(c *Config) { c.Cluster.Namespace = "kube-system" }, "cluster.namespace"},
		"cluster node":    {func(c *Config) { c.Cluster.Node = "" }, "cluster.node"},
		"cluster port":    {func(c *Config) { c.Cluster.Registry = "127.0.0.1:70000" }, "cluster.registry"},
		"cluster net":     {func(c *Config) { c.ClusterNetworks = []string{"10.42.0.1/16"} }, "clusterNetworks[0]"},
		"cluster all":     {func(c *Config) { c.ClusterNetworks = []string{"10.43.0.0/16", "::/0"} }, "clusterNetworks[1]"},
		"cluster path":    {func(c *Config) { c.Cluster.Registry = "host/agents" }, "cluster.registry"},
		"agent name":      {func(c *Config) { c.Agents[0].Name = "Open Claw" }, "agents[0].name"},
		"agent twice":     {func(c *Config) { c.Agents = append(c.Agents, c.Agents[0]) }, "agents[1].name"},
		"agent image":     {func(c *Config) { c.Agents[0].Image = "" }, "agents[0].image"},
		"agent policy":    {func(c *Config) { c.Agents[0].Policy = "../x.yaml" }, "agents[0].policy"},
		"agent env":       {func(c *Config) { c.Agents[0].Env = []string{"1A=x"} }, "agents[0].env"},
		"agent args":      {func(c *Config) { c.Agents[0].Args = []string{"a\x00"} }, "agents[0].args"},
	}
	if err := sample().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, row := range rows {
		c := sample()
		row.mod(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v; want a refusal with %q", name, err, row.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the message shows a password: %v", name, err)
		}
		if _, err := c.Encode(); err == nil {
			t.Errorf("%s: Encode wrote an invalid configuration", name)
		}
	}
}

func TestStrict(t *testing.T) {
	type in struct {
		S string            `yaml:"s"`
		N int               `yaml:"n"`
		B bool              `yaml:"b"`
		M map[string]string `yaml:"m"`
		L []Agent           `yaml:"l"`
	}
	rows := []struct{ src, want string }{
		{"", "f.yaml: got an empty file"},
		{"# only\n", "f.yaml:"},
		{"s: x\nq: 1\n", `f.yaml:2:1: got the unknown field "q"; wanted one of b, l, m, n, s`},
		{"l:\n- name: a\n  nmae: b\n", "f.yaml:3:3: got the unknown field"},
		{"s: x\ns: y\n", "f.yaml:2:1: got \"s\" a second time (first on line 1)"},
		{"m: {a: b, a: c}\n", "second time"},
		{"s: x\n---\ns: y\n", "f.yaml:2: got more after the end"},
		{"s: x\n---\n", "more after the end"},
		{"s: x\n...\ngarbage: [\n", "f.yaml"},
		{"s: 010\n", "wanted a string"},
		{"s: true\n", "wanted a string"},
		{"s: null\n", "wanted a string"},
		{"s: 2026-01-01\n", "wanted a string"},
		{"m: {a: 1}\n", "wanted a string"},
		{"n: 010\n", "decimal"},
		{"n: 1.0\n", "decimal"},
		{"n: 0x10\n", "decimal"},
		{"n: \"3\"\n", "decimal"},
		{"n: 99999999999999999999\n", "f.yaml:1"},
		{"b: yes\n", "true or false"},
		{"s: &a x\n", "anchor"},
		{"s: !!str x\n", "tag"},
		{"m:\n  <<: {a: b}\n", "key"},
		{"s: [x]\n", "wanted one value"},
		{"l: x\n", "wanted a list"},
		{"m: x\n", "wanted a mapping"},
		{"- x\n", "wanted a mapping"},
		{"s: \"\xff\"\n", "UTF-8"},
		{"s: [\n", "f.yaml:"},
	}
	for _, row := range rows {
		var v in
		err := Strict("f.yaml", []byte(row.src), &v)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: got %v; want %q", row.src, err, row.want)
		}
	}
	var v in
	if err := Strict("f.yaml", []byte("s: \"010\"\nn: 10\nb: true\nm: {x: \"no\"}\n"), &v); err != nil || v.S != "010" || v.N != 10 || !v.B || v.M["x"] != "no" {
		t.Errorf("good file: %v %+v", err, v)
	}
	if err := Strict("f.yaml", []byte("s: "+strings.Repeat("x", maxFile)), &v); err == nil {
		t.Error("an over-large file was read")
	}
}

func FuzzParse(f *testing.F) {
	b, _ := sample().Encode()
	f.Add(b)
	f.Add([]byte("apiVersion: clawbox.io/v1\nkind: Appliance\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		c, err := Parse("f.yaml", src)
		if err != nil {
			return
		}
		b, err := c.Encode()
		if err != nil {
			t.Fatalf("parsed but cannot be encoded: %v", err)
		}
		if _, err := Parse("again.yaml", b); err != nil {
			t.Fatalf("does not read its own writing: %v\n%s", err, b)
		}
	})
}

// The names are those that kernels hold for appliances of earlier starts.
func TestNamesInTheKernel(t *testing.T) {
	p := Default("/").Paths
	if got := p.Pin() + " " + p.Cgroup(); got != "/run/clawbox/pins clawbox-"+kernelMark[:8] {
		t.Errorf("got %s", got)
	}
	if other := Default("/srv/box").Paths; other.Pin() == p.Pin() || other.Cgroup() == p.Cgroup() {
		t.Error("two appliances share a name")
	}
}

// kernelMark begins the sha256 of /var/lib/clawbox.
const kernelMark = "c2de726a6902"
