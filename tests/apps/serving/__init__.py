"""Tests of what serves many streams."""
