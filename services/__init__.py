"""Supervised services: their files, processes and status."""

#: The extra that installs the libraries of this room.
EXTRA = "receivers"
