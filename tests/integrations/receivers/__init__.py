"""Tests of what receivers share."""
