"""Tests of the receiver of Gerrit's events."""
