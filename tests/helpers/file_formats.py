"""The same five rows as a file of each format."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = [{"prompt": f'say {n}, "{n}"', "completion": f"{n}\n\ttwo 🙂"} for n in range(5)]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_of(rows: list[Any], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_of(rows: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def arrow_of(rows: list[Any], stream: bool = False) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, bytes] = {
    "rows.jsonl": lines(ROWS),
    "rows.ndjson": b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\r\n"),
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": b"\n" + json.dumps(ROWS, indent=2).encode(),
    "lines.json": lines(ROWS),
    "rows.csv": csv_of(ROWS),
    "rows.tsv": csv_of(ROWS, "\t"),
    "rows.parquet": parquet_of(ROWS),
    "rows.arrow": arrow_of(ROWS),
    "stream.arrow": arrow_of(ROWS, stream=True),
    "named_otherwise.dat": parquet_of(ROWS),
}
