"""Feedback: posts the verdicts on failed runs as one quiet message on the reviewed change.

It reads the topic `predictions` alone, and writes through the review clients of `ciml.integrations`.
"""
