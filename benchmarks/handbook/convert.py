"""The handbook's raw transactions to event and label files that riskengine reads.

    python -m benchmarks.handbook.convert --data transactions.parquet --out DIR

The data is not shipped: its repository states no licence. A label carries the time it became known,
seven days after its transaction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COLUMNS = ("TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD")
LABEL_DELAY_MS = 7 * 86_400_000
WHERE_TO_FIND_IT = (
    "It is the simulated data of the Fraud Detection Handbook "
    "(github.com/Fraud-Detection-Handbook/simulated-data-raw), joined into one Parquet file with the columns "
    + ", ".join(COLUMNS)
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write events.parquet and labels.parquet; 2 when there is nothing to read, with the reason on stderr."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the handbook's transactions, one Parquet file"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for events.parquet and labels.parquet"
    )
    options = parser.parse_args(arguments)
    try:
        transactions = read(options.data)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(events(transactions), options.out / "events.parquet", row_group_size=65_536)
    pq.write_table(labels(transactions), options.out / "labels.parquet", row_group_size=65_536)
    print(f"{len(transactions):,} events and labels in {options.out}")
    return 0


def read(path: Path) -> pa.Table:
    """The raw transactions by time, then id; FileNotFoundError and ValueError say what is missing."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. {WHERE_TO_FIND_IT}.")
    try:
        found = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file. {WHERE_TO_FIND_IT}.") from error
    if absent := [name for name in COLUMNS if name not in found]:
        raise ValueError(f"{path} has no column {', '.join(absent)}. {WHERE_TO_FIND_IT}.")
    table = pq.read_table(path, columns=list(COLUMNS))
    return table.sort_by([("TX_DATETIME", "ascending"), ("TRANSACTION_ID", "ascending")])


def events(transactions: pa.Table) -> pa.Table:
    """One payment a transaction: event_id, type, time (epoch ms), user_id, merchant_id, amount."""
    return pa.table(
        {
            "event_id": transactions["TRANSACTION_ID"].cast(pa.string()),
            "type": pa.repeat(pa.scalar("payment"), len(transactions)),
            "time": time_ms(transactions),
            "user_id": prefixed("c", transactions["CUSTOMER_ID"]),
            "merchant_id": prefixed("t", transactions["TERMINAL_ID"]),
            "amount": transactions["TX_AMOUNT"].cast(pa.float64()),
        }
    )


def labels(transactions: pa.Table) -> pa.Table:
    """One label a transaction: event_id, label, time it became known (epoch ms)."""
    return pa.table(
        {
            "event_id": transactions["TRANSACTION_ID"].cast(pa.string()),
            "label": pc.if_else(pc.equal(transactions["TX_FRAUD"], 1), "fraud", "legit"),
            "time": pc.add(time_ms(transactions), LABEL_DELAY_MS),
        }
    )


def time_ms(transactions: pa.Table) -> pa.ChunkedArray:
    return transactions["TX_DATETIME"].cast(pa.timestamp("ms")).cast(pa.int64())


def prefixed(letter: str, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(letter, ids.cast(pa.string()), "")


if __name__ == "__main__":
    sys.exit(main())
