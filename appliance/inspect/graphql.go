package inspect

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/parser"

	"github.com/clawbox/clawbox/policies"
)

const (
	maxTokens = 20_000
	maxFields = 1000 // selections visited at the top level of one operation
)

// params are the four parameters of a GraphQL request (GraphQL over HTTP,
// section 5.1). A server that knows others, such as an id of a stored query,
// could run what nobody has read.
var params = []string{"query", "operationName", "variables", "extensions"}

// graphql reads GraphQL over HTTP: POST of JSON (one request or a batch) or
// of the query itself, and GET of queries only.
func (q *request) graphql() *Refusal {
	switch q.in.Method {
	case http.MethodGet:
		return q.graphqlGet()
	case http.MethodPost:
	default:
		return refuse(BadGraphQL, "use POST or GET", "got GraphQL by %s", q.in.Method).as(http.StatusMethodNotAllowed)
	}
	for k := range q.base.Query {
		if slices.ContainsFunc(params, func(p string) bool { return fold(p) == fold(k) }) || storedKey(k) {
			return refuse(BadGraphQL, "put it into the body", "got GraphQL parameter %q in the URL of a POST", k)
		}
	}
	b, bad := q.body("application/json", "application/graphql", "application/graphql+json")
	if bad != nil {
		return bad
	}
	if t, _, _ := mime.ParseMediaType(q.in.Header.Get("Content-Type")); t == "application/graphql" {
		return q.operations(gqlCall{query: string(b)})
	}
	calls, err := readGraphQL(b)
	if err != nil {
		return badGraphQL(err)
	}
	return q.operations(calls...)
}

func badGraphQL(err error) *Refusal {
	return refuse(BadGraphQL, "send query and operationName, one meaning each", "the request holds %v", err)
}

// graphqlGet reads the URL's parameters.
func (q *request) graphqlGet() *Refusal {
	o := object{}
	for k, v := range q.base.Query {
		if len(v) != 1 {
			return refuse(BadGraphQL, "send one", "got %d parameters %q", len(v), k)
		}
		o[k] = v[0]
	}
	for _, k := range []string{"variables", "extensions"} {
		s, has := o[k].(string)
		if !has || s == "" {
			delete(o, k)
			continue
		}
		v, err := readJSON([]byte(s))
		if err != nil {
			return badGraphQL(fmt.Errorf("%s with %w", k, err))
		}
		o[k] = v
	}
	c, err := readGraphQLCall(o)
	if err != nil {
		return badGraphQL(err)
	}
	c.get = true
	if bad := q.operations(c); bad != nil {
		return bad
	}
	return q.empty()
}

// gqlCall is one GraphQL request.
type gqlCall struct {
	query, name string
	get         bool
}

// readGraphQL reads a JSON body: a request or a batch.
func readGraphQL(b []byte) (calls []gqlCall, err error) {
	v, err := readJSON(b)
	if err != nil {
		return nil, err
	}
	batch, ok := v.([]any)
	if !ok {
		batch = []any{v}
	}
	if len(batch) == 0 || len(batch) > maxBatch {
		return nil, fmt.Errorf("a batch of %d, want 1 to %d", len(batch), maxBatch)
	}
	for _, v := range batch {
		o, ok := v.(object)
		if !ok {
			return nil, fmt.Errorf("%.40v where an object belongs", v)
		}
		c, err := readGraphQLCall(o)
		if err != nil {
			return nil, err
		}
		calls = append(calls, c)
	}
	return calls, nil
}

func readGraphQLCall(o object) (c gqlCall, err error) {
	if err := known(o, true, params...); err != nil {
		return c, err
	}
	ok := true
	if c.query, ok = o["query"].(string); !ok || strings.TrimSpace(c.query) == "" {
		return c, fmt.Errorf("no query (a stored query can't be judged: send its text)")
	}
	if v := o["operationName"]; v != nil {
		if c.name, ok = v.(string); !ok {
			return c, fmt.Errorf("an operationName that is no string")
		}
	}
	for _, k := range params[2:] {
		if _, ok := o[k].(object); !ok && o[k] != nil {
			return c, fmt.Errorf("%s that are no object", k)
		}
	}
	ext, _ := o["extensions"].(object)
	return c, persisted(c.query, ext)
}

