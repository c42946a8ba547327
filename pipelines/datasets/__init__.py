"""Data sets: builds and updates them from the raw store or a listing, their statistics, and drift between spans.

Uses `transforms.examples` and `transforms.drift`. It trains nothing.
"""
