"""OpenLineage events: what a step of training reads and writes, for lineage servers and catalogues.

`steps` is all that callers use, and light; `events` and `store_transport` import openlineage and are imported by the
emitting thread alone. Which facts a step reports is decided where the step is: `training.lineage`, `serving.lineage`.
"""
