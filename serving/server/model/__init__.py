"""Loading of a model version: a checked copy, its allowed operations, its calls, and its warm-up requests.

Uses TensorFlow. It answers no requests and chooses no versions: the packages above do.
"""
