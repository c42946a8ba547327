"""Tests of the receiver of webhooks."""
