"""The messages of ciml's topics: their types, which the encoders return, and their JSON Schemas.

Uses `ciml.events` and `ciml.verdicts`. It encodes and decodes nothing: the modules that the types name do.
"""
