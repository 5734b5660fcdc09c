"""YAML with places: scalars of 1.2, duplicate keys, tabs, depth, anchors, and where an error points."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from snapshot import matches_snapshot

from riskengine import source as source_module
from riskengine.errors import Finding, Place, render
from riskengine.source import FILE_BYTES_MAX, MappingNode, ScalarNode, Source, read_source


def root_items(text: str) -> tuple[Source, dict[str, object]]:
    source = Source("f.yaml", text)
    assert source.root is not None, source.findings
    items = source.items(source.root, "a file")
    return source, {name: source.scalar(node) for name, (_, node) in items.items()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("off", "off"), ("yes", "yes"), ("Y", "Y"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("12", 12), ("-3", -3), ("0.5", 0.5), ("1e3", 1000.0), (".5", 0.5), ("5.", 5.0), ("0x1f", 31),
        ("0o17", 15), ("017", 17), ("1_000", "1_000"), ("12:30:45", "12:30:45"), ("2026-11-11", "2026-11-11"),
        ("'12'", "12"), ('"true"', "true"), ("1h30m", "1h30m"), ("+1", 1), ("'-'", "-"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    _, values = root_items(f"key: {text}\n")
    assert values["key"] == value
    assert type(values["key"]) is type(value)


def test_infinity_and_nan() -> None:
    _, values = root_items("a: .inf\nb: -.inf\nc: .nan\n")
    assert values["a"] == float("inf")
    assert values["b"] == float("-inf")
    assert values["c"] != values["c"]


def test_keys_are_text_even_where_they_look_otherwise() -> None:
    _, values = root_items("on: 1\nno: 2\ntrue: 3\n12: 4\n")
    assert values == {"on": 1, "no": 2, "true": 3, "12": 4}


def test_places_count_from_one() -> None:
    source = Source("f.yaml", "a:\n  活动: x\n")
    assert source.root is not None
    inner = source.items(source.root, "a file")["a"][1]
    key, value = source.items(inner, "a map")["活动"]
    assert source.place(key) == Place("f.yaml", 2, 3)
    assert source.place(value) == Place("f.yaml", 2, 7)
    assert str(source.place(value)) == "f.yaml:2:7"


def test_a_merge_yields_to_the_maps_own_keys() -> None:
    source = Source("f.yaml", "base: &b {x: 1, y: 2}\nmore:\n  <<: *b\n  y: 3\n")
    assert source.root is not None
    more = source.items(source.items(source.root, "a file")["more"][1], "a map")
    assert {name: source.scalar(node) for name, (_, node) in more.items()} == {"x": 1, "y": 3}
    assert source.findings == []


BROKEN = {
    "tab": "rules:\n\ta: 1\n",
    "duplicate-key": "a: 1\nb: 2\na: 3\n",
    "colon": "message: closed: come back\n",
    "open-bracket": "a: [1, 2\nb: 3\n",
    "open-quote": "a: 'x\nb: 3\n",
    "undefined-alias": "a: *b\n",
    "percent": "a: %b\n",
    "recursion": "a: &x [1, *x]\n",
    "merge-recursion": "a: &x\n  <<: *x\n",
    "two-documents": "a: 1\n---\nb: 2\n",
    "tag": "a: !!python/object:os.system x\n",
    "map-as-key": "{a: 1}: 2\n",
    "control-character": "a: \x01\n",
    "bad-indent": "a:\n  b: 1\n c: 2\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_yaml_for_us(name: str) -> None:
    source = Source("f.yaml", BROKEN[name])
    if source.root is not None:
        for _, node in source.items(source.root, "a file").values():
            if isinstance(node, ScalarNode):
                source.scalar(node)
    assert source.findings
    matches_snapshot(f"source/{name}", "\n\n".join(map(render, source.findings)) + "\n")


@pytest.mark.parametrize("text", ["- " * 200_000 + "a", "[" * 200_000, "? " * 200_000, "{a: " * 60])
def test_depth_is_an_error_and_not_the_end_of_the_process(text: str) -> None:
    source = Source("f.yaml", text)
    assert source.root is None
    assert [finding.code for finding in source.findings] == ["syntax"]
    assert "nested more than" in source.findings[0].message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: 1\nb: é\n".encode("latin-1"))
    (tmp_path / "big.yaml").write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    latin = read_source(tmp_path / "latin.yaml", "latin.yaml")
    assert [(f.code, f.place.line) for f in latin.findings] == [("encoding", 2)]
    assert [f.code for f in read_source(tmp_path / "big.yaml", "big.yaml").findings] == ["too-large"]
    assert [f.code for f in read_source(tmp_path / "none.yaml", "none.yaml").findings] == ["unreadable"]
    bom = read_source(tmp_path / "bom.yaml", "bom.yaml")
    assert bom.root is not None
    assert bom.place(bom.root) == Place("bom.yaml", 1, 1)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("w: amount > oops", 1, 13),
        ("w: 'amount > oops'", 1, 14),
        ('w: "amount > oops"', 1, 14),
        ("w: \"x == '\\u00e9' and oops\"", 1, 23),
        ("w: 'x == ''a'' and oops'", 1, 20),
        ("w: |\n  amount >\n  oops\n", 3, 3),
        ("w: >\n  amount >\n  oops\n", 3, 3),
        ("w:\n  amount\n  > oops\n", 3, 5),
    ],
)
def test_errors_inside_a_text_point_into_the_file(text: str, line: int, column: int) -> None:
    source = Source("f.yaml", text)
    assert source.root is not None
    node = source.items(source.root, "a file")["w"][1]
    assert isinstance(node, ScalarNode)
    value = node.value
    start = source.text_place(node)
    at = value.index("oops")
    if "\n" in value[:at]:
        place = Place("f.yaml", start.line + value[:at].count("\n"), at - value[:at].rfind("\n"))
    else:
        place = Place("f.yaml", start.line, start.column + at)
    source.adopt(node, [Finding(code="unknown-name", place=place, message="?", length=4)])
    found = source.findings[0]
    assert (found.place.line, found.place.column) == (line, column)
    assert found.source_line is not None
    assert found.source_line[column - 1 : column + 3] == "oops"


def test_the_caret_stands_below_wide_characters_and_tabs() -> None:
    wide = Finding(code="x", place=Place("f", 1, 4), message="m", source_line="活动 名字", length=2)
    assert render(wide).splitlines()[2] == "    |      ^^^^"
    tabbed = Finding(code="x", place=Place("f", 1, 2), message="m", source_line="\tab", length=2)
    assert render(tabbed).splitlines()[2] == "    | \t^^"


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
))  # fmt: skip
def test_what_pyyaml_writes_is_read_back(value: object) -> None:
    """Quoted as for YAML 1.1, which is quoted enough for 1.2."""
    source = Source("f.yaml", yaml.safe_dump({"key": value}))
    assert source.root is not None
    assert plain(source, source.root) == {"key": value}
    assert source.findings == []


def plain(source: Source, node: source_module.Node) -> object:
    if isinstance(node, MappingNode):
        return {name: plain(source, value) for name, (_, value) in source.items(node, "a map").items()}
    if isinstance(node, ScalarNode):
        return source.scalar(node)
    return [plain(source, part) for part in source.sequence(node, "a list")]


def test_the_composer_of_plain_python_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyYAML comes without libyaml."""

    hooks = {
        name: getattr(source_module._Composer, name)
        for name in ("resolve", "descend_resolver", "ascend_resolver")
    }

    def start(self: yaml.SafeLoader, text: str) -> None:
        yaml.SafeLoader.__init__(self, text)
        self._depth = 0  # type: ignore[attr-defined]  # _Composer sets it too, its base knows of none

    plain_composer = type("PlainComposer", (yaml.SafeLoader,), {"__init__": start, **hooks})
    fast = Source("f.yaml", "a: {b: [1, 'x', no]}\nc: |\n  two\n  lines\n")
    monkeypatch.setattr(source_module, "_Composer", plain_composer)
    slow = Source("f.yaml", "a: {b: [1, 'x', no]}\nc: |\n  two\n  lines\n")
    assert fast.root is not None
    assert slow.root is not None
    assert (
        plain(fast, fast.root) == plain(slow, slow.root) == {"a": {"b": [1, "x", "no"]}, "c": "two\nlines\n"}
    )
    assert [f.code for f in Source("f.yaml", "[" * 60).findings] == ["syntax"]
