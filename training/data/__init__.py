"""Data for training: snapshots of examples, in memory or as TFRecord files made through tf.Transform.

Uses a data set's manifest and spans. It selects trusted runs and fits nothing.
"""
