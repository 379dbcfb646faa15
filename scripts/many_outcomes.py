"""Reads ten million outcomes (or as many as the argument says) and prints how long it took and how much memory.

python scripts/many_outcomes.py [MILLIONS]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from tierwise.study.data.outcomes import load

MODELS = 10


def main(millions: float) -> None:
    prompts = int(millions * 1e6) // MODELS
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), prompts)
        size_mb = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        began = time.monotonic()
        table, report = load([folder])
        took_s = time.monotonic() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
    print(f"{report.outcomes:,} outcomes of {report.prompts:,} prompts ({size_mb:,.0f} MB of Parquet)")
    print(f"{took_s:.0f} s, peak {peak_mb:,.0f} MB, {len(table.ids):,} prompts kept, data hash {table.hash}")


def make(folder: Path, prompts: int) -> None:
    """Half a kilobyte a prompt. The database that makes them is gone before anything is measured but its peak."""
    database = duckdb.connect(config={"memory_limit": "400MB", "temp_directory": str(folder)})
    text = "repeat(md5(range::VARCHAR) || ' words of question ' || range || ' ', 8)"
    database.execute(
        f"COPY (SELECT 'p' || range AS prompt_id, {text} AS prompt, 'w' || range % 9 AS workload FROM range({prompts}))"
        f" TO '{folder}/big.prompts.parquet' (FORMAT parquet)"
    )
    database.execute(
        "COPY (SELECT 'p' || p.range AS prompt_id, 'm' || m.range AS model,"
        " (hash(p.range, m.range) % 2)::DOUBLE AS quality,"
        " 0.001 AS cost_usd, 250 AS output_tokens, chr(65 + (p.range % 4)::INTEGER) AS pred"
        f" FROM range({prompts}) AS p, range({MODELS}) AS m) TO '{folder}/big.outcomes.parquet' (FORMAT parquet)"
    )
    database.close()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
