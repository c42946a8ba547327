"""Erases runs from a data root: who they belong to, what they recorded, and all that was derived from them."""
