// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// MaxFile is the largest file that is read, in bytes.
const MaxFile = 1 << 20

// MaxItems is the number of ports, addresses or uids in one selector.
const MaxItems = 1024

// Load reads and checks a file. Mistakes in it come back as *Error, all at once.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	return Read(path, f)
}

// Read is Load for what is open already; name is the file in messages.
func Read(name string, r io.Reader) (*Config, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(name, data)
}

// Parse reads and checks the text of a file; name is the file in messages.
// Mistakes come back as *Error, all at once: after a mistake of syntax,
// however, nothing more can be read.
func Parse(name string, data []byte) (*Config, error) {
	d := &decoder{file: name, lookup: lookupUser, selectors: map[string]string{}}
	var c Config
	if root := d.document(data); root != nil {
		d.plain(root)
		d.root(root, &c)
	}
	if len(d.mistakes) > 0 {
		inOrder(d.mistakes)
		return nil, &Error{Mistakes: d.mistakes}
	}
	return &c, nil
}

type decoder struct {
	file      string
	mistakes  []Mistake
	lookup    func(name string) (uint32, error)
	selectors map[string]string // what each matches: where it stands
	count     int               // of selectors, those with mistakes too
}

func (d *decoder) addAt(line, column int, at, msg string) {
	d.mistakes = append(d.mistakes, Mistake{d.file, max(line, 1), max(column, 1), at, msg})
}

func (d *decoder) add(n *yaml.Node, at, format string, args ...any) {
	d.addAt(n.Line, n.Column, at, fmt.Sprintf(format, args...))
}

// document returns the one thing that the file contains, or nil.
func (d *decoder) document(data []byte) *yaml.Node {
	if len(data) > MaxFile {
		d.addAt(1, 1, "", fmt.Sprintf("the file is larger than %v; this is not a configuration of shunt", Bytes(MaxFile)))
		return nil
	}
	if !d.text(data) {
		return nil
	}
	in := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := in.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && isNull(content(&doc)) {
		d.addAt(1, 1, "", "the file is empty; it needs at least the line apiVersion: "+APIVersion)
		return nil
	}
	if err != nil {
		d.syntax(data, err)
		return nil
	}
	if err = in.Decode(&next); err == nil {
		d.add(&next, "", "a second document starts here; write one document a file")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(data, err)
	}
	return content(&doc)
}

func content(doc *yaml.Node) *yaml.Node {
	if len(doc.Content) == 0 {
		return nil
	}
	return doc.Content[0]
}

func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// text finds what no YAML reader accepts, with its place, which yaml does not say.
func (d *decoder) text(data []byte) bool {
	line, column := 1, 1
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			d.addAt(line, column, "", "not UTF-8; save the file as UTF-8")
			return false
		case r == '\uFEFF' && i > 0, r == 0x7f, r < ' ' && r != '\t' && r != '\n' && r != '\r', r > 0x7f && r < 0xa0 && r != 0x85, r == '\uFFFE', r == '\uFFFF':
			d.addAt(line, column, "", fmt.Sprintf("the character %U; remove it", r))
			return false
		}
		i += size
		column++
		if r == '\n' {
			line, column = line+1, 1
		}
	}
	return true
}

// syntax turns an error of the YAML reader into a mistake.
func (d *decoder) syntax(data []byte, err error) {
	var at *yaml.LoadError
	if !errors.As(err, &at) {
		d.addAt(1, 1, "", fmt.Sprintf("not YAML: %v", err))
		return
	}
	msg := "not YAML: " + at.Message
	if at.ContextMsg != "" {
		msg += " " + at.ContextMsg
		if c := at.ContextMark; c.Line > 0 && (c.Line != at.Mark.Line || c.Column != at.Mark.Column) {
			msg += fmt.Sprintf(" that starts at %d:%d", c.Line, c.Column)
		}
	}
	if lines := bytes.Split(data, []byte("\n")); at.Mark.Line > 0 && at.Mark.Line <= len(lines) {
		// Tabs are what is wrong whenever the reader stops at one.
		line := []rune(string(lines[at.Mark.Line-1]))
		if i := at.Mark.Column - 1; i >= 0 && i < len(line) && line[i] == '\t' {
			msg = "a tab; YAML indents with spaces"
		}
	}
	d.addAt(at.Mark.Line, at.Mark.Column, "", msg)
}

