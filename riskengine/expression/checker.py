"""Python's tree of an expression to a typed one: a whitelist, types and names, all mistakes at once."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import msgspec

from riskengine.errors import Finding, Place, nearest
from riskengine.expression.syntax import DEPTH_MAX, Node, parse, place_at, rfc3339_ms, too_deep
from riskengine.expression.term import (
    FALSE,
    THOUSAND,
    TRUE,
    Symbol,
    Term,
    Type,
    canonical,
    choose,
    made,
    milliseconds,
)

NODES_MAX: Final = 500

RESULT_TYPES: Final[tuple[Type, ...]] = ("number", "bool", "time", "duration")


class Scope(Protocol):
    """What an expression may name at the place where it stands."""

    def lookup(self, name: str, /) -> Symbol | None:
        """Return what `name` ('amount', 'campaigns.ends') stands for, or None if nothing."""

    def names(self) -> Iterable[str]:
        """Return the names that may be suggested in the place of an unknown one."""

    def listed(self, list: str, entity: str, /) -> Symbol | str:
        """Return the bool for `listed('list', entity)`, or the sentence that says why there is none."""


class Expression(msgspec.Struct, frozen=True):
    """A checked expression. `place` is where its text starts."""

    type: Type
    source: str
    place: Place
    term: Term
    names: frozenset[Symbol]

    def symbols(self) -> frozenset[Symbol]:
        """Return every symbol the expression names."""
        return self.names

    def constant(self) -> float | None:
        """Return the value if it is the same for every row (NaN if that is missing), else None."""
        value = self.term.value
        return value if self.term.op == "number" and isinstance(value, float) else None

    def canonical(self) -> str:
        """Return a text that is the same for every way of writing this tree: what fingerprints cover."""
        return canonical(self.term)


def check(node: Node, scope: Scope, expected: Sequence[Type] = RESULT_TYPES) -> Expression | list[Finding]:
    """Give every part of the tree a type; `expected` are the types the whole may have.

    Returns all findings if there is any. Findings have no `source_line`: who holds the file adds it.
    """
    checker = _Checker(node, scope)
    try:
        term = checker.term(node.tree)
    except _TooBig:
        term = None
    if term is not None and term.type not in expected:
        checker.wrong_result(term, expected)
    if checker.findings:
        return checker.findings
    assert term is not None, "a tree without a term must have a finding"
    return Expression(term.type, node.source, node.place, term, frozenset(checker.symbols))


def parse_and_check(
    source: str, place: Place, scope: Scope, expected: Sequence[Type] = RESULT_TYPES
) -> Expression | list[Finding]:
    """`parse`, then `check`."""
    node = parse(source, place)
    return check(node, scope, expected) if isinstance(node, Node) else node


_FOREIGN: Final[dict[type[ast.AST], tuple[str, str | None]]] = {
    ast.Attribute: ("a dot after anything but a table, a list or `model`", None),
    ast.Subscript: ("indexing with [...]", None),
    ast.List: ("a list outside of `in`", None),
    ast.Tuple: ("a tuple", "in a membership test write x in ['a', 'b']"),
    ast.Set: ("a set", "in a membership test write x in ['a', 'b']"),
    ast.Dict: ("a dictionary", None),
    ast.Lambda: ("a lambda", None),
    ast.NamedExpr: ("an assignment", "write `==` to compare"),
    ast.JoinedStr: ("an f-string", "write a plain string"),
    ast.Starred: ("a star", None),
    ast.ListComp: ("a comprehension", None),
    ast.SetComp: ("a comprehension", None),
    ast.DictComp: ("a comprehension", None),
    ast.GeneratorExp: ("a comprehension", None),
    ast.Pow: ("the operator `**`", "write x * x"),
    ast.FloorDiv: ("the operator `//`", "write `/`"),
    ast.BitAnd: ("the operator `&`", "write `and`"),
    ast.BitOr: ("the operator `|`", "write `or`"),
    ast.BitXor: ("the operator `^`", "write `!=`"),
    ast.Invert: ("the operator `~`", "write `not`"),
    ast.Is: ("the operator `is`", "write `==`, or missing(x)"),
    ast.IsNot: ("the operator `is not`", "write `!=`, or not missing(x)"),
    ast.MatMult: ("the operator `@`", None),
    ast.LShift: ("the operator `<<`", None),
    ast.RShift: ("the operator `>>`", None),
}

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[str, str]]] = {
    ast.Lt: ("lt", "<"),
    ast.LtE: ("le", "<="),
    ast.Gt: ("gt", ">"),
    ast.GtE: ("ge", ">="),
    ast.Eq: ("eq", "=="),
    ast.NotEq: ("ne", "!="),
}
_ARITHMETIC: Final[dict[type[ast.operator], tuple[str, str]]] = {
    ast.Add: ("add", "+"),
    ast.Sub: ("sub", "-"),
    ast.Mult: ("mul", "*"),
    ast.Div: ("div", "/"),
    ast.Mod: ("mod", "%"),
}
_ARITHMETIC_TYPES: Final[dict[tuple[str, Type, Type], Type]] = {
    ("add", "number", "number"): "number",
    ("add", "duration", "duration"): "duration",
    ("add", "time", "duration"): "time",
    ("add", "duration", "time"): "time",
    ("sub", "number", "number"): "number",
    ("sub", "duration", "duration"): "duration",
    ("sub", "time", "time"): "duration",
    ("sub", "time", "duration"): "time",
    ("mul", "number", "number"): "number",
    ("mul", "duration", "number"): "duration",
    ("mul", "number", "duration"): "duration",
    ("div", "number", "number"): "number",
    ("div", "duration", "number"): "duration",
    ("div", "duration", "duration"): "number",
    ("mod", "number", "number"): "number",
}
_ORDERED: Final[frozenset[Type]] = frozenset(("number", "time", "duration"))
_SECONDS: Final = {"days": 86_400.0, "hours": 3_600.0, "minutes": 60.0}
_WORDS: Final = {"true": TRUE, "false": FALSE}


class _TooBig(Exception):  # noqa: N818  # control flow: a finding already tells of it
    pass


class _Checker:
    """One walk over Python's tree. A method that returns None has left a finding."""

    __slots__ = ("depth", "findings", "node", "nodes", "scope", "symbols")

    def __init__(self, node: Node, scope: Scope) -> None:
        self.node = node
        self.scope = scope
        self.findings: list[Finding] = []
        self.symbols: set[Symbol] = set()
        self.nodes = 0
        self.depth = 0

    def term(self, node: ast.expr) -> Term | None:
        self.nodes += 1
        if self.nodes > NODES_MAX:
            self.too_big()
        if isinstance(node, ast.Name):
            return self.name(node)
        if isinstance(node, ast.Constant):
            return self.constant(node)
        self.depth += 1
        if self.depth > DEPTH_MAX:
            self.findings.append(too_deep(self.place(node), DEPTH_MAX))
            raise _TooBig
        visit = _VISITS.get(node.__class__)
        term = visit(self, node) if visit is not None else self.foreign(node, node)
        self.depth -= 1
        return term

    # Leaves

    def constant(self, node: ast.Constant) -> Term | None:
        value = node.value
        if isinstance(value, float) and value - value == 0.0:
            return Term("number", "number", (), value)
        if isinstance(value, bool):
            return TRUE if value else FALSE
        if isinstance(value, int | float):
            return self.number(node, value)
        if isinstance(value, str):  # composed, as the values of events are
            return Term("text", "string", (), unicodedata.normalize("NFC", value))
        if value is None:
            return self.error(node, "not-allowed", "None is not a value here", mend="write missing(x)")
        return self.error(node, "not-allowed", f"{self.text(node)} is not a value of an expression")

    def number(self, node: ast.expr, value: float) -> Term | None:
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        if number - number != 0.0:
            return self.error(node, "not-allowed", f"{self.text(node)} is too big for a number")
        return Term("number", "number", (), number)

    def name(self, node: ast.Name) -> Term | None:
        name = node.id
        return _WORDS.get(name) or self.symbol(node, name)

    def attribute(self, node: ast.Attribute) -> Term | None:
        name = _dotted(node)
        return self.foreign(node, node) if name is None else self.symbol(node, name)

    def symbol(self, node: ast.expr, name: str) -> Term | None:
        symbol = self.scope.lookup(name)
        if symbol is None:
            return self.unknown(node, name)
        self.symbols.add(symbol)
        if symbol.type == "location":
            latitude = Term("symbol", "number", (), Symbol(name + ".lat", "number"))
            longitude = Term("symbol", "number", (), Symbol(name + ".lon", "number"))
            return Term("pair", "location", (latitude, longitude))
        return Term("symbol", symbol.type, (), symbol)

    def unknown(self, node: ast.expr, name: str) -> Term | None:
        if name in _FUNCTIONS:
            expected = _FUNCTIONS[name][1]
            return self.error(node, "unknown-name", f"{name} is a function", name, mend=f"write {expected}")
        near = nearest(name, self.scope.names())
        if near is None and name in ("null", "None", "nil", "NaN", "nan"):
            return self.error(node, "unknown-name", f"{name} is not a value", name, mend="write missing(x)")
        return self.error(
            node,
            "unknown-name",
            f"nothing here is named {name}",
            name,
            "a field, a feature, or a table's column",
            f"did you mean {near}?" if near else None,
        )

    # Operators

    def bool_op(self, node: ast.BoolOp) -> Term | None:
        word = "and" if node.op.__class__ is ast.And else "or"
        args = [self.condition(value, f"`{word}`") for value in node.values]
        known = tuple(arg for arg in args if arg is not None)
        return made(word, "bool", known) if len(known) == len(args) else None

    def condition(self, node: ast.expr, asker: str) -> Term | None:
        term = self.term(node)
        if term is None or term.type == "bool":
            return term
        mend = "compare it, as in x > 0" if term.type in _ORDERED else None
        return self.error(
            node,
            "type",
            f"{asker} needs a bool, and {self.text(node)} is a {term.type}",
            term.type,
            "bool",
            mend,
        )

    def unary_op(self, node: ast.UnaryOp) -> Term | None:
        kind = node.op.__class__
        if kind is ast.Not:
            arg = self.condition(node.operand, "`not`")
            return None if arg is None else made("not", "bool", (arg,))
        if kind is ast.Invert:
            return self.foreign(node.op, node)
        term = self.term(node.operand)
        if term is None:
            return None
        if term.type not in ("number", "duration"):
            sign = "-" if kind is ast.USub else "+"
            return self.error(
                node,
                "type",
                f"'{sign}' needs a number or a duration, and {self.text(node.operand)} is a {term.type}",
                term.type,
                "number or duration",
            )
        if kind is ast.UAdd:
            return term
        if term.op == "number":
            assert isinstance(term.value, float)
            return Term("number", term.type, (), -term.value)
        return made("neg", term.type, (term,))

    def bin_op(self, node: ast.BinOp) -> Term | None:
        named = _ARITHMETIC.get(node.op.__class__)
        left, right = self.term(node.left), self.term(node.right)
        if named is None:
            return self.foreign(node.op, node)
        left, right = self.as_times([left, right], [node.left, node.right])
        if left is None or right is None:
            return None
        op, sign = named
        type = _ARITHMETIC_TYPES.get((op, left.type, right.type))
        if type is None:
            return self.mismatch(node, node.left, sign, node.right, left, right)
        if left.type == "time" and right.type == "time":
            return made("div", type, (made(op, type, (left, right)), THOUSAND))
        if left.type == "time":
            return made(op, type, (left, milliseconds(right)))
        if right.type == "time":
            return made(op, type, (right, milliseconds(left)))
        return made(op, type, (left, right))

    def compare(self, node: ast.Compare) -> Term | None:
        left_node, left = node.left, self.term(node.left)
        if len(node.ops) == 1 and (named := _COMPARISONS.get(node.ops[0].__class__)) is not None:
            right_node = node.comparators[0]
            return self.comparison(node, named, left_node, left, right_node, self.term(right_node))
        terms: list[Term | None] = []
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            kind = op.__class__
            if kind is ast.In or kind is ast.NotIn:
                terms.append(self.membership(left_node, left, kind is ast.NotIn, right_node))
                right = None
                if right_node is not node.comparators[-1]:
                    terms.append(self.foreign(right_node, right_node))
            else:
                right = self.term(right_node)
                named = _COMPARISONS.get(kind)
                if named is None:
                    terms.append(self.foreign(op, node))
                else:
                    terms.append(self.comparison(node, named, left_node, left, right_node, right))
            left_node, left = right_node, right
        known = tuple(term for term in terms if term is not None)
        if len(known) < len(terms):
            return None
        return known[0] if len(known) == 1 else made("and", "bool", known)

    def comparison(
        self,
        node: ast.expr,
        named: tuple[str, str],
        left_node: ast.expr,
        left: Term | None,
        right_node: ast.expr,
        right: Term | None,
    ) -> Term | None:
        if left is None or right is None:
            return None
        op, sign = named
        if left.type != right.type:
            left, right = self.as_times([left, right], [left_node, right_node])
            if left is None or right is None:
                return None
            if left.type != right.type:
                return self.mismatch(node, left_node, sign, right_node, left, right)
        type = left.type
        if type in _ORDERED or (type == "bool" and op in ("eq", "ne")):
            return made(op, "bool", (left, right))
        if type == "string" and op in ("eq", "ne"):
            return self.text_equal(op == "ne", left, right)
        mend = "write distance_km(a, b) < 0.1" if type == "location" else None
        return self.error(
            node,
            "type",
            f"'{sign}' does not compare a {type} with a {type}",
            f"{type} {sign} {type}",
            "numbers, times or durations" if type == "bool" or op not in ("eq", "ne") else "no locations",
            mend,
        )

    def membership(
        self, left_node: ast.expr, left: Term | None, negated: bool, list_node: ast.expr
    ) -> Term | None:
        if not isinstance(list_node, ast.List):
            if isinstance(list_node, ast.Name | ast.Attribute) and left is not None:
                name = self.text(list_node)
                mend = f"for a list of the policy write listed('{name}', entity)"
                return self.error(list_node, "not-allowed", "`in` needs a list in brackets", name, mend=mend)
            return self.foreign(list_node, list_node)
        terms = [self.term(item) for item in list_node.elts]
        if left is None:
            return None
        if not terms:
            return self.error(list_node, "not-allowed", "this list is empty, so `in` never holds")
        if left.type == "time":
            terms = self.as_times([left, *terms], [left_node, *list_node.elts])[1:]
        good = True
        for item, term in zip(list_node.elts, terms, strict=True):
            if term is None:
                good = False
            elif _literal(term) is None:
                good = False
                self.error(
                    item, "not-allowed", "a list holds literals only", self.text(item), "a number or a string"
                )
            elif term.type != left.type or term.type == "bool":
                good = False
                self.mismatch(item, left_node, "in", item, left, term)
        if not good:
            return None
        values = [_literal(term) for term in terms if term is not None]
        if left.type == "string":
            return self.text_in(
                negated, left, tuple(sorted({value for value in values if isinstance(value, str)}))
            )
        numbers = tuple(sorted({value for value in values if isinstance(value, float)}))
        return made("not_one_of" if negated else "one_of", "bool", (left,), numbers)

    def if_exp(self, node: ast.IfExp) -> Term | None:
        test = self.condition(node.test, "`if`")
        then, other = self.as_times([self.term(node.body), self.term(node.orelse)], [node.body, node.orelse])
        if test is None or then is None or other is None:
            return None
        if then.type != other.type:
            return self.mismatch(node, node.body, "if ... else", node.orelse, then, other)
        return choose(test, then, other)

    # Texts. A conditional text is not a column: what is asked of it is asked of each of its branches.

    def text_equal(self, negated: bool, left: Term, right: Term) -> Term:
        self.count()
        if left.op in ("if", "default"):
            return self.branches(left, lambda branch: self.text_equal(negated, branch, right))
        if right.op in ("if", "default"):
            return self.branches(right, lambda branch: self.text_equal(negated, left, branch))
        if left.op == "text" and right.op == "text":
            return TRUE if (left.value == right.value) != negated else FALSE
        if left.op == "text":
            left, right = right, left
        if right.op == "text":
            assert isinstance(right.value, str)
            return Term("text_not_in" if negated else "text_in", "bool", (left,), (right.value,))
        return Term("text_ne" if negated else "text_eq", "bool", (left, right))

    def text_in(self, negated: bool, text: Term, values: tuple[str, ...]) -> Term:
        self.count()
        if text.op in ("if", "default"):
            return self.branches(text, lambda branch: self.text_in(negated, branch, values))
        if text.op == "text":
            return TRUE if (text.value in values) != negated else FALSE
        return Term("text_not_in" if negated else "text_in", "bool", (text,), values)

    def text_missing(self, text: Term) -> Term:
        self.count()
        if text.op in ("if", "default"):
            return self.branches(text, self.text_missing)
        return FALSE if text.op == "text" else Term("text_missing", "bool", (text,))

    def text_matches(self, node: ast.expr, text: Term, glob: str) -> Term | None:
        self.count()
        if text.op in ("if", "default"):
            tested = [self.text_matches(node, branch, glob) for branch in text.args[-2:]]
            first, second = tested
            if first is None or second is None:
                return None
            return choose(self.chosen(text), first, second)
        if text.op == "text":
            text_value = text.value
            assert isinstance(text_value, str)
            return TRUE if _glob_regex(glob).fullmatch(text_value) else FALSE
        assert isinstance(text.value, Symbol)
        if text.value.kind == "hash":
            return self.error(
                node,
                "type",
                f"{text.value.name} is kept as a hash, so no pattern can be held against it",
                mend="compare it with == or in",
            )
        return Term("matches", "bool", (text,), glob)

    def branches(self, text: Term, ask: Callable[[Term], Term]) -> Term:
        return choose(self.chosen(text), ask(text.args[-2]), ask(text.args[-1]))

    def chosen(self, text: Term) -> Term:
        """Return the condition under which the first of a conditional text's two branches holds."""
        if text.op == "if":
            return text.args[0]
        return made("not", "bool", (self.text_missing(text.args[0]),))

    # Functions

    def call(self, node: ast.Call) -> Term | None:
        name = _dotted(node.func)
        known = _FUNCTIONS.get(name) if name is not None else None
        if known is None or name is None:
            near = nearest(name, _FUNCTIONS) if name is not None else None
            return self.error(
                node.func,
                "unknown-name",
                f"there is no function {self.text(node.func)}",
                self.text(node.func),
                "one of " + ", ".join(sorted(_FUNCTIONS)),
                f"did you mean {near}?" if near else None,
            )
        visit, usage, least, most = known
        if node.keywords or not least <= len(node.args) <= most:
            count = len(node.args) + len(node.keywords)
            return self.error(
                node,
                "arguments",
                f"{name} is called as {usage}",
                f"{count} argument{'' if count == 1 else 's'}{' with names' if node.keywords else ''}",
                usage,
            )
        return visit(self, node, name)

    def call_listed(self, node: ast.Call, name: str) -> Term | None:
        list_node, entity_node = node.args
        self.nodes += 2
        list_name = list_node.value if isinstance(list_node, ast.Constant) else None
        entity = _dotted(entity_node)
        if not isinstance(list_name, str):
            mend = f"write '{self.text(list_node)}'" if isinstance(list_node, ast.Name) else None
            return self.error(
                list_node,
                "type",
                "listed needs the list's name as a string",
                self.text(list_node),
                "string literal",
                mend,
            )
        if entity is None:
            return self.error(
                entity_node,
                "type",
                "listed needs an entity's name",
                self.text(entity_node),
                "entity, without quotes",
            )
        found = self.scope.listed(list_name, entity)
        if isinstance(found, Symbol):
            self.symbols.add(found)
            return Term("symbol", "bool", (), found)
        return self.error(node, "unknown-name", found, self.text(node))

    def call_missing(self, node: ast.Call, name: str) -> Term | None:
        term = self.term(node.args[0])
        return None if term is None else self.missing(term)

    def missing(self, term: Term) -> Term:
        if term.type == "string":
            return self.text_missing(term)
        return made("missing", "bool", (term.args[0] if term.type == "location" else term,))

    def call_default(self, node: ast.Call, name: str) -> Term | None:
        term, other = self.as_times([self.term(arg) for arg in node.args], node.args)
        if term is None or other is None:
            return None
        if term.type != other.type:
            return self.mismatch(node, node.args[0], "default", node.args[1], term, other)
        if term.type == "location":
            return choose(made("not", "bool", (self.missing(term),)), term, other)
        return made("default", term.type, (term, other))

    def call_abs(self, node: ast.Call, name: str) -> Term | None:
        term = self.argument(node, name, 0, ("number", "duration"))
        return None if term is None else made("abs", term.type, (term,))

    def call_log(self, node: ast.Call, name: str) -> Term | None:
        term = self.argument(node, name, 0, ("number",))
        return None if term is None else made("log", "number", (term,))

    def call_extreme(self, node: ast.Call, name: str) -> Term | None:
        terms = self.as_times([self.term(arg) for arg in node.args], node.args)
        first = terms[0]
        for arg, term in zip(node.args, terms, strict=True):
            if term is not None and term.type not in _ORDERED:
                self.wrong_argument(arg, name, term, ("number", "time", "duration"))
                first = None
            elif term is None or first is None:
                first = None
            elif term.type != first.type:
                return self.mismatch(node, node.args[0], name, arg, first, term)
        result = first
        for term in terms[1:]:
            if result is not None and term is not None:
                result = made(name, result.type, (result, term))
        return result

    def call_clock(self, node: ast.Call, name: str) -> Term | None:
        term = self.argument(node, name, 0, ("time",))
        return None if term is None else made(name, "number", (term,))

    def call_duration(self, node: ast.Call, name: str) -> Term | None:
        term = self.argument(node, name, 0, ("number",))
        if term is None:
            return None
        if isinstance(term.value, float):
            return Term("number", "duration", (), term.value * _SECONDS[name])
        return made("mul", "duration", (term, Term("number", "number", (), _SECONDS[name])))

    def call_distance(self, node: ast.Call, name: str) -> Term | None:
        here = self.argument(node, name, 0, ("location",))
        there = self.argument(node, name, 1, ("location",))
        return None if here is None or there is None else made("distance", "number", here.args + there.args)

    def call_matches(self, node: ast.Call, name: str) -> Term | None:
        text, glob = self.argument(node, name, 0, ("string",)), self.argument(node, name, 1, ("string",))
        if text is None or glob is None:
            return None
        if glob.op != "text":
            return self.error(
                node.args[1],
                "type",
                "matches needs a pattern in quotes",
                self.text(node.args[1]),
                "string literal with * and ?",
            )
        assert isinstance(glob.value, str)
        return self.text_matches(node, text, glob.value)

    def argument(self, node: ast.Call, name: str, index: int, types: tuple[Type, ...]) -> Term | None:
        arg = node.args[index]
        term = self.term(arg)
        if term is not None and types == ("time",):
            term = self.as_time(term, arg)
        if term is None or term.type in types:
            return term
        return self.wrong_argument(arg, name, term, types)

    # Literals that become times beside a time

    def as_times(self, terms: list[Term | None], nodes: Sequence[ast.expr]) -> list[Term | None]:
        if not any(term is not None and term.type == "time" for term in terms):
            return terms
        return [
            None if term is None else self.as_time(term, node)
            for term, node in zip(terms, nodes, strict=True)
        ]

    def as_time(self, term: Term, node: ast.expr) -> Term | None:
        if term.op != "text":
            return term
        assert isinstance(term.value, str)
        ms = rfc3339_ms(term.value)
        if ms is None:
            return self.error(
                node,
                "literal",
                f"{self.text(node)} is not a time",
                self.text(node),
                "RFC 3339 with an offset",
                "write '2026-11-11T00:00:00+08:00'",
            )
        return Term("number", "time", (), float(ms))

    # Findings

    def count(self) -> None:
        self.nodes += 1
        if self.nodes > NODES_MAX:
            self.too_big()

    def too_big(self) -> None:
        self.findings.append(
            Finding(
                code="too-big",
                place=self.node.place,
                message=f"this expression has more than {NODES_MAX} parts",
                expected=f"at most {NODES_MAX} names, values and operators",
                mend="split it into several rules, or name a part of it as a `value` feature",
            )
        )
        raise _TooBig

    def foreign(self, what: ast.AST, node: ast.expr) -> Term | None:
        name, mend = _FOREIGN.get(what.__class__, (f"this ({what.__class__.__name__})", None))
        return self.error(
            node, "not-allowed", f"{name} is not part of expressions", self.text(node), mend=mend
        )

    def mismatch(
        self, node: ast.expr, left_node: ast.expr, sign: str, right_node: ast.expr, left: Term, right: Term
    ) -> Term | None:
        mend = _mismatch_mend(left, right, self.text(left_node), self.text(right_node))
        return self.error(
            node,
            "type",
            f"{self.text(left_node)} is a {left.type} and {self.text(right_node)} is a {right.type}: "
            f"`{sign}` does not take the two together",
            f"{left.type} and {right.type}",
            mend=mend,
        )

    def wrong_argument(self, node: ast.expr, name: str, term: Term, types: tuple[Type, ...]) -> Term | None:
        expected = " or ".join(types)
        return self.error(
            node,
            "type",
            f"{name} needs a {expected}, and {self.text(node)} is a {term.type}",
            term.type,
            expected,
        )

    def wrong_result(self, term: Term, expected: Sequence[Type]) -> None:
        wanted = " or ".join(expected)
        mend = None
        if tuple(expected) == ("bool",):
            mend = "compare it, as in x > 0" if term.type in _ORDERED else "compare it, as in x == 'a'"
        self.error(
            self.node.tree, "type", f"this is a {term.type}, where a {wanted} stands", term.type, wanted, mend
        )

    def error(
        self,
        node: ast.expr,
        code: str,
        message: str,
        found: str | None = None,
        expected: str | None = None,
        mend: str | None = None,
    ) -> Term | None:
        self.findings.append(
            Finding(
                code=code,
                place=self.place(node),
                message=message,
                found=found,
                expected=expected,
                mend=mend,
                length=max(1, self.span(node)[1] - self.span(node)[0]),
            )
        )
        return None

    def place(self, node: ast.expr) -> Place:
        return place_at(self.node.source, self.node.place, self.node.shift + self.span(node)[0])

    def span(self, node: ast.expr) -> tuple[int, int]:
        """Return first and past-last character of `node` in the stripped source."""
        data = self.node.source.strip().encode()
        end = node.end_col_offset if node.end_col_offset is not None else len(data)
        return len(data[: node.col_offset].decode()), len(data[:end].decode())

    def text(self, node: ast.expr) -> str:
        first, last = self.span(node)
        text = " ".join(self.node.source.strip()[first:last].split())
        return text if len(text) <= 60 else text[:57] + "..."


