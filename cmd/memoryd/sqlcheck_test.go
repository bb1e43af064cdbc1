package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// sqlCheck follows texts backwards, from the doors to where they come from: through variables, fields, builders,
// closures, results of functions, and from a parameter to all callers. It knows no order of statements and no
// conditions, so whatever is anywhere assigned to a variable counts. An origin that it cannot follow is a complaint,
// never a pass; so is a parameter of a function that nobody here calls, which would be a door open to other packages.
type sqlCheck struct {
	files   []source
	trusted map[string]string
	info    types.Info
	pkg     *types.Package
	doors   int

	writes  map[types.Object][]ast.Expr // what is assigned to a variable or a field, in the whole package
	opaque  map[types.Object]ast.Node   // variables that get values in ways that are not followed
	ranged  map[types.Object]ast.Expr   // variables of a range clause
	built   map[types.Object][]*ast.CallExpr
	owner   map[types.Object]*types.Func // parameters, and whose they are
	bodies  map[*types.Func]*ast.FuncDecl
	calls   map[types.Object][]*ast.CallExpr
	named   map[types.Object]int          // how often a variable is mentioned, to see whether it is only ever called
	closure map[types.Object]types.Object // a parameter of a closure, and the variable that holds the closure
	params  map[types.Object][]*ast.Ident // the parameters of the closure in that variable
	literal map[*ast.FuncLit]types.Object // closures that a variable holds
	asked   map[any]bool                  // expressions and objects on the way: a loop adds nothing new
	used    map[string]bool
	found   []string
	visited ast.Node // the door that is being followed, for complaints
}

func newSQLCheck(files []source, trusted map[string]string) *sqlCheck {
	return &sqlCheck{files: files, trusted: trusted,
		info: types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Defs: map[*ast.Ident]types.Object{},
			Uses: map[*ast.Ident]types.Object{}, Selections: map[*ast.SelectorExpr]*types.Selection{}},
		writes: map[types.Object][]ast.Expr{}, opaque: map[types.Object]ast.Node{}, ranged: map[types.Object]ast.Expr{},
		built: map[types.Object][]*ast.CallExpr{}, owner: map[types.Object]*types.Func{},
		bodies: map[*types.Func]*ast.FuncDecl{}, calls: map[types.Object][]*ast.CallExpr{},
		named: map[types.Object]int{}, closure: map[types.Object]types.Object{}, params: map[types.Object][]*ast.Ident{},
		literal: map[*ast.FuncLit]types.Object{},
		asked:   map[any]bool{}, used: map[string]bool{}}
}

// nothing stands in for every imported package: texts can be followed without knowing them, and loading the drivers
// would take longer than all other checks together.
type nothing struct{}

func (nothing) Import(string) (*types.Package, error) { return nil, errors.New("not loaded") }

func (c *sqlCheck) run() []string {
	var asts []*ast.File
	for _, f := range c.files {
		asts = append(asts, f.file)
	}
	if len(asts) == 0 {
		return nil
	}
	set := c.files[0].set
	config := types.Config{Importer: nothing{}, Error: func(error) {}}
	c.pkg, _ = config.Check(asts[0].Name.Name, set, asts, &c.info) // errors about imports are expected
	for _, f := range asts {
		c.collect(f)
	}
	for _, f := range asts {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); !ok || c.trusts(c.nameOf(fn)) {
				continue
			}
			ast.Inspect(d, func(n ast.Node) bool {
				c.door(n)
				return true
			})
		}
	}
	for name := range c.trusted {
		if !c.used[name] {
			c.found = append(c.found, fmt.Sprintf("%q is trusted but never asked for", name))
		}
	}
	slices.Sort(c.found)
	return slices.Compact(c.found)
}

func (c *sqlCheck) trusts(name string) bool {
	if c.trusted[name] == "" {
		return false
	}
	c.used[name] = true
	return true
}

// nameOf is "Type.Method" or "function".
func (c *sqlCheck) nameOf(fn *ast.FuncDecl) string {
	if f, ok := c.info.Defs[fn.Name].(*types.Func); ok {
		return funcName(f)
	}
	return fn.Name.Name
}

func funcName(f *types.Func) string {
	sig, ok := f.Type().(*types.Signature)
	if !ok || sig.Recv() == nil {
		return f.Name()
	}
	t := sig.Recv().Type()
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	if n, ok := t.(*types.Named); ok {
		return n.Obj().Name() + "." + f.Name()
	}
	return f.Name()
}

