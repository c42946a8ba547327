"""Delta tables over the store's own Parquet files, for other engines: their logs, and the files that belong to each.

Pure functions compute the present files of a table from the manifests; `ciml.runs.tables.publisher` commits the
difference. Nothing reads these tables to answer a question about runs: without them the store is complete. Garbage
collection asks which packs its readers may still read. The files of ``runs`` and ``dead_letters`` are made by
`ciml.runs.tables`. Uses deltalake for checkpoints alone.
"""
