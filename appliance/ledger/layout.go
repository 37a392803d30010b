package ledger

import (
	"maps"
	"slices"
	"strings"
)

// An event of a kind always has its members in the same order, which
// encoding/json's sorting of keys once chose; only which of them are there
// depends on the record. So the order is worked out once for each kind, and
// what is the same in all events of a kind is text by then.

// putter appends a value in JSON, or nothing where there is none.
type putter func(b []byte, e *entry) []byte

// leaf is a value and its dotted path.
type leaf struct {
	path string
	put  putter
	text string // JSON of a value that is always the same; put is nil
}

// node is a member of an object, or several that are always the same.
type node struct {
	key  string // with quotes and colon
	put  putter
	kids []node // of an object
	text string // members, key and all
}

// shape is what events of a kind are like.
type shape struct {
	class
	members []node
}

var shapes = func() map[Kind]*shape {
	m := map[Kind]*shape{}
	for k, c := range classes {
		m[k] = &shape{c, plant(c.leaves(k))}
	}
	return m
}()

// plant builds the tree of leaves.
func plant(ls []leaf) []node {
	in := map[string][]leaf{}
	for _, l := range ls {
		k, rest, _ := strings.Cut(l.path, ".")
		l.path = rest
		in[k] = append(in[k], l)
	}
	var out []node
	for _, k := range slices.Sorted(maps.Keys(in)) {
		out = join(out, member(k, in[k]))
	}
	return out
}

func member(key string, ls []leaf) node {
	name := string(appendString(nil, key)) + ":"
	if l := ls[0]; l.path == "" && len(ls) == 1 {
		if l.put == nil {
			return node{text: name + l.text}
		}
		return node{key: name, put: l.put}
	}
	kids := plant(ls)
	if len(kids) == 1 && kids[0].text != "" {
		return node{text: name + "{" + kids[0].text + "}"}
	}
	return node{key: name, kids: kids}
}

// join appends n, to the text before it if both are text.
func join(to []node, n node) []node {
	if k := len(to) - 1; k >= 0 && n.text != "" && to[k].text != "" {
		to[k].text += "," + n.text
		return to
	}
	return append(to, n)
}

// appendMembers writes the members that there are of the object that b ends in.
func appendMembers(b []byte, ns []node, e *entry) []byte {
	for i := range ns {
		n, at := &ns[i], len(b)
		if b[at-1] != '{' {
			b = append(b, ',')
		}
		if n.text != "" {
			b = append(b, n.text...)
			continue
		}
		b = append(b, n.key...)
		from := len(b)
		if b = n.value(b, e); len(b) == from {
			b = b[:at]
		}
	}
	return b
}

// value writes one, or nothing for an object without members.
func (n *node) value(b []byte, e *entry) []byte {
	if n.put != nil {
		return n.put(b, e)
	}
	from := len(b)
	b = appendMembers(append(b, '{'), n.kids, e)
	if len(b) == from+1 {
		return b[:from]
	}
	return append(b, '}')
}