// collect notes who writes what, who calls whom, and whose parameter is which.
func (c *sqlCheck) collect(f *ast.File) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if fn, ok := c.info.Defs[n.Name].(*types.Func); ok {
				c.bodies[fn] = n
				sig := fn.Type().(*types.Signature)
				for p := range sig.Params().Variables() {
					c.owner[p] = fn
				}
			}
		case *ast.FuncLit:
			holder := c.literal[n] // its assignment was met before
			for _, field := range n.Type.Params.List {
				for _, name := range field.Names {
					if holder == nil {
						c.opaque[c.info.Defs[name]] = name // its callers are not followed
						continue
					}
					c.closure[c.info.Defs[name]] = holder
					c.params[holder] = append(c.params[holder], name)
				}
			}
		case *ast.Ident:
			if o := c.info.Uses[n]; o != nil {
				c.named[o]++
			}
		case *ast.CallExpr:
			if fn := c.callee(n); fn != nil {
				c.calls[fn] = append(c.calls[fn], n)
			} else if id, ok := n.Fun.(*ast.Ident); ok && c.info.Uses[id] != nil {
				c.calls[c.info.Uses[id]] = append(c.calls[c.info.Uses[id]], n)
			}
			c.collectBuilder(n)
		case *ast.AssignStmt:
			for i, left := range n.Lhs {
				if len(n.Lhs) == len(n.Rhs) {
					c.write(left, n.Rhs[i])
				} else {
					c.write(left, n.Rhs[0])
				}
			}
		case *ast.ValueSpec:
			for i, name := range n.Names {
				switch {
				case len(n.Values) == len(n.Names):
					c.write(name, n.Values[i])
				case len(n.Values) > 0:
					c.write(name, n.Values[0])
				}
			}
		case *ast.RangeStmt:
			for _, v := range []ast.Expr{n.Key, n.Value} {
				if id, ok := v.(*ast.Ident); ok && c.object(id) != nil {
					c.ranged[c.object(id)] = n.X
				}
			}
		case *ast.UnaryExpr:
			// What has its address taken may be written by anybody, but a builder that is handed to Fprintf is known.
			if id, ok := n.X.(*ast.Ident); ok && n.Op == token.AND && c.object(id) != nil && isString(c.object(id).Type()) {
				c.opaque[c.object(id)] = n
			}
		case *ast.CompositeLit:
			c.collectLiteral(n)
		}
		return true
	})
}

// collectBuilder notes what is written into a strings.Builder.
func (c *sqlCheck) collectBuilder(call *ast.CallExpr) {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	if id, ok := sel.X.(*ast.Ident); ok && strings.HasPrefix(sel.Sel.Name, "Write") && c.object(id) != nil {
		c.built[c.object(id)] = append(c.built[c.object(id)], call)
	}
	for _, a := range call.Args {
		if u, ok := a.(*ast.UnaryExpr); ok && u.Op == token.AND {
			if id, ok := u.X.(*ast.Ident); ok && c.object(id) != nil {
				c.built[c.object(id)] = append(c.built[c.object(id)], call)
			}
		}
	}
}

func (c *sqlCheck) collectLiteral(lit *ast.CompositeLit) {
	s, ok := c.typeOf(lit).Underlying().(*types.Struct)
	if !ok {
		return
	}
	for i, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			c.write(kv.Key, kv.Value)
		} else if i < s.NumFields() {
			c.writes[s.Field(i)] = append(c.writes[s.Field(i)], e)
		}
	}
}

func (c *sqlCheck) write(left, right ast.Expr) {
	switch l := left.(type) {
	case *ast.Ident:
		if o := c.object(l); o != nil {
			c.writes[o] = append(c.writes[o], right)
			if lit, ok := right.(*ast.FuncLit); ok && len(c.writes[o]) == 1 {
				c.literal[lit] = o
			}
		}
	case *ast.SelectorExpr:
		if o := c.object(l.Sel); o != nil {
			c.writes[o] = append(c.writes[o], right)
		}
	case *ast.IndexExpr: // an element counts as the whole
		c.write(l.X, right)
	}
}

func (c *sqlCheck) object(id *ast.Ident) types.Object {
	if o := c.info.Defs[id]; o != nil {
		return o
	}
	return c.info.Uses[id]
}

