"""Strategies that draw hostile input, a module an area."""
