"""The commands of the group Operate: engines, recorder, ingest, backfill, live windows, graphs and the demo."""
