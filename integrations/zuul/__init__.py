"""Zuul: the adapter of its messages, and the text of ``ciml connect zuul``."""
