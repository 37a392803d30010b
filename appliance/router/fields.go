package router

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// fieldSet is the top-level keys that a call may have.
type fieldSet map[string]bool

func fields(lists ...string) fieldSet {
	s := fieldSet{}
	for _, l := range lists {
		for k := range strings.FieldsSeq(l) {
			s[k] = true
		}
	}
	return s
}

// The published fields of each call, less what notTaken says and what is of no
// use to an agent. A key that nobody here has read the meaning of is refused:
// upstreams add new ways to reach out, under names of their own.
const (
	sampled = `model stream stream_options temperature top_p top_k min_p seed stop n best_of max_tokens frequency_penalty presence_penalty
		logit_bias logprobs top_logprobs user metadata store service_tier`

	// cached says how long a prompt is kept at the upstream, for its sender.
	cached = `prompt_cache_key prompt_cache_options prompt_cache_retention safety_identifier`

	// engine is what vLLM, NIM and Ollama take beyond.
	engine = `repetition_penalty length_penalty use_beam_search ignore_eos min_tokens stop_token_ids include_stop_str_in_output skip_special_tokens
		spaces_between_special_tokens add_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids logprob_token_ids bad_words bad
		prompt_logprobs return_token_ids return_tokens_as_token_ids echo thinking_token_budget repetition_detection stream_interval cache_salt
		response_format structured_outputs guided_json guided_regex guided_choice guided_grammar guided_whitespace_pattern guided_decoding_backend nvext`

	chatting = `messages max_completion_tokens tools tool_choice functions function_call parallel_tool_calls modalities audio prediction verbosity
		reasoning reasoning_effort include_reasoning thinking enable_thinking tool_stream documents chat_template_kwargs add_generation_prompt continue_final_message`

	completing = `prompt suffix`

	responding = `input instructions max_output_tokens max_tool_calls tools tool_choice parallel_tool_calls reasoning text truncation include
		context_management client_metadata chat_template_kwargs`

	messaging = `model messages system max_tokens stop_sequences stream temperature top_p top_k tools tool_choice thinking metadata service_tier speed
		cache_control context_management output_config output_format chat_template_kwargs`

	embedding = `model input user dimensions encoding_format input_type truncate modality messages normalize truncate_prompt_tokens add_special_tokens`
)

// hosted says that the agent would act through the upstream.
const hosted = "lets the upstream reach the network for the agent"

// notTaken says of well-known fields why they are refused.
var notTaken = func() map[string]string {
	m := map[string]string{"background": "lets the upstream go on after the call has ended and been charged"}
	for why, l := range map[string]string{
		hosted: "mcp_servers web_search_options container plugins search_parameters extra_body kv_transfer_params ec_transfer_params",
		"lets the upstream take a model that the policy has not decided":  "models fallbacks route provider preset moderation",
		"names what is kept at the upstream, where no policy has read it": "prompt previous_response_id conversation prompt_embeds",
	} {
		for k := range strings.FieldsSeq(l) {
			m[k] = why
		}
	}
	return m
}()

// taken refuses a call with a field that is not on its list. null and false
// ask for nothing.
func (r *request) taken(ep endpoint) *refusal {
	for _, f := range r.fields {
		v := r.body[f.start:f.end]
		if ep.fields[f.key] || string(v) == "null" || string(v) == "false" {
			continue
		}
		switch why := notTaken[f.key]; why {
		case "":
		case hosted:
			return refuse(http.StatusForbidden, "infer.hosted_tool", "%q %s; remove it", f.key, why)
		default:
			return refuse(http.StatusForbidden, "infer.field", "%q %s; remove it", f.key, why)
		}
		return refuse(http.StatusForbidden, "infer.field", "%.64q is no field that %s takes here; remove it", f.key, ep.path)
	}
	return nil
}

// Tools that the client runs itself; an upstream runs all others (web search,
// code execution, MCP) with its own network. A "*" ends a prefix.
var clientTools = []string{"function", "custom", "bash_*", "text_editor_*", "computer_*", "memory_*"}

// toolFields are what a tool of the client may say.
var toolFields = fields(`type name description parameters strict function custom format input_schema output_schema input_examples cache_control
	defer_loading eager_input_streaming async max_characters enable_zoom display_width display_height display_width_px display_height_px display_number environment`)

// tools refuses tools that the upstream would run. Anthropic's need no type:
// their schema says that they are the client's.
func (r *request) tools(ep endpoint) *refusal {
	ts, err := r.list("tools")
	if err != nil {
		return err
	}
	for _, t := range ts {
		fs := members(t)
		known := ep.shape == anthropic && slices.ContainsFunc(fs, func(f field) bool { return f.key == "input_schema" })
		for _, f := range fs {
			if !toolFields[f.key] {
				return refuse(http.StatusForbidden, "infer.hosted_tool", "a tool has %.64q, which may make the upstream act for the agent; remove it", f.key)
			}
			if f.key != "type" {
				continue
			}
			var s string
			if json.Unmarshal(t[f.start:f.end], &s) != nil || !clientTool(s) {
				return refuse(http.StatusForbidden, "infer.hosted_tool", "tool type %.64q runs at the upstream, outside this policy; want a function tool", s)
			}
			known = true
		}
		if !known {
			return refuse(http.StatusForbidden, "infer.hosted_tool", "got a tool without a type; want \"type\": \"function\"")
		}
	}
	return nil
}

