"""OpenLineage events that report what the steps of training read and write, for lineage servers and catalogues.

`steps` and `emitter` are light. `openlineage` imports the library of that name, in the emitting thread only.
`ciml.training.refresh` and `ciml.serving.push` describe the steps.
"""
