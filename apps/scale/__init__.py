"""python -m apps.scale: what 1, 100 and 10,000 cameras need, measured and simulated."""
