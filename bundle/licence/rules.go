package licence

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"sync"
)

// rule finds one kind of key material. anchor is a literal of at least three
// bytes that every such secret holds; form is tried where the anchor stands, and
// its last group is the secret.
type rule struct {
	name   string
	anchor string
	form   expression
	// before must be found in the bytes in front of the anchor; "" for anything.
	before string
	// word: the byte before the anchor must be no letter, digit or underscore.
	word bool
	// random: the secret must look random, as documentation holds placeholders.
	random bool
}

// expression is a regular expression that is compiled when it is first used:
// most runs of a program that has this table look for nothing.
type expression struct {
	text     string
	compiled func() *regexp.Regexp
}

func form(s string) expression {
	s = `\A(?:` + s + `)`
	return expression{s, sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(s) })}
}

// rules is the table. Forms are the publishers' own, as their documentation or
// the scanners of code hosts give them.
var rules = []rule{
	{name: "NVIDIA API key", anchor: "nvapi-", form: form(`(nvapi-[A-Za-z0-9_-]{40,})`), word: true, random: true},
	{name: "Hugging Face token", anchor: "hf_", form: form(`(hf_[A-Za-z0-9]{30,})`), word: true, random: true},
	{name: "Hugging Face organisation token", anchor: "api_org_", form: form(`(api_org_[A-Za-z0-9]{30,})`), word: true, random: true},
	{name: "AWS access key", anchor: "AKIA", form: form(`(AKIA[A-Z2-7]{16})(?:[^A-Za-z0-9]|\z)`), word: true, random: true},
	{name: "AWS temporary key", anchor: "ASIA", form: form(`(ASIA[A-Z2-7]{16})(?:[^A-Za-z0-9]|\z)`), word: true, random: true},
	{name: "GitHub token", anchor: "ghp_", form: form(`(ghp_[A-Za-z0-9]{36,})`), word: true, random: true},
	{name: "GitHub token", anchor: "gho_", form: form(`(gho_[A-Za-z0-9]{36,})`), word: true, random: true},
	{name: "GitHub token", anchor: "ghs_", form: form(`(ghs_[A-Za-z0-9]{36,})`), word: true, random: true},
	{name: "GitHub token", anchor: "github_pat_", form: form(`(github_pat_[A-Za-z0-9_]{70,})`), word: true, random: true},
	{name: "GitLab token", anchor: "glpat-", form: form(`(glpat-[A-Za-z0-9_-]{20,})`), word: true, random: true},
	{name: "Slack token", anchor: "xoxb-", form: form(`(xoxb-[0-9]{8,}-[0-9A-Za-z-]{20,})`), word: true, random: true},
	{name: "Slack token", anchor: "xoxp-", form: form(`(xoxp-[0-9]{8,}-[0-9A-Za-z-]{20,})`), word: true, random: true},
	{name: "Google API key", anchor: "AIza", form: form(`(AIza[0-9A-Za-z_-]{35})(?:[^0-9A-Za-z_-]|\z)`), word: true, random: true},
	{name: "Anthropic key", anchor: "sk-ant-", form: form(`(sk-ant-[A-Za-z0-9_-]{60,})`), word: true, random: true},
	{name: "OpenAI key", anchor: "sk-proj-", form: form(`(sk-proj-[A-Za-z0-9_-]{40,})`), word: true, random: true},
	{name: "npm token", anchor: "npm_", form: form(`(npm_[A-Za-z0-9]{36})(?:[^A-Za-z0-9]|\z)`), word: true, random: true},
	{name: "private key", anchor: "PRIVATE KEY-----", before: "BEGIN ", form: form(`PRIVATE KEY-----(?:\s|\\[nr])+(?:(?:Proc-Type|DEK-Info)[^\n]{0,100}\n\s*)*((?:[A-Za-z0-9+/=]|\s|\\[nr]){64,800})`), random: true},
	{name: "age identity", anchor: "AGE-SECRET-KEY-", form: form(`(AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]{50,})`), random: true},
	{name: "age plugin identity", anchor: "AGE-PLUGIN-", form: form(`(AGE-PLUGIN-[A-Z0-9-]{1,40}-1[0-9A-Z]{30,})`), random: true},
	{name: "signing key", anchor: "PRIVATE+KEY+", form: form(`(PRIVATE\+KEY\+[^\s+]{1,100}\+[0-9a-f]{8}\+[A-Za-z0-9+/=]{40,})`), random: true},
	{name: "minisign key", anchor: "minisign encrypted secret key", form: form(`minisign encrypted secret key\s+([A-Za-z0-9+/=]{100,})`), random: true},
	{name: "registry credentials", anchor: `"auth"`, form: form(`"auth"\s*:\s*"([A-Za-z0-9+/=]{16,})"`), random: true},
	assigned("NGC_API_KEY"), assigned("NGC_CLI_API_KEY"), assigned("HF_TOKEN"), assigned("HUGGING_FACE_HUB_TOKEN"),
	assigned("AWS_SECRET_ACCESS_KEY"), assigned("OPENAI_API_KEY"), assigned("ANTHROPIC_API_KEY"), assigned("GITHUB_TOKEN"),
}

// assigned finds a value given to a variable: NAME=…, NAME: …, "NAME": "…".
func assigned(name string) rule {
	return rule{name: name + " with a value", anchor: name, form: form(name + `["']?[ \t]*[=:][ \t]*["']?([A-Za-z0-9_/+=.-]{16,})`), random: true}
}

// Names of variables that may not have a value in an image's configuration.
var secretNames = regexp.MustCompile(`(?i)(API_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PRIVATE_?KEY)$`)

// scannerVersion changes when the scanner reads the table in another way.
const scannerVersion = 1

// Rules identifies what a Scanner looks for: who keeps findings must look again
// when it has changed.
var Rules = func() string {
	h := sha256.New()
	fmt.Fprintln(h, scannerVersion, placeholders)
	for _, r := range rules {
		fmt.Fprintf(h, "%q %q %q %q %t %t\n", r.name, r.anchor, r.form.text, r.before, r.word, r.random)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}()
