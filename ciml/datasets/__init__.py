"""Data sets: definitions, labels, slicers, the plan of spans, and the state of a data set's manifest.

Uses `ciml.events`, `ciml.manifest` and `ciml.runs`. It computes no examples: `ciml.transforms.examples` does.
"""
