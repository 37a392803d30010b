package router

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// usage is what an upstream reported. A stream reports growing totals, so the
// largest number of each kind counts.
type usage struct {
	in, out int
	seen    bool // a report that covers the answer
	passed  int  // tokens passed on, by estimate
}

// tokens is the use so far: what is reported, and by estimate what is not. A
// report of no prompt, or of no answer where there is one, is none.
func (u usage) tokens(c *call) int {
	in, out := u.in, u.out
	if in == 0 {
		in = promptTokens(c)
	}
	if out == 0 || !u.seen {
		out = max(out, u.passed)
	}
	return in + out
}

// maxReport bounds a reported number, so that no sum of them turns negative.
const maxReport = 1 << 40

func bounded(n int) int { return min(max(n, 0), maxReport) }

// report is usage in the words of every API served.
type report struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Input      int `json:"input_tokens"`
	Output     int `json:"output_tokens"`
	CacheMade  int `json:"cache_creation_input_tokens"` // Anthropic counts these apart
	CacheRead  int `json:"cache_read_input_tokens"`
}

// read takes the usage out of a JSON answer or of one event of a stream.
func (u *usage) read(b []byte) {
	if !bytes.Contains(b, []byte(`"usage"`)) {
		return
	}
	var v struct {
		Usage    *report
		Message  struct{ Usage *report } // Anthropic's message_start
		Response struct{ Usage *report } // response.completed
	}
	if json.Unmarshal(b, &v) != nil {
		return
	}
	for _, r := range []*report{v.Usage, v.Message.Usage, v.Response.Usage} {
		if r != nil {
			u.in = max(u.in, bounded(r.Prompt), bounded(r.Input)+bounded(r.CacheMade)+bounded(r.CacheRead))
			u.out = max(u.out, bounded(r.Completion), bounded(r.Output))
			u.seen = u.seen || r != v.Message.Usage // which comes before the answer
		}
	}
}

// stream relays server-sent events, one flush each.
type stream struct {
	w      http.ResponseWriter
	use    *usage
	spend  func() *refusal // takes use from the budget
	hide   bool            // drop the usage-only chunk that the agent did not ask for
	output bool            // generated text comes, which costs
	n      int64           // bytes passed on
}

// maxEvent bounds one event, in bytes. A longer one is an error: it could hide
// its usage.
const maxEvent = 4 << 20

var errEvent = errors.New("an event of the upstream is too long")

func (s *stream) copy(r io.Reader) error {
	br := bufio.NewReaderSize(r, 32<<10)
	var event []byte
	for {
		line, err := br.ReadSlice('\n')
		if event = append(event, line...); len(event) > maxEvent {
			return errEvent
		}
		whole := err == nil && len(bytes.TrimRight(line, "\r\n")) == 0
		if whole || err != nil && err != bufio.ErrBufferFull {
			if werr := s.pass(event); werr != nil {
				return werr
			}
			event = event[:0]
		}
		if err == io.EOF {
			return nil
		}
		if err != nil && err != bufio.ErrBufferFull {
			return err
		}
	}
}

// pass hands one event to the agent.
func (s *stream) pass(event []byte) error {
	if len(event) == 0 {
		return nil
	}
	if data := eventData(event); len(data) > 0 {
		s.use.read(data)
		if s.hide && usageOnly(data) {
			return nil
		}
		if err := s.take(data); err != nil {
			return err
		}
	}
	n, err := s.w.Write(event)
	s.n += int64(n)
	if err == nil {
		err = http.NewResponseController(s.w).Flush()
	}
	return err
}

// take pays for the generated text of an event before it is passed on. The
// last report, which brings none, always passes.
func (s *stream) take(data []byte) error {
	n := 0
	if s.output {
		n = generated(data)
	}
	if n == 0 {
		return nil
	}
	s.use.passed += n
	if err := s.spend(); err != nil {
		s.use.passed -= n
		return err
	}
	return nil
}

// notText are the strings of an event's choices or delta that no model wrote.
var notText = fields("id role type object finish_reason stop_reason token signature")

// generated estimates the tokens of an event. Text grows in "choices" and
// "delta"; elsewhere, events repeat it.
func generated(data []byte) (n int) {
	if !json.Valid(data) {
		if bytes.Equal(bytes.TrimSpace(data), []byte("[DONE]")) {
			return 0
		}
		return outputTokens(len(data))
	}
	walk(data, func(t text) {
		if (t.top == "choices" || t.top == "delta") && !t.isKey && !t.isNum && !notText[t.key] {
			n += outputTokens(len(decode(t.lit)))
		}
	})
	return n
}

// eventData joins the data lines of an event (WHATWG HTML, 9.2.6).
func eventData(event []byte) []byte {
	var out []byte
	for line := range bytes.Lines(event) {
		if d, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			out = append(out, bytes.TrimRight(d, "\r\n")...)
			out = append(out, '\n')
		}
	}
	return out
}

// usageOnly recognises the last chunk that include_usage causes.
func usageOnly(data []byte) bool {
	if !bytes.Contains(data, []byte(`"usage"`)) {
		return false
	}
	var v struct {
		Choices []json.RawMessage
		Usage   *report
	}
	return json.Unmarshal(data, &v) == nil && v.Usage != nil && v.Choices != nil && len(v.Choices) == 0
}
