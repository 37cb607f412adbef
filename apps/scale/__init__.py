"""python -m apps.scale: resources for 1, 100 and 10,000 cameras, measured and simulated."""