func (c *sqlCheck) typeOf(e ast.Expr) types.Type {
	if t := c.info.Types[e].Type; t != nil {
		return t
	}
	return types.Typ[types.Invalid]
}

// callee is the function of this package that the call names, or nil.
func (c *sqlCheck) callee(call *ast.CallExpr) *types.Func {
	var id *ast.Ident
	switch f := ast.Unparen(call.Fun).(type) {
	case *ast.Ident:
		id = f
	case *ast.SelectorExpr:
		id = f.Sel
	default:
		return nil
	}
	fn, _ := c.info.Uses[id].(*types.Func)
	if fn == nil || fn.Pkg() != c.pkg {
		return nil
	}
	return fn.Origin()
}

// door looks at one node, and if it hands over SQL asks where that comes from.
func (c *sqlCheck) door(n ast.Node) {
	switch n := n.(type) {
	case *ast.CallExpr:
		sel, ok := ast.Unparen(n.Fun).(*ast.SelectorExpr)
		if !ok {
			return
		}
		if fn := c.callee(n); fn != nil {
			if i, ours := sqlDoors[funcName(fn)]; ours && i >= 0 && i < len(n.Args) {
				c.follow(n, n.Args[i])
			}
			// A door of an interface of ours is recognised by its bare name, as a driver's is.
			if _, ours := c.bodies[fn]; ours {
				return
			}
		}
		if i, there := sqlDoors[sel.Sel.Name]; there && i < 0 {
			for _, a := range n.Args {
				if isString(c.typeOf(a)) {
					c.follow(n, a)
					if !strings.HasPrefix(sel.Sel.Name, "Prepare") { // its first text may be a name
						return
					}
				}
			}
		}
	case *ast.SelectorExpr:
		// A door taken as a value escapes this check.
		if fn, ok := c.info.Uses[n.Sel].(*types.Func); ok && sqlDoors[funcName(fn)] >= 0 {
			if _, is := sqlDoors[funcName(fn)]; is && !c.calledHere(n) {
				c.complain(n, "a door to SQL is used as a value")
			}
		}
	}
}

func (c *sqlCheck) calledHere(sel *ast.SelectorExpr) bool {
	fn := c.info.Uses[sel.Sel].(*types.Func)
	return slices.ContainsFunc(c.calls[fn.Origin()], func(call *ast.CallExpr) bool { return ast.Unparen(call.Fun) == sel })
}

func (c *sqlCheck) follow(door ast.Node, e ast.Expr) {
	c.doors++
	c.visited = door
	c.text(e)
}

func (c *sqlCheck) complain(at ast.Node, format string, args ...any) {
	set := c.files[0].set
	line := func(n ast.Node) string {
		p := set.Position(n.Pos())
		return fmt.Sprintf("%s:%d", p.Filename, p.Line)
	}
	if at = orNode(at, c.visited); at == nil {
		return
	}
	c.found = append(c.found, fmt.Sprintf("%s: SQL that is not constant: %s", line(at), fmt.Sprintf(format, args...)))
}

func orNode(a, b ast.Node) ast.Node {
	if a != nil {
		return a
	}
	return b
}

// text complains unless e is made of constants. It serves slices of texts as well: their elements count.
func (c *sqlCheck) text(e ast.Expr) {
	e = ast.Unparen(e)
	if c.asked[e] {
		return
	}
	c.asked[e] = true
	if c.trusts(c.around(e)) {
		return
	}
	if v := c.info.Types[e].Value; v != nil && v.Kind() != constant.Unknown {
		return
	}
	if isNumber(c.typeOf(e)) {
		return
	}
	switch e := e.(type) {
	case *ast.BasicLit:
	case *ast.Ident:
		c.variable(e, c.object(e))
	case *ast.SelectorExpr:
		c.variable(e, c.object(e.Sel))
	case *ast.BinaryExpr:
		c.text(e.X)
		c.text(e.Y)
	case *ast.SliceExpr:
		c.text(e.X)
	case *ast.IndexExpr:
		c.text(e.X)
	case *ast.CompositeLit:
		for _, element := range e.Elts {
			if kv, ok := element.(*ast.KeyValueExpr); ok {
				element = kv.Value
			}
			c.text(element)
		}
	case *ast.CallExpr:
		c.call(e)
	default:
		c.complain(e, "%s is not followed", describe(e))
	}
}

