"""The whole chain on the sample runs, and the proof that its numbers add up."""
