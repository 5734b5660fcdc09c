"""YAML that remembers line and column, so that every error can point at what it speaks of.

A file becomes PyYAML's node tree (libyaml's composer: 24 ms for 1,000 rules, where a ruamel round trip
takes 710 ms), read through `Source`. Scalars follow YAML 1.2: `no`, `on` and `off` are strings. Keys are
always text; a key given twice is an error; anchors and `<<` merges are allowed, recursion is not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from riskengine.errors import Finding, Place, Severity, nearest

__all__ = ["Item", "MappingNode", "Node", "ScalarNode", "SequenceNode", "Source", "read_source"]

FILE_BYTES_MAX = 4 * 1024 * 1024  # a thousand rules are a quarter of one
DEPTH_MAX = 50  # libyaml's composer recurses in C: 200,000 open brackets would end the process
TOO_DEEP = f"it is nested more than {DEPTH_MAX} deep"
LIBYAML_TOO_DEEP = "exceeded maximum nesting depth"  # its scanner's own bound, 1,000, looks ahead of ours

Scalar = str | int | float | bool | None
Item = tuple[ScalarNode, Node]  # a key and its value

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: Mapping[str, Scalar] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".inf": float("inf"), ".Inf": float("inf"), ".INF": float("inf"), "+.inf": float("inf"),
    "-.inf": float("-inf"), "-.Inf": float("-inf"), "-.INF": float("-inf"),
    ".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan"),
}  # fmt: skip
_ESCAPES = {"x": 4, "u": 6, "U": 10}  # characters of an escape in double quotes; else 2
_ANCHOR = re.compile(r"&[^\s,\[\]{}]")
_MERGE = "<<"


def read_source(path: Path, file: str) -> Source:
    """The file at `path`, shown to people as `file`. What is wrong with it is in its `findings`."""
    source = Source(file, "")
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            source.error_at(
                1,
                1,
                "too-large",
                f"the file has {size:,} bytes",
                expected=f"at most {FILE_BYTES_MAX:,}",
                mend="split it: every *.yaml file of the folder is read",
            )
            return source
        data = path.read_bytes()
    except OSError as error:
        source.error_at(1, 1, "unreadable", f"the file cannot be read: {error.strerror or error}")
        return source
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        source.error_at(line, 1, "encoding", "the file is not UTF-8", mend="save it as UTF-8")
        return source
    return Source(file, text)


class Source:
    """One parsed file, and the findings made about it."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.findings: list[Finding] = []
        self.root: Node | None = self._compose()

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the file, without their ends (line 1 is at 0)."""
        return re.split(r"\r\n|[\n\r\x85\u2028\u2029]", self.text)

    def place(self, node: Node) -> Place:
        """Where a node begins."""
        mark = node.start_mark
        return Place(self.file, mark.line + 1, mark.column + 1)

    def text_place(self, node: ScalarNode) -> Place:
        """Where the text of a scalar begins: behind the quote, below the `|`."""
        line, column = node.start_mark.line, node.start_mark.column
        if node.style in ("'", '"'):
            column += 1
        elif node.style in ("|", ">"):
            line += 1
            column = len(self._line(line)) - len(self._line(line).lstrip())
        return Place(self.file, line + 1, column + 1)

    def error(
        self,
        node: Node,
        code: str,
        message: str,
        *,
        found: str | None = None,
        expected: str | None = None,
        mend: str | None = None,
        severity: Severity = "error",
    ) -> None:
        """Add a finding about a node."""
        start, end = node.start_mark, node.end_mark
        line = self._line(start.line)
        stop = end.column if end.line == start.line else len(line.rstrip())
        self.error_at(
            start.line + 1,
            start.column + 1,
            code,
            message,
            found=found,
            expected=expected,
            mend=mend,
            severity=severity,
            length=max(1, stop - start.column),
        )

    def error_at(
        self,
        line: int,
        column: int,
        code: str,
        message: str,
        *,
        found: str | None = None,
        expected: str | None = None,
        mend: str | None = None,
        severity: Severity = "error",
        length: int = 1,
    ) -> None:
        """Add a finding about a line and column (both from 1)."""
        self.findings.append(
            Finding(
                severity=severity,
                code=code,
                place=Place(self.file, line, column),
                message=message,
                found=found,
                expected=expected,
                mend=mend,
                source_line=self._line(line - 1) if self.text else None,
                length=length,
            )
        )

    def adopt(self, node: ScalarNode, findings: Iterable[Finding]) -> None:
        """Take over findings about the text of a scalar, placed as if that stood plainly at `text_place`.

        Escapes, folding and indentation move what follows them: so the places are moved too.
        """
        start = self.text_place(node)
        for finding in findings:
            offset = finding.place.column - start.column
            if finding.place.line != start.line:  # placed by line of the text
                lines = node.value.split("\n")[: finding.place.line - start.line]
                offset = sum(len(line) + 1 for line in lines) + finding.place.column - 1
            line, column = self._locate(node, offset)
            self.error_at(
                line,
                column,
                finding.code,
                finding.message,
                found=finding.found,
                expected=finding.expected,
                mend=finding.mend,
                severity=finding.severity,
                length=finding.length,
            )

    def items(self, node: Node, what: str, known: Collection[str] | None = None) -> dict[str, Item]:
        """The keys of a mapping with their values; of something else, an error and nothing.

        `what` names the mapping to people ('a rule'). Keys given twice are errors; so are keys that are
        not among `known`, where that is given.
        """
        if type(node) is not MappingNode:
            if not self.is_null(node):
                self.error(node, "wrong-type", f"{what} is a map", found=describe(node), expected="a map")
            return {}
        if node.tag:
            self._refuse_tag(node)
        found: dict[str, Item] = {}
        merged: list[Node] = []
        for item in node.value:
            key = item[0]
            if type(key) is not ScalarNode:
                self.error(key, "wrong-key", "a key is a piece of text", found=describe(key))
                continue
            name = key.value
            if name not in found and (name in known if known is not None else name != _MERGE):
                found[name] = item  # nearly always
            elif name in found:
                first = self.place(found[name][0])
                self.error(
                    key,
                    "duplicate-key",
                    f"the key {name!r} is given twice",
                    found=f"first at line {first.line}, column {first.column}",
                    mend="remove or rename one of them",
                )
            elif name == _MERGE and not key.style:
                merged.append(item[1])
            elif known is not None and name not in known:
                self.unknown(key, f"{what} has no key {name!r}", known)
            else:
                found[name] = item
        for value in merged:
            self._merge(found, value, what, known)
        return found

    def sequence(self, node: Node, what: str) -> list[Node]:
        """The members of a list; of something else, an error and nothing."""
        if type(node) is SequenceNode:
            if node.tag:
                self._refuse_tag(node)
            return list(node.value)
        mend = f"write [{node.value}]" if type(node) is ScalarNode and node.value else None
        self.error(
            node, "wrong-type", f"{what} is a list", found=describe(node), expected="a list", mend=mend
        )
        return []

    def scalar(self, node: Node) -> Scalar:
        """The YAML 1.2 value of a scalar node."""
        if node.tag:
            self._refuse_tag(node)
        return _resolve(node)

    def is_null(self, node: Node) -> bool:
        """Whether nothing is written where a value may stand."""
        return type(node) is ScalarNode and not node.style and _CONSTANTS.get(node.value, "") is None

    def text_of(self, node: Node, what: str, *, literal: bool = False) -> str | None:
        """The text of a non-empty scalar; else an error and None.

        With `literal` numbers and booleans are taken as written (an expression `true`, a path `2026`).
        """
        if type(node) is ScalarNode:
            if node.tag:
                self._refuse_tag(node)
            value = node.value
            if value and (literal or node.style or type(_resolve(node)) is str):
                return str(value)
        self.error(node, "wrong-type", f"{what} is a text", found=describe(node), expected="a text")
        return None

    def unknown(self, node: Node, message: str, known: Iterable[str], *, expected: str | None = None) -> None:
        """Add the error for a name that is not known, with the nearest one as its mend."""
        names = sorted(known)
        name = node.value if type(node) is ScalarNode else ""
        close = nearest(name, names)
        if expected is None and names:
            expected = ", ".join(names) if len(names) <= 20 else ", ".join(names[:20]) + ", ..."
        self.error(
            node,
            "unknown-name",
            message,
            found=repr(name) if name else None,
            expected=expected or "nothing: there are none",
            mend=f"did you mean {close!r}?" if close else None,
        )

    def _merge(self, found: dict[str, Item], node: Node, what: str, known: Collection[str] | None) -> None:
        for value in node.value if type(node) is SequenceNode else (node,):
            for name, item in self.items(value, what, known).items():
                found.setdefault(name, item)

    def _refuse_tag(self, node: Node) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self.error(node, "tag", f"the tag {tag} is not part of the format", mend="remove it")
        node.tag = ""  # said once

    def _line(self, index: int) -> str:
        return self.lines[index] if index < len(self.lines) else ""

    def _locate(self, node: ScalarNode, offset: int) -> tuple[int, int]:
        """Line and column (from 1) of a character of a scalar's text: by searching, since escapes and
        folding put it anywhere between the scalar's marks."""
        start, end = node.start_mark, node.end_mark
        line, column = start.line, start.column
        if node.style in ("'", '"'):
            column += 1
        elif node.style in ("|", ">"):
            line, column = line + 1, 0
        raw = self._line(line)
        width = 1
        for character in node.value[: max(offset, 0) + 1]:
            if node.style == '"' and raw[column : column + 1] == "\\" and column + 1 < len(raw):
                width = _ESCAPES.get(raw[column + 1], 2)
                column += width
                continue
            width = 1
            # Walk forward to the next same character; white space may have been folded.
            if not character.isspace():
                while raw[column : column + 1] != character:
                    column += 1
                    if column >= len(raw):
                        line, column = line + 1, 0
                        if line > end.line:
                            return start.line + 1, start.column + 1
                        raw = self._line(line)
                column += 1
        return line + 1, max(column - width + 1, 1) if offset < len(node.value) else column + 1

    def _compose(self) -> Node | None:
        try:
            root: Node | None = _Composer(self.text).get_single_node()
        except yaml.MarkedYAMLError as error:
            self._syntax(error)
            return None
        except (yaml.YAMLError, ValueError) as error:
            self.error_at(1, 1, "syntax", f"the file is not YAML: {str(error).splitlines()[0]}")
            return None
        if root is not None and _ANCHOR.search(self.text):
            recursive = _recursion(root)
            if recursive is not None:
                self.error(recursive, "recursion", "an anchor may not contain itself")
                return None
        return root

    def _syntax(self, error: yaml.MarkedYAMLError) -> None:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        problem = error.problem or error.context or "it cannot be read"
        if problem == LIBYAML_TOO_DEEP:
            problem = TOO_DEEP
        mend = None
        # libyaml may give up on a later line than the one with the tab.
        for number in range(line, max(line - 3, -1), -1):
            indent = re.match(r"[ \t]*", self._line(number))
            if indent and "\t" in indent.group():
                self.error_at(
                    number + 1,
                    indent.group().index("\t") + 1,
                    "tab",
                    "a tab indents this line",
                    expected="spaces",
                    mend="replace each tab by two spaces",
                )
                return
        if "document" in problem:
            mend = "keep one document a file: remove the line '---' or split the file"
        elif "mapping values are not allowed" in problem:
            mend = "put the text in quotes if it contains ': '"
        elif "alias" in problem or "cannot start any token" in problem:
            mend = "put the text in quotes"
        self.error_at(
            line + 1, column + 1, "syntax", f"this is not YAML: {problem.removeprefix('but ')}", mend=mend
        )


