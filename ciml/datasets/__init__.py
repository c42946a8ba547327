"""The definition of a data set, the schema of its examples, and the state of its manifest.

Uses `ciml.events` and `ciml.manifest`. It computes no examples: `ciml.transforms.examples` does.
"""
