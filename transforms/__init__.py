"""Stages: pure functions over Arrow and numpy, and thin PTransforms around them."""
