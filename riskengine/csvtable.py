"""Reference tables: a CSV file becomes typed rows by key, with an error for every bad cell.

A resident table is read once with its policy and never written; it travels inside the policy's arrays.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from riskengine.errors import Finding, Place, nearest
from riskengine.expression import rfc3339_ms

FILE_BYTES_MAX = 64 * 1024 * 1024  # rows stay in memory, in every engine
FINDINGS_MAX = 100  # of one file: a column of the wrong type would give one a row

Cell = float | str | None


def read_table(
    path: Path, file: str, keys: Sequence[str], columns: Mapping[str, str]
) -> tuple[dict[str, dict[str, Cell]], list[Finding]]:
    """Read `path` (shown to people as `file`) into rows by key, and everything that is wrong with it.

    The first header among `keys` is the key's column. `columns` gives the type of each column that is
    read: number, string, bool (as 0.0 and 1.0) or time (RFC 3339, as ms since 1970 UTC); other columns of
    the file are left alone. An empty cell is None. Text is trimmed and in NFC, as in events.
    """
    findings: list[Finding] = []
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= FILE_BYTES_MAX else b""
        text = data.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        return {}, [_finding(file, 1, 1, "unreadable", f"the table cannot be read: {reason}")]
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return {}, [_finding(file, line, 1, "encoding", "the table is not UTF-8", mend="save it as UTF-8")]
    if size > FILE_BYTES_MAX:
        message = f"the table has {size:,} bytes, and at most {FILE_BYTES_MAX:,} are kept in memory"
        return {}, [
            _finding(file, 1, 1, "too-large", message, mend="leave out `from:`: live rows are unbounded")
        ]
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        return {}, [_finding(file, line, 1, "encoding", "the table holds a NUL character")]

    lines = re.split(r"\r\n|\r|\n", text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: dict[str, dict[str, Cell]] = {}
    seen: dict[str, int] = {}
    try:
        header = [name.strip() for name in next(reader, [])]
        positions, key_at = _header(file, header, lines, keys, columns, findings)
        if key_at is None:
            return {}, findings
        end = reader.line_num
        for record in reader:
            line, end = end + 1, reader.line_num
            if not record:
                continue
            if len(findings) >= FINDINGS_MAX:
                findings.append(_finding(file, line, 1, "too-many", "there is more; the rest is not read"))
                break
            if len(record) != len(header):
                findings.append(
                    _finding(
                        file, line, 1, "wrong-width", "the row is not as wide as the header", lines,
                        found=f"{len(record)} cells", expected=f"{len(header)} cells",
                    )
                )  # fmt: skip
                continue
            key = tidy(record[key_at])
            if not key or key in seen:
                message = f"the key {key!r} stands in line {seen[key]} too" if key else "the key is empty"
                column = _column(lines, line, key_at)
                findings.append(_finding(file, line, column, "wrong-key", message, lines))
                continue
            seen[key] = line
            row: dict[str, Cell] = {}
            for name, at in positions.items():
                try:
                    row[name] = _cell(record[at], columns[name])
                except ValueError as error:
                    findings.append(
                        _finding(
                            file, line, _column(lines, line, at), "wrong-type",
                            f"the column {name} is a {columns[name]}", lines,
                            found=repr(record[at]), expected=str(error), length=len(record[at]),
                        )
                    )  # fmt: skip
            rows[key] = row
    except csv.Error as error:
        findings.append(_finding(file, reader.line_num, 1, "syntax", f"this is not CSV: {error}", lines))
    return rows, findings


def tidy(text: str) -> str:
    """Text as events carry it: NFC, trimmed."""
    return unicodedata.normalize("NFC", text).strip()


def _header(
    file: str,
    header: list[str],
    lines: list[str],
    keys: Sequence[str],
    columns: Mapping[str, str],
    findings: list[Finding],
) -> tuple[dict[str, int], int | None]:
    """Where each column stands, and the key's column (None where there is none)."""
    for at, name in enumerate(header):
        if name and name in header[:at]:
            column = _column(lines, 1, at)
            findings.append(
                _finding(file, 1, column, "duplicate-key", f"two columns are named {name}", lines)
            )
    key_at = next((header.index(key) for key in keys if key in header), None)
    if key_at is None:
        wanted = " or ".join(dict.fromkeys(keys))
        findings.append(
            _finding(file, 1, 1, "missing-key", "the table has no column for its key", lines, expected=wanted)
        )
    positions = {}
    for name in columns:
        if name in header:
            positions[name] = header.index(name)
            continue
        close = nearest(name, header)
        findings.append(
            _finding(
                file, 1, 1, "unknown-name", f"the table has no column {name}", lines,
                found=", ".join(header) or "no columns",
                mend=f"is it the column {close!r}?" if close else None,
            )
        )  # fmt: skip
    return positions, key_at


def _cell(text: str, kind: str) -> Cell:
    """The value of a cell. Raises ValueError saying what was expected."""
    text = tidy(text)
    if not text:
        return None
    if kind == "string":
        return text
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError("true or false")
        return float(text.lower() == "true")
    if kind == "time":
        ms = rfc3339_ms(text)
        if ms is None:
            raise ValueError("a time with an offset, such as 2026-11-11T00:00:00+08:00")
        return float(ms)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in text:
        raise ValueError("a finite number, such as 12.5")
    return number


def _column(lines: list[str], line: int, at: int) -> int:
    """The column (from 1) at which cell `at` of a row begins: csv does not say, so count as it does."""
    raw = lines[line - 1] if line <= len(lines) else ""
    quoted = False
    for position, character in enumerate(raw):
        if at == 0:
            return position + 1
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            at -= 1
    return max(1, len(raw)) if at else len(raw) + 1


def _finding(
    file: str,
    line: int,
    column: int,
    code: str,
    message: str,
    lines: Sequence[str] = (),
    *,
    found: str | None = None,
    expected: str | None = None,
    mend: str | None = None,
    length: int = 1,
) -> Finding:
    return Finding(
        code=code,
        place=Place(file, line, column),
        message=message,
        found=found,
        expected=expected,
        mend=mend,
        source_line=lines[line - 1] if line <= len(lines) else None,
        length=max(1, length),
    )