// storedKey says whether an URL key names a stored query.
func storedKey(k string) bool {
	return slices.Contains([]string{"id", "queryid", "query_id", "documentid", "document_id", "doc_id", "hash", "querypath"}, fold(k))
}

// persisted admits Apollo's automatic persisted queries where the text is
// there and the hash is its own.
func persisted(query string, ext object) error {
	if err := known(ext, false, "persistedQuery"); err != nil {
		return err
	}
	v, has := ext["persistedQuery"]
	if !has {
		return nil
	}
	p, _ := v.(object)
	sum := sha256.Sum256([]byte(query))
	if err := known(p, true, "version", "sha256Hash"); err != nil || p["sha256Hash"] != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("a persistedQuery that is not the hash of its query")
	}
	return nil
}

// operations adds one message for each call.
func (q *request) operations(calls ...gqlCall) *Refusal {
	for _, c := range calls {
		m, err := c.message()
		if err != nil {
			return badGraphQL(err)
		}
		q.add(m)
	}
	return nil
}

// message says what a call runs: the type, name and top-level fields of the
// one operation that the server will choose.
func (c gqlCall) message() (m policies.Message, err error) {
	d, err := parser.ParseQueryWithTokenLimit(&ast.Source{Input: c.query}, maxTokens)
	if err != nil {
		return m, fmt.Errorf("a query that does not parse: %.200v", err)
	}
	op, err := choose(d, c.name)
	if err != nil {
		return m, err
	}
	if c.get && op.Operation != ast.Query {
		return m, fmt.Errorf("a %s by GET", op.Operation)
	}
	f := fieldsOf{doc: d, seen: map[string]bool{}}
	if err := f.walk(op.SelectionSet); err != nil {
		return m, err
	}
	slices.Sort(f.names)
	return policies.Message{Operation: string(op.Operation), OperationName: op.Name, Fields: slices.Compact(f.names)}, nil
}

// choose finds the operation that runs. GraphQL forbids equal names of
// operations and of fragments, and an anonymous one among several.
func choose(d *ast.QueryDocument, name string) (*ast.OperationDefinition, error) {
	seen := map[string]bool{}
	for _, f := range d.Fragments {
		if seen[f.Name] {
			return nil, fmt.Errorf("two fragments %q", f.Name)
		}
		seen[f.Name] = true
	}
	clear(seen)
	var run *ast.OperationDefinition
	for _, op := range d.Operations {
		if seen[op.Name] || op.Name == "" && len(d.Operations) > 1 {
			return nil, fmt.Errorf("two operations %q, or an anonymous one among several", op.Name)
		}
		seen[op.Name] = true
		if op.Name == name || name == "" {
			run = op
		}
	}
	switch {
	case name == "" && len(d.Operations) > 1:
		return nil, fmt.Errorf("%d operations and no operationName", len(d.Operations))
	case run == nil:
		return nil, fmt.Errorf("no operation %q", name)
	}
	return run, nil
}

// fieldsOf gathers the names of top-level fields, not their aliases, through
// fragments. Directives such as @skip are ignored: a field that may run counts.
type fieldsOf struct {
	doc   *ast.QueryDocument
	seen  map[string]bool // fragments visited: each once, so cycles end
	names []string
	n     int
}

func (f *fieldsOf) walk(set ast.SelectionSet) error {
	for _, s := range set {
		if f.n++; f.n > maxFields {
			return fmt.Errorf("more than %d selections at the top level", maxFields)
		}
		var in ast.SelectionSet
		switch s := s.(type) {
		case *ast.Field:
			f.names = append(f.names, s.Name)
		case *ast.InlineFragment:
			in = s.SelectionSet
		case *ast.FragmentSpread:
			d := f.doc.Fragments.ForName(s.Name)
			if d == nil {
				return fmt.Errorf("a spread of %q, which is no fragment here", s.Name)
			}
			if !f.seen[s.Name] {
				f.seen[s.Name], in = true, d.SelectionSet
			}
		default:
			return fmt.Errorf("a selection of an unknown kind")
		}
		if err := f.walk(in); err != nil {
			return err
		}
	}
	return nil
}