def describe(node: Node) -> str:
    """What a node is, for people."""
    if type(node) is MappingNode:
        return "a map"
    if type(node) is SequenceNode:
        return "a list"
    value = _resolve(node)
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:57] + '...'!r}"
    return f"the number {node.value}"


def _resolve(node: Node) -> Scalar:
    text: str = node.value
    if isinstance(node, ScalarNode) and node.style:
        return text
    first = text[:1]
    if first in "0123456789-+.":
        if _INT.fullmatch(text):
            return int(text) if len(text) <= 400 else float(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if text.startswith(("0x", "0o")):
            try:
                return int(text, 0)
            except ValueError:
                return text
    elif first not in "~nNtTfF":
        return text
    return _CONSTANTS.get(text, text)


def _recursion(root: Node) -> Node | None:
    """The first node that contains itself, if any. Each node is visited once."""
    above: set[int] = set()
    done: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, leaving = stack.pop()
        if leaving:
            above.discard(id(node))
            done.add(id(node))
            continue
        if type(node) is ScalarNode or id(node) in done:
            continue
        if id(node) in above:
            return node
        above.add(id(node))
        stack.append((node, True))
        for child in node.value:
            stack.extend((part, False) for part in (child if isinstance(child, tuple) else (child,)))
    return None


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Composer(_Base):  # type: ignore[misc]  # the base is chosen by what PyYAML was built with
    """libyaml's composer (PyYAML's own where that is not built) with scalars left as text.

    PyYAML resolves every scalar by a list of patterns, by YAML 1.1 and whether asked or not: leaving that
    out halves the time. Its hooks around every node bound the depth instead.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        """The tag of a node that has none: none."""
        return ""

    def descend_resolver(self, parent: Node | None, index: Any) -> None:
        """Called before a node is composed."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            mark = parent.start_mark if parent is not None else None
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=mark)

    def ascend_resolver(self) -> None:
        """Called after a node is composed."""
        self._depth -= 1
