"""Writes ``typed.py`` from the schema: one ``TypedDict`` per table, so that mypy knows the columns of a row.

``python -m poise_core.archive.typed_source`` writes the file; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from poise_core.archive.schema import TABLES, Field, Table
from poise_core.files import write_atomically

COMPUTED = ("row_key", "created_at", "content_digest")
"""Columns that ``Archive.append`` fills in: every row that was read has them, none that is to be written needs them."""

_HEAD = '''"""Rows of the archive's tables, column by column. Made by ``python -m poise_core.archive.typed_source``; do not edit.

Every column is there in a row that was read. Of a row that is to be written, those that are computed or may be null may be
left out.
"""

import datetime as dt
from typing import NotRequired, TypedDict
'''


def row_type(table: Table) -> str:
    """Name of the class of a table's rows: ``CandidateRow`` for ``candidates``."""
    singular = f"{table.name[:-3]}y" if table.name.endswith("ies") else table.name.removesuffix("s")
    return f"{singular.capitalize()}Row"


def source() -> str:
    """The whole file."""
    classes = []
    for table in TABLES.values():
        lines = [f"class {row_type(table)}(TypedDict):", f'    """{table.doc.partition(". ")[0].rstrip(".")}."""', ""]
        lines += [f"    {field.name}: {_annotation(field)}" for field in table.fields]
        classes.append("\n".join(lines) + "\n")
    return "\n\n".join([_HEAD, *classes])


def _annotation(field: Field) -> str:
    kind = _python_type(field.type)
    if field.nullable:
        kind += " | None"
    return f"NotRequired[{kind}]" if field.nullable or field.name in COMPUTED else kind


def _python_type(kind: pa.DataType) -> str:
    if pa.types.is_map(kind):
        return f"dict[{_python_type(kind.key_type)}, {_python_type(kind.item_type)}]"
    if pa.types.is_list(kind):
        return f"list[{_python_type(kind.value_type)}]"
    if pa.types.is_timestamp(kind):
        return "dt.datetime"
    return {pa.string(): "str", pa.int64(): "int", pa.int32(): "int", pa.float64(): "float", pa.bool_(): "bool"}[kind]


if __name__ == "__main__":
    write_atomically(Path(__file__).with_name("typed.py"), source())
