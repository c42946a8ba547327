"""Options of jobs on Dataflow, and the report of what was written or submitted."""
