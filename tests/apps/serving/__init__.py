"""Tests of serving many streams."""
