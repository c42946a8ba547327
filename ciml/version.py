"""The version of ciml, which the floor, the recorder and the build read without the public API."""

__version__ = "0.2.0"
