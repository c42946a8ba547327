"""Publishes the Delta tables of a data root (`ciml.tables`), and makes the files of runs and dead letters.

Uses no Beam. Reads manifests, packs' footers and listings; never a table to answer what is in it.
"""
