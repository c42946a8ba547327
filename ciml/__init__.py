"""The floor of ciml: words, records, storage and manifests. Imports neither Beam nor TensorFlow."""

__version__ = "0.1.0"
