"""A deterministic simulation of source, commit and data sets: see docs/simulation.md."""
