"""Prints the rows of Delta tables as Spark reads them, as JSON. Run by the Python that has PySpark.

read.py JARS URL…
"""

from __future__ import annotations

import json
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession  # type: ignore[import-not-found,unused-ignore]


def plain(value: Any) -> Any:
    """A value as JSON can say it: times in microseconds UTC, maps as pairs."""
    if isinstance(value, datetime):
        return int(value.timestamp() * 1_000_000 + 0.5)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return sorted([key, each] for key, each in value.items())
    return value


def main() -> None:
    jars, *urls = sys.argv[1:]
    spark = (
        SparkSession.builder.master("local[1]")
        .config("spark.jars", ",".join(str(jar) for jar in sorted(Path(jars).glob("*.jar"))))
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    found = []
    for url in urls:
        frame = spark.read.format("delta").load(url)
        rows = [[plain(value) for value in row] for row in frame.collect()]
        found.append({"columns": frame.columns, "rows": rows, "count": frame.count()})
    print("ROWS " + json.dumps(found))


if __name__ == "__main__":
    main()
