"""Outgoing clients of review systems, one module each: `ciml.services.feedback.client.ReviewClient` says what they do.

`rest` is what they share: one host, limits on time and bytes of each call, errors without secrets, no redirects.
"""
