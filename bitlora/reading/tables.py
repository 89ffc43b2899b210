"""Rows of tables: CSV, Parquet, Arrow."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from bitlora.reading.raw import RawRow

if TYPE_CHECKING:
    import pyarrow as pa


def read_csv(file: IO[bytes], name: str, label: str, delimiter: str, errors: list[str]) -> Iterator[RawRow]:
    """The rows of a CSV file with a header; every cell is text, as it stands there.

    Args:
        name: stands for the file in errors.
        label: stands for it in the rows' ids.
        errors: gets what is wrong with it, a line each.
    """
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(lines, None)
        if header is None or not any(header):
            errors.append(
                f"{name}: the file is empty" if header is None else f"{name}:1: no header with the columns' names"
            )
            return
        if twice := sorted({column for column in header if header.count(column) > 1}):
            errors.append(f"{name}:1: the header names {', '.join(map(repr, twice))} more than once")
            return
        number = lines.line_num + 1
        for cells in lines:
            if len(cells) != len(header) and cells:
                why = f"{len(cells)} cells, and the header names {len(header)} columns"
                yield RawRow(f"{label}:{number}", f"{name}:{number}", None, why)
            elif cells:
                yield RawRow(f"{label}:{number}", f"{name}:{number}", dict(zip(header, cells, strict=True)))
            number = lines.line_num + 1
    except csv.Error as error:
        errors.append(f"{name}:{lines.line_num}: not CSV: {error}")
    except UnicodeDecodeError as error:
        errors.append(f"{name}: not UTF-8: byte 0x{error.object[error.start]:02x} after line {lines.line_num}")
    finally:
        text.detach()


def read_parquet(file: IO[bytes], name: str, label: str, errors: list[str]) -> Iterator[RawRow]:
    """The rows of a Parquet file, counted from 0. Arguments as of `read_csv`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from _batches(pq.ParquetFile(file).iter_batches(1000), name, label)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # of sizes that are none
        errors.append(f"{name}: cannot be read as Parquet: {_first_line(error)}")


def read_arrow(file: IO[bytes], name: str, label: str, errors: list[str]) -> Iterator[RawRow]:
    """The rows of an Arrow file, or of a stream as `datasets` saves it, counted from 0. Arguments as of `read_csv`."""
    import pyarrow as pa

    try:
        try:
            whole = pa.ipc.open_file(file)
            batches: Iterator[Any] = (whole.get_batch(number) for number in range(whole.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            batches = iter(pa.ipc.open_stream(file))
        yield from _batches(batches, name, label)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # of sizes that are none
        errors.append(f"{name}: cannot be read as Arrow: {_first_line(error)}")


def _batches(batches: Iterator[pa.RecordBatch], name: str, label: str) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # else a file that was damaged may take the process with it
        for row in batch.to_pylist():
            yield RawRow(f"{label}:{number}", f"{name}: row {number}", dense(row))
            number += 1


def dense(row: Any) -> Any:
    """A row of a table as it was before every object in a column had the keys of all the others: what is null within an
    object is not there."""
    if isinstance(row, dict):
        return {key: _filled(value) for key, value in row.items()}
    return row


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each) for key, each in value.items() if each is not None}
    return [_filled(each) for each in value] if isinstance(value, list) else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
