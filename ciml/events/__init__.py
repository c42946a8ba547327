"""CI events, listings and samples: strict decoding and encoding, run ids, run facts, redaction of secrets.

Uses msgspec and orjson. It reads no topic and decides no trust: `ciml.pipelines.kafka` and `ciml.transforms.ingest` do.
"""
