"""Feedback: verdicts of failed runs as one quiet message on the reviewed change.

`client` is what the outbox needs of a review system, `clients/` are these systems. Uses the topic `predictions` alone.
"""
