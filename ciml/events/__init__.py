"""CI events, listings and samples: strict decoding and encoding, run ids, run facts, redaction of secrets.

Uses msgspec and orjson. It reads no topic and decides on no trust: `ciml.pipelines.kafka` and `ciml.trust` do.
"""
