"""Data sets: builds and updates them from the raw store or a listing, their statistics, and drift between spans.

Uses `ciml.transforms.examples` and `ciml.transforms.drift`. It trains nothing.
"""
