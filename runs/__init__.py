"""The raw store: the telemetry of runs and its manifest, from accounting to packs, verification and tables.

Uses `ciml.manifest`, `ciml.events` and pyarrow. Nothing here uses Beam.
"""
