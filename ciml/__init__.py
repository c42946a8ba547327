"""The base package: errors, settings, limits, metrics, and packages for events, stores, manifests and definitions.

Every other package imports it. It imports no other package, no Beam and no TensorFlow.
"""

__version__ = "0.2.0"
