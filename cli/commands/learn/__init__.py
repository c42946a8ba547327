"""Commands that train, evaluate and query models."""