func clientTool(s string) bool {
	return slices.ContainsFunc(clientTools, func(p string) bool {
		pre, star := strings.CutSuffix(p, "*")
		return s == p || star && strings.HasPrefix(s, pre)
	})
}

// list returns the elements of a top-level array. A string or null has none.
func (r *request) list(key string) ([][]byte, *refusal) {
	for _, f := range r.fields {
		switch v := r.body[f.start:f.end]; {
		case f.key != key || v[0] == '"' || v[0] == 'n':
		case v[0] == '[':
			return elements(v), nil
		default:
			return nil, refuse(http.StatusBadRequest, "infer.json", "the value of %q has the wrong type, want an array", key)
		}
	}
	return nil, nil
}

// members returns the members of v, if it is an object.
func members(v []byte) []field {
	if v[0] != '{' {
		return nil
	}
	return topLevel(v)
}

// inputItems are what a client of /v1/responses says and did itself. Others
// bring tools with them or name what is kept at the upstream.
var inputItems = fields(`message reasoning compaction function_call function_call_output custom_tool_call custom_tool_call_output
	computer_call computer_call_output local_shell_call local_shell_call_output apply_patch_call apply_patch_call_output`)

// items refuses other input of /v1/responses.
func (r *request) items() *refusal {
	its, err := r.list("input")
	if err != nil {
		return err
	}
	for _, it := range its {
		known := false
		for _, f := range members(it) {
			if known = known || f.key == "role"; !strings.EqualFold(f.key, "type") {
				continue
			}
			var s string
			if json.Unmarshal(it[f.start:f.end], &s) != nil || !inputItems[s] {
				return refuse(http.StatusForbidden, "infer.field", "input of type %.64q is kept, made or run at the upstream; want messages, and calls of function tools with their output", s)
			}
			known = true
		}
		if !known {
			return refuse(http.StatusForbidden, "infer.field", "input without a type names what is kept at the upstream; want a message or the call of a function tool")
		}
	}
	return nil
}

// Keys whose strings are read by the model, whatever they begin with.
var spoken = fields(`text content input prompt instructions system output arguments thinking reasoning reasoning_content refusal
	title context name description command stop suffix stop_sequences user`)

// Fields that hold schemas, and notes of the client: all strings there are free
// but references to other schemas.
var schemas = fields(`tools functions response_format text output_config output_format structured_outputs guided_json nvext metadata client_metadata`)

// address refuses a string whose address an upstream would fetch: any that is
// not text for the model. Some decoders fold the case of keys.
func address(t text) *refusal {
	if t.isKey || t.isNum || spoken[t.key] {
		return nil
	}
	key := strings.ToLower(t.key)
	ref := key == "$ref" || key == "$dynamicref"
	if said(t) || schemas[t.top] && !ref {
		return nil
	}
	s := plain(decode(t.lit))
	switch {
	case key == "file_id" && s != "":
		return refuse(http.StatusForbidden, "infer.field", "%q names what is kept at the upstream, where no policy has read it; send the content itself", t.key)
	case ref && absolute(s):
		return refuse(http.StatusForbidden, "infer.remote_url", "%q names a schema that the upstream would fetch; put it into the schema itself", t.key)
	case absolute(s), s != "" && (strings.HasSuffix(key, "url") || strings.HasSuffix(key, "uri")) && !strings.HasPrefix(s, "data:"):
		return refuse(http.StatusForbidden, "infer.remote_url", "%.64q names an address that the upstream would fetch; send the content as a data: URL", t.key)
	}
	return nil
}

// said is true of the arguments of a tool call, which are an object in
// Anthropic's messages: they were the model's words.
func said(t text) bool {
	return t.top == "messages" && slices.Contains(t.path[1:], "input")
}

// plain returns the beginning of s as readers of addresses see it: without
// blanks in front and control characters, in lower case, with / for \.
func plain(s []byte) string {
	s = bytes.TrimLeftFunc(s, func(c rune) bool { return c <= ' ' || unicode.IsSpace(c) })
	return strings.Map(func(c rune) rune {
		switch {
		case c < ' ':
			return -1
		case c == '\\':
			return '/'
		}
		return unicode.ToLower(c)
	}, string(s[:min(len(s), 256)]))
}

// absolute says whether s begins with a scheme and a host, or a host. Readers
// of http addresses do without the slashes.
func absolute(s string) bool {
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || strings.ContainsFunc(scheme, func(c rune) bool {
		return c >= utf8.RuneSelf || bytesAre[c]&isAlnum == 0 && !strings.ContainsRune("+.-", c)
	}) {
		return strings.HasPrefix(s, "//")
	}
	return strings.HasPrefix(rest, "//") || slices.Contains([]string{"http", "https", "ftp", "file"}, scheme)
}

// remote refuses what would make an upstream reach out for the agent, or use
// what no policy has seen. It holds inside the site as well: an engine has a
// network of its own.
func (r *request) remote(ep endpoint) (err *refusal) {
	if err := r.taken(ep); err != nil {
		return err
	}
	if err := r.tools(ep); err != nil {
		return err
	}
	if ep.path == "/responses" {
		if err := r.items(); err != nil {
			return err
		}
	}
	walk(r.body, func(t text) {
		if err == nil {
			err = address(t)
		}
	})
	return err
}
