"""Manifests: logs of deltas on a store, their checkpoints, segments and id indexes, and replicas of their state.

Uses `ciml.storage`. It defines no kind of delta: `ciml.runs`, `ciml.datasets` and `ciml.serving.predict` define theirs.
"""
