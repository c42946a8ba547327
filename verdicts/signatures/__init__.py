"""Failure signatures of a data root: read from the stored outputs of its runs, and the operators' notes on them."""
