"""pvc-serve with clients that nobody here wrote."""
