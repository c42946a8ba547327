"""Examples: telemetry downsampled to windows, one row per run, split by a keyed hash, sealed in spans.

Uses a definition of `ciml.datasets`. It normalises nothing: tf.Transform does, in `training`.
"""