# Visitors take the one class of node they are listed for, which a dict's type cannot say.
_VISITS: Final[dict[type[ast.expr], Callable[..., Term | None]]] = {
    ast.Attribute: _Checker.attribute,
    ast.BoolOp: _Checker.bool_op,
    ast.UnaryOp: _Checker.unary_op,
    ast.BinOp: _Checker.bin_op,
    ast.Compare: _Checker.compare,
    ast.IfExp: _Checker.if_exp,
    ast.Call: _Checker.call,
}

# name: visitor, how it is called, fewest and most arguments
_FUNCTIONS: Final[dict[str, tuple[Callable[[_Checker, ast.Call, str], Term | None], str, int, int]]] = {
    "abs": (_Checker.call_abs, "abs(x)", 1, 1),
    "days": (_Checker.call_duration, "days(7)", 1, 1),
    "default": (_Checker.call_default, "default(x, 0)", 2, 2),
    "distance_km": (_Checker.call_distance, "distance_km(location, other_location)", 2, 2),
    "hour": (_Checker.call_clock, "hour(time)", 1, 1),
    "hours": (_Checker.call_duration, "hours(1)", 1, 1),
    "listed": (_Checker.call_listed, "listed('blocked', device)", 2, 2),
    "log": (_Checker.call_log, "log(x)", 1, 1),
    "matches": (_Checker.call_matches, "matches(text, 'A*')", 2, 2),
    "max": (_Checker.call_extreme, "max(a, b)", 2, NODES_MAX),
    "min": (_Checker.call_extreme, "min(a, b)", 2, NODES_MAX),
    "minutes": (_Checker.call_duration, "minutes(30)", 1, 1),
    "missing": (_Checker.call_missing, "missing(x)", 1, 1),
    "weekday": (_Checker.call_clock, "weekday(time)", 1, 1),
}


def _literal(term: Term) -> float | str | None:
    value = term.value
    return value if term.op in ("number", "text") and isinstance(value, float | str) else None


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value)
        return None if head is None else f"{head}.{node.attr}"
    return None


def _glob_regex(glob: str) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(c) or re.escape(c) for c in glob), re.DOTALL)


def _mismatch_mend(left: Term, right: Term, left_text: str, right_text: str) -> str | None:
    types = {left.type, right.type}
    number, number_text = (left, left_text) if left.type == "number" else (right, right_text)
    if types == {"duration", "number"} and number.op == "number":
        return f"write days({number_text}), hours({number_text}) or minutes({number_text})"
    if types == {"bool", "number"} and number.op == "number":
        return "a bool is not a number: write x or not x"
    if types == {"time", "number"}:
        return "add a duration such as hours(1), or compare with a time such as '2026-11-11T00:00:00+08:00'"
    if types == {"string", "number"} and number.op == "number":
        return f"write '{number_text}' for a string"
    if types == {"string", "number"}:
        text, quoted = (left, left_text) if left.type == "string" else (right, right_text)
        return f"write {quoted[1:-1]} for a number" if text.op == "text" else None
    return None
