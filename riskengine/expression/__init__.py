"""Expressions analysts write: text to a typed tree, with every mistake placed in the file.

A strict whitelist of Python's syntax is read with `ast` and never evaluated by Python; `program.py`
compiles the tree to arrays for one fixed kernel.
"""

from riskengine.expression.checker import (
    NODES_MAX,
    RESULT_TYPES,
    Expression,
    Scope,
    check,
    parse_and_check,
)
from riskengine.expression.syntax import CHARACTERS_MAX, DEPTH_MAX, Node, parse, rfc3339_ms
from riskengine.expression.term import Symbol, Term, Type

__all__ = [
    "CHARACTERS_MAX",
    "DEPTH_MAX",
    "NODES_MAX",
    "RESULT_TYPES",
    "Expression",
    "Node",
    "Scope",
    "Symbol",
    "Term",
    "Type",
    "check",
    "parse",
    "parse_and_check",
    "rfc3339_ms",
]
