"""The raw store's manifest: accounting of events and runs, dead letters, packs, audit and verification.

Uses `ciml.manifest` and `ciml.events`. It writes and reads no telemetry: `ciml.runs` does.
"""
