"""Live windows: the samples of a running job, its windows so far, and their messages.

Uses `ciml.transforms.examples`, so that a finished run's windows equal the batch result. It reads no topic.
"""