// plain refuses anchors, aliases and merge keys wherever they are: what a
// selector matches must be readable where it stands, and no small file may
// stand for a large one.
func (d *decoder) plain(n *yaml.Node) {
	if n.Anchor != "" {
		d.add(n, "", "the anchor &%s; anchors are not used here, write the value wherever it is needed", cut(n.Anchor))
	}
	if n.Kind == yaml.AliasNode {
		d.add(n, "", "the alias *%s; aliases are not used here, write the value out", cut(n.Value))
		return // what it points to was seen where it stands
	}
	for _, c := range n.Content {
		d.plain(c)
	}
}

// field is a key that a mapping can have, and how its value is read.
type field[T any] struct {
	name string
	read func(d *decoder, n *yaml.Node, at string, into *T)
}

// The keys of the file. A test compares them with the schema and the types.
var (
	rootFields = []field[Config]{
		{"apiVersion", (*decoder).apiVersion},
		{"accel", func(d *decoder, n *yaml.Node, at string, c *Config) { mapping(d, n, at, accelFields, nil, &c.Accel) }},
		{"observe", func(d *decoder, n *yaml.Node, at string, c *Config) {
			mapping(d, n, at, observeFields, laterObserve, &c.Observe)
		}},
	}
	accelFields = []field[Accel]{
		{"select", func(d *decoder, n *yaml.Node, at string, a *Accel) { a.Select = d.selectorList(n, at) }},
		{"exclude", func(d *decoder, n *yaml.Node, at string, a *Accel) { a.Exclude = d.selectorList(n, at) }},
		{"accept", func(d *decoder, n *yaml.Node, at string, a *Accel) { a.Accept = d.accept(n, at) }},
		{"maxQueue", (*decoder).maxQueue},
	}
	selectorFields = []field[Selector]{
		{"cgroup", func(d *decoder, n *yaml.Node, at string, s *Selector) { s.Cgroup = d.checked(n, at, checkCgroup) }},
		{"unit", func(d *decoder, n *yaml.Node, at string, s *Selector) { s.Unit = d.checked(n, at, checkUnit) }},
		{"ports", func(d *decoder, n *yaml.Node, at string, s *Selector) { s.Ports = items(d, n, at, (*decoder).port) }},
		{"addresses", func(d *decoder, n *yaml.Node, at string, s *Selector) {
			s.Addresses = items(d, n, at, (*decoder).prefix)
		}},
		{"netns", func(d *decoder, n *yaml.Node, at string, s *Selector) { s.Netns = d.checked(n, at, checkNetns) }},
		{"uids", func(d *decoder, n *yaml.Node, at string, s *Selector) { s.UIDs = items(d, n, at, (*decoder).uid) }},
	}
	observeFields = []field[Observe]{
		{"metrics", (*decoder).metrics},
	}
)

// Keys of planes that the product is to have and this version does not.
var (
	laterRoot    = []string{"filter", "balance"}
	laterObserve = []string{"flows", "export"}
)

func (d *decoder) root(n *yaml.Node, c *Config) {
	before := len(d.mistakes)
	if !mapping(d, n, "", rootFields, laterRoot, c) || c.APIVersion != "" {
		return
	}
	for _, m := range d.mistakes[before:] {
		if m.Path == "apiVersion" {
			return
		}
	}
	d.add(n, "apiVersion", "missing; add the line apiVersion: %s", APIVersion)
}

