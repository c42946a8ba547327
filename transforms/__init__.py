"""Stages: pure functions over Arrow and numpy, one stage a package, with thin PTransforms next to them.

Uses `ciml` alone; Beam is imported in the modules `*beam` only. A stage keeps no state and commits nothing.
"""
