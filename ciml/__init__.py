"""The floor of ciml: errors, settings, limits, metrics, and packages for events, stores, manifests and definitions.

Every other package imports it, and it imports none of them; it uses no Beam and no TensorFlow.
"""

__version__ = "0.2.0"
