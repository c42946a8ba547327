"""Raw objects: telemetry written as Parquet, many runs in packs, and reading both by run id.

Uses `ciml.raw` for names and seals. It commits nothing: the raw manifest names what exists.
"""
