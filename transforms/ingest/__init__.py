"""The stages of ingest: decode, trust, and all stages of a run in order, for events, listings and dead letters.

Uses the other stages. It commits nothing: `ciml.pipelines.ingest` does.
"""