func (c *sqlCheck) variable(at ast.Expr, o types.Object) {
	v, ok := o.(*types.Var)
	switch {
	case ok && c.asked[v], o == types.Universe.Lookup("nil"):
		return
	case !ok:
		c.complain(at, "%s comes from elsewhere", describe(at))
		return
	}
	c.asked[v] = true
	if n := c.opaque[v]; n != nil {
		c.complain(at, "%s is the parameter of a closure, or its address is taken", v.Name())
		return
	}
	if fn := c.owner[v]; fn != nil {
		c.parameter(at, v, fn, c.text)
	}
	if holder := c.closure[v]; holder != nil {
		c.closureParameter(at, v, holder)
	}
	if x := c.ranged[v]; x != nil {
		c.text(x)
	}
	for _, w := range c.writes[v] {
		c.text(w)
	}
	if v.IsField() && len(c.writes[v]) == 0 {
		c.complain(at, "nothing here writes the field %s", v.Name())
	}
}

// around is the name of the function that the expression stands in.
func (c *sqlCheck) around(e ast.Expr) string {
	for _, body := range c.bodies {
		if body.Pos() <= e.Pos() && e.Pos() < body.End() {
			return c.nameOf(body)
		}
	}
	return ""
}

// closureParameter asks those who call the closure by its variable.
func (c *sqlCheck) closureParameter(at ast.Expr, v *types.Var, holder types.Object) {
	calls := c.calls[holder]
	if len(calls) != c.named[holder] || len(c.writes[holder]) != 1 {
		c.complain(at, "%s is a parameter of a closure that is not only called", v.Name())
		return
	}
	index := slices.IndexFunc(c.params[holder], func(id *ast.Ident) bool { return c.info.Defs[id] == v })
	for _, call := range calls {
		if index >= len(call.Args) {
			continue // a variadic one that got nothing
		}
		last := index
		if index == len(c.params[holder])-1 {
			last = len(call.Args) - 1
		}
		for _, a := range call.Args[index : last+1] {
			c.text(a)
		}
	}
}

// callers are the calls of a function, also those through an interface of this package with such a method.
func (c *sqlCheck) callers(fn *types.Func) []*ast.CallExpr {
	calls := slices.Clone(c.calls[fn])
	if fn.Type().(*types.Signature).Recv() == nil {
		return calls
	}
	for o, through := range c.calls {
		if m, ok := o.(*types.Func); ok && m.Name() == fn.Name() && c.bodies[m] == nil && types.Identical(m.Type(), fn.Type()) {
			calls = append(calls, through...)
		}
	}
	return calls
}

// parameter hands over what all callers pass.
func (c *sqlCheck) parameter(at ast.Expr, v *types.Var, fn *types.Func, each func(ast.Expr)) {
	if _, door := sqlDoors[funcName(fn)]; door {
		return // each of its calls is checked as a door
	}
	if c.trusts(funcName(fn)) {
		return
	}
	sig := fn.Type().(*types.Signature)
	index := -1
	for i := range sig.Params().Len() {
		if sig.Params().At(i) == v {
			index = i
		}
	}
	callers := c.callers(fn)
	if len(callers) == 0 {
		c.complain(at, "%s is a parameter of %s, which nobody here calls", v.Name(), funcName(fn))
	}
	for _, call := range callers {
		switch {
		case sig.Variadic() && index == sig.Params().Len()-1:
			for _, a := range call.Args[min(index, len(call.Args)):] {
				each(a)
			}
		case index < len(call.Args):
			each(call.Args[index])
		default:
			c.complain(call, "the arguments are not followed")
		}
	}
}

// pure are functions of the standard library that make a text of texts and numbers and of nothing else.
var pure = map[string]bool{
	"strings.Join": true, "strings.Repeat": true, "strings.ReplaceAll": true, "strings.Replace": true,
	"strings.TrimSuffix": true, "strings.TrimPrefix": true, "strings.TrimSpace": true, "strings.ToLower": true,
	"strings.ToUpper": true, "strings.Split": true, "strings.Fields": true, "fmt.Sprintf": true, "fmt.Sprint": true,
	"slices.Concat": true, "strconv.Itoa": true, "strconv.FormatInt": true,
}

