"""OpenLineage events: what a step of training reads and writes, for lineage servers and catalogues.

`open`, `steps` and `description` are what callers use, and light; `events` and `store_transport` import openlineage, in
the emitting thread alone. `ciml.training.refresh` and `ciml.serving.push` describe the steps.
"""
