"""Proofs with real CI systems, run by make interop alone."""
