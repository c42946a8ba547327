"""The whole chain on the sample runs, and the checks of its numbers."""
