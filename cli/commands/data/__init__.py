"""Commands on stored runs and data sets."""