// mapping reads the keys of n into *into, and says whether it is a mapping.
func mapping[T any](d *decoder, n *yaml.Node, at string, known []field[T], later []string, into *T) bool {
	if !d.is(n, at, yaml.MappingNode, "!!map") {
		return false
	}
	names := keys(known)
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			continue // refused already
		}
		if key.ShortTag() == "!!merge" {
			d.add(key, at, "the merge key <<; merging is not used here, write the keys out")
			continue
		}
		if key.Kind != yaml.ScalarNode {
			d.add(key, at, "%s as a key; a key is one word: %s", kindOf(key), list(names))
			continue
		}
		keyAt := join(at, key.Value)
		if first := seen[key.Value]; first != nil {
			d.add(key, keyAt, "a second time, first on line %d; keep one", first.Line)
			continue
		}
		seen[key.Value] = key
		if f := slices.IndexFunc(known, func(f field[T]) bool { return f.name == key.Value }); f >= 0 {
			known[f].read(d, value, keyAt, into)
			continue
		}
		if slices.Contains(later, key.Value) {
			d.add(key, keyAt, "not in this version of shunt; remove it")
			continue
		}
		d.add(key, keyAt, "unknown key; %s", instead(at, key.Value, names))
	}
	return true
}

// places are where keys are known. Filled by init, since reading a mapping
// needs them.
var places []struct {
	at   string
	keys []string
}

func init() {
	add := func(at string, keys []string) {
		places = append(places, struct {
			at   string
			keys []string
		}{at, keys})
	}
	add("", keys(rootFields))
	add("accel", keys(accelFields))
	add("accel.select[…]", keys(selectorFields))
	add("observe", keys(observeFields))
}

// instead says what to write for an unknown key.
func instead(at, key string, here []string) string {
	if k := nearest(key, here); k != "" {
		return "did you mean " + k + "?"
	}
	for _, place := range places {
		if place.at == at || !slices.Contains(place.keys, key) {
			continue
		}
		if place.at == "" {
			return key + " belongs at the left margin; the keys here are " + strings.Join(here, ", ")
		}
		return "write it as " + join(place.at, key) + "; the keys here are " + strings.Join(here, ", ")
	}
	return "the keys here are " + strings.Join(here, ", ")
}

func keys[T any](fields []field[T]) []string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return names
}

var word = regexp.MustCompile(`^[A-Za-z0-9_…[\].-]+$`)

func join(at, key string) string {
	if !word.MatchString(key) || len(key) > maxShown {
		key = show(key)
	}
	if at == "" {
		return key
	}
	return at + "." + key
}

// is says whether n is of this kind and tag, and adds the mistake if not.
func (d *decoder) is(n *yaml.Node, at string, kind yaml.Kind, tag string) bool {
	if n.Kind == kind && n.ShortTag() == tag {
		return true
	}
	want := map[string]string{
		"!!map": "keys and values are needed here, as key: value",
		"!!seq": "a list is needed here",
		"!!str": "text is needed here",
	}[tag]
	switch {
	case n.Kind == yaml.AliasNode: // refused already
	case isNull(n):
		d.add(n, at, "no value; give it one or remove the key")
	case tag == "!!seq" && n.Kind == yaml.ScalarNode:
		d.add(n, at, "%s, and %s; write [%s]", kindOf(n), want, cut(n.Value))
	case tag == "!!str" && n.Kind == yaml.ScalarNode:
		d.add(n, at, "%s, and %s; write it in quotes, as %s", kindOf(n), want, show(n.Value))
	default:
		d.add(n, at, "%s, and %s", kindOf(n), want)
	}
	return false
}

// kindOf names what n is in a reader's words.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		if n.ShortTag() == "!!map" {
			return "keys and values"
		}
	case yaml.SequenceNode:
		if n.ShortTag() == "!!seq" {
			return "a list"
		}
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!str":
			return "text"
		case "!!int", "!!float":
			return "a number"
		case "!!bool":
			return "true or false"
		case "!!null":
			return "no value"
		case "!!timestamp":
			return "a date"
		}
	}
	return "the tag " + cut(n.ShortTag())
}

