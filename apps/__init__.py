"""Cameras and screens: what stands between a person and a stream. Nothing here knows a model."""
