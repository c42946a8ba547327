"""Secrets that processes read by name where they need them, so that nothing else holds their content."""
