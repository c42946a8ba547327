"""Commands that record runs, feed the raw store and start engines."""
