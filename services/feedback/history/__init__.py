"""The history of verdicts: what settled them since, how often they were right, and whether their model may speak.

Reruns of the same code and reviewers settle a verdict. A model whose settled verdicts are too few is in shadow: its
verdicts are recorded, and nobody reads them.
"""
