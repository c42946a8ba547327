"""The floor of ciml: errors, settings, limits, metrics, and packages for events, stores, manifests and definitions.

Every other package imports it. It imports none of them, neither Beam nor TensorFlow.
"""

__version__ = "0.2.0"