func (d *decoder) apiVersion(n *yaml.Node, at string, c *Config) {
	if !d.is(n, at, yaml.ScalarNode, "!!str") {
		return
	}
	if n.Value != APIVersion {
		d.add(n, at, "%s is not a version that this shunt reads; write %s", show(n.Value), APIVersion)
		return
	}
	c.APIVersion = n.Value
}

// checked is text that check accepts.
func (d *decoder) checked(n *yaml.Node, at string, check func(string) error) string {
	if !d.is(n, at, yaml.ScalarNode, "!!str") {
		return ""
	}
	if err := check(n.Value); err != nil {
		d.add(n, at, "%v", err)
		return ""
	}
	return n.Value
}

func (d *decoder) selectorList(n *yaml.Node, at string) []Selector {
	if !d.is(n, at, yaml.SequenceNode, "!!seq") {
		return nil
	}
	var all []Selector
	for i, item := range n.Content {
		itemAt := fmt.Sprintf("%s[%d]", at, i)
		if d.count++; d.count == MaxSelectors+1 {
			d.add(item, itemAt, "more than %d selectors in select and exclude together; put ports, addresses or uids of one kind into one selector", MaxSelectors)
		}
		before := len(d.mistakes)
		var s Selector
		if !mapping(d, item, itemAt, selectorFields, nil, &s) || len(d.mistakes) > before {
			continue
		}
		if len(item.Content) == 0 {
			d.add(item, itemAt, "a selector without a field would match everything; give it one of %s", list(keys(selectorFields)))
			continue
		}
		if s.key() == (Selector{}).key() {
			continue // of aliases alone, refused already
		}
		if first, ok := d.selectors[s.key()]; ok {
			d.add(item, itemAt, "matches the same as %s; remove one of them", first)
			continue
		}
		d.selectors[s.key()] = itemAt
		all = append(all, s)
	}
	return all
}

// key is the same for two selectors that are the same, in whatever order their
// lists stand.
func (s Selector) key() string {
	ports := slices.SortedFunc(slices.Values(s.Ports), func(a, b PortRange) int {
		return int(a.First)<<16 + int(a.Last) - int(b.First)<<16 - int(b.Last)
	})
	addresses := slices.SortedFunc(slices.Values(s.Addresses), netip.Prefix.Compare)
	return fmt.Sprintf("%q %q %v %v %q %v", s.Cgroup, s.Unit, ports, addresses, s.Netns, slices.Sorted(slices.Values(s.UIDs)))
}

// items reads the list of a selector's field, each item once.
func items[T comparable](d *decoder, n *yaml.Node, at string, read func(*decoder, *yaml.Node) (T, error)) []T {
	if !d.is(n, at, yaml.SequenceNode, "!!seq") {
		return nil
	}
	if len(n.Content) == 0 {
		d.add(n, at, "an empty list would match nothing; give it a value or remove the key")
		return nil
	}
	var all []T
	seen := map[T]int{}
	for i, item := range n.Content {
		itemAt := fmt.Sprintf("%s[%d]", at, i)
		if i == MaxItems {
			d.add(item, itemAt, "more than %d; join them to ranges or prefixes, or write a second selector", MaxItems)
			break
		}
		if item.Kind == yaml.AliasNode {
			continue // refused already
		}
		v, err := read(d, item)
		if err != nil {
			d.add(item, itemAt, "%v", err)
			continue
		}
		if first, ok := seen[v]; ok {
			d.add(item, itemAt, "the same as %s[%d]; remove one of them", at, first)
			continue
		}
		seen[v] = i
		all = append(all, v)
	}
	return all
}

// numberOrText is the text of a scalar, whether quoted or not: templates and
// people quote numbers, and there is one way to understand it.
func numberOrText(n *yaml.Node, want string) (string, error) {
	if n.Kind == yaml.ScalarNode && slices.Contains([]string{"!!str", "!!int", "!!float"}, n.ShortTag()) {
		return n.Value, nil // 080 is a float to YAML
	}
	return "", fmt.Errorf("%s, and %s is needed here", kindOf(n), want)
}