func (c *sqlCheck) call(call *ast.CallExpr) {
	fun := ast.Unparen(call.Fun)
	if tv := c.info.Types[fun]; tv.IsType() { // a conversion
		c.text(call.Args[0])
		return
	}
	if id, ok := fun.(*ast.Ident); ok && (id.Name == "append" || id.Name == "make") && c.object(id).Pkg() == nil {
		if id.Name == "append" {
			for _, a := range call.Args {
				c.text(a)
			}
		}
		return
	}
	if fn := c.callee(call); fn != nil {
		c.returned(call, fn)
		return
	}
	sel, ok := fun.(*ast.SelectorExpr)
	if !ok {
		c.function(fun)
		return
	}
	x, isIdent := sel.X.(*ast.Ident)
	if isIdent && pure[x.Name+"."+sel.Sel.Name] {
		if _, local := c.object(x).(*types.Var); !local {
			if strings.HasPrefix(sel.Sel.Name, "Format") || sel.Sel.Name == "Itoa" {
				return // a number, whatever it is
			}
			for _, a := range call.Args {
				c.text(a)
			}
			return
		}
	}
	if isIdent && sel.Sel.Name == "String" && len(c.built[c.object(x)]) > 0 {
		for _, w := range c.built[c.object(x)] {
			for _, a := range w.Args {
				if u, ok := a.(*ast.UnaryExpr); ok && u.Op == token.AND {
					if c.callee(w) != nil {
						c.complain(w, "%s is handed to a function that may write anything", x.Name)
					}
					continue
				}
				c.text(a)
			}
		}
		return
	}
	c.complain(call, "%s is not followed", describe(call))
}

// function asks whatever functions the expression may stand for: closures, those of this package, and what is passed for a
// parameter.
func (c *sqlCheck) function(e ast.Expr) {
	e = ast.Unparen(e)
	if c.asked[e] {
		return
	}
	c.asked[e] = true
	var o types.Object
	switch e := e.(type) {
	case *ast.FuncLit:
		if sig, ok := c.typeOf(e).(*types.Signature); ok {
			c.results(e.Body, sig.Results())
			return
		}
	case *ast.Ident:
		o = c.object(e)
	case *ast.SelectorExpr:
		o = c.object(e.Sel)
	}
	switch o := o.(type) {
	case *types.Func:
		if o.Pkg() == c.pkg {
			c.returned(e, o.Origin())
			return
		}
	case *types.Var:
		fn := c.owner[o]
		if c.opaque[o] != nil || c.closure[o] != nil || o.IsField() || fn == nil && len(c.writes[o]) == 0 {
			break
		}
		if fn != nil {
			c.parameter(e, o, fn, c.function)
		}
		for _, w := range c.writes[o] {
			c.function(w)
		}
		return
	}
	c.complain(e, "what %s returns is not followed", describe(e))
}

// returned asks a function of this package for all that it returns.
func (c *sqlCheck) returned(at ast.Node, fn *types.Func) {
	if c.trusts(funcName(fn)) || c.asked[fn] {
		return
	}
	c.asked[fn] = true
	body := c.bodies[fn]
	if body == nil || body.Body == nil {
		c.complain(at, "%s has no body here", funcName(fn))
		return
	}
	results := fn.Type().(*types.Signature).Results()
	for v := range results.Variables() {
		if isText(v.Type()) && v.Name() != "" {
			c.variable(body.Name, v)
		}
	}
	c.results(body.Body, results)
}

// results asks for what a body returns.
func (c *sqlCheck) results(body *ast.BlockStmt, results *types.Tuple) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false // its returns are its own
		case *ast.ReturnStmt:
			for i, r := range n.Results {
				if len(n.Results) != results.Len() || isText(results.At(i).Type()) {
					c.text(r)
				}
			}
		}
		return true
	})
}

func isString(t types.Type) bool {
	b, ok := t.Underlying().(*types.Basic)
	return ok && b.Info()&types.IsString != 0
}

// isText says whether a value of the type could carry SQL. What is unknown could.
func isText(t types.Type) bool {
	switch u := t.Underlying().(type) {
	case *types.Basic:
		return u.Info()&types.IsString != 0 || u.Kind() == types.Invalid
	case *types.Slice:
		return isText(u.Elem())
	}
	return false
}

func isNumber(t types.Type) bool {
	b, ok := t.Underlying().(*types.Basic)
	return ok && b.Info()&(types.IsNumeric|types.IsBoolean) != 0
}

func describe(e ast.Expr) string { return types.ExprString(e) }
