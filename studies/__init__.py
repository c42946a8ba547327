"""Scripts that write the tables of figures in the documents: `python -m studies.NAME`. They are not installed.

Each docstring names the page. They use the sample corpus and scenes of `tests`, and need the development environment.
"""