func (d *decoder) port(n *yaml.Node) (PortRange, error) {
	s, err := numberOrText(n, "a port or a range of ports, as 80 or 8000-8010,")
	if err != nil {
		return PortRange{}, err
	}
	return parsePorts(s)
}

func (d *decoder) prefix(n *yaml.Node) (netip.Prefix, error) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return netip.Prefix{}, fmt.Errorf("%s, and an address or a prefix, as 10.0.0.1 or 10.0.0.0/8, is needed here", kindOf(n))
	}
	return parsePrefix(n.Value)
}

var (
	userName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*\$?$`)
	userRange = regexp.MustCompile(`^[0-9]+-[0-9]+$`)
)

func (d *decoder) uid(n *yaml.Node) (uint32, error) {
	s, err := numberOrText(n, "a uid or the name of a user")
	if err != nil {
		return 0, err
	}
	if isDecimal(s) {
		id, err := strconv.ParseUint(s, 10, 32)
		if err != nil || id > maxUID {
			return 0, fmt.Errorf("%s is not a uid; uids are 0 to %d", cut(s), uint32(maxUID))
		}
		return uint32(id), nil
	}
	if userRange.MatchString(s) {
		return 0, fmt.Errorf("%s: uids have no ranges; write each uid", show(s))
	}
	if n.ShortTag() != "!!str" || !userName.MatchString(s) {
		return 0, fmt.Errorf("%s is neither a uid nor the name of a user; write 1000 or www-data", show(s))
	}
	return d.lookup(s)
}

func lookupUser(name string) (uint32, error) {
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		return 0, fmt.Errorf("no user %s on this machine; create the user first, or write a uid", show(name))
	}
	if err != nil {
		return 0, fmt.Errorf("look up the user %s: %w", show(name), err)
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("the user %s has the uid %s; write a uid", show(name), show(u.Uid))
	}
	return uint32(id), nil
}

// acceptable are the guarantees that can be given up.
var acceptable = []string{"G4", "G5", "G6"}

func (d *decoder) accept(n *yaml.Node, at string) []string {
	if !d.is(n, at, yaml.SequenceNode, "!!seq") || len(n.Content) == 0 {
		return nil
	}
	return items(d, n, at, (*decoder).guarantee)
}

func (d *decoder) guarantee(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return "", fmt.Errorf("%s, and one of %s is needed here", kindOf(n), list(acceptable))
	}
	if slices.Contains(acceptable, n.Value) {
		return n.Value, nil
	}
	if g := strings.ToUpper(n.Value); slices.Contains(acceptable, g) {
		return "", fmt.Errorf("%s; write %s", show(n.Value), g)
	}
	if slices.Contains([]string{"G1", "G2", "G3", "G7", "G8", "G9", "G10"}, n.Value) {
		return "", fmt.Errorf("%s cannot be given up; only %s can", n.Value, list(acceptable))
	}
	return "", fmt.Errorf("%s is not a guarantee; write %s", show(n.Value), list(acceptable))
}

func (d *decoder) maxQueue(n *yaml.Node, at string, a *Accel) {
	s, err := numberOrText(n, "a size as 4MiB")
	if isNull(n) {
		err = errors.New("no value; give it one or remove the key")
	}
	var size Bytes
	if err == nil {
		size, err = parseBytes(s)
	}
	if err == nil && (size < MinQueue || size > MaxMaxQueue) {
		err = fmt.Errorf("%s is not between %v and %v; the default is %v", show(s), MinQueue, MaxMaxQueue, DefaultQueue)
	}
	if err != nil {
		if n.Kind != yaml.AliasNode { // refused already
			d.add(n, at, "%v", err)
		}
		return
	}
	a.MaxQueue = size
}

func (d *decoder) metrics(n *yaml.Node, at string, o *Observe) {
	if !d.is(n, at, yaml.ScalarNode, "!!str") {
		return
	}
	address, err := parseMetrics(n.Value)
	if err != nil {
		d.add(n, at, "%v", err)
		return
	}
	o.Metrics = address
}
