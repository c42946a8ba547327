"""Services as streaming jobs on Dataflow."""
