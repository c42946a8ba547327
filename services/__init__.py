"""An ingest that a supervisor process keeps at work: its files, its processes, its status."""
