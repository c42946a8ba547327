"""Supervised services: their files, processes and status."""
