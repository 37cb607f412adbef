"""pvc-serve with third-party clients."""
