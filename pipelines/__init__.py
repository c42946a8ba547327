"""Pipelines: Beam graphs, topic processors, and the engines that run them.

The computations are those of `ciml.transforms`, `ciml.training` and `ciml.serving`. Nothing here keeps itself running:
`ciml.services` does.
"""

#: The extra that installs the libraries of this room.
EXTRA = "pipelines"
