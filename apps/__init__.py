"""The applications: cameras, screens, web pages and servers around a stream. Nothing here depends on a model."""
