"""A bundle in Triton Inference Server: the Python backend of `pvc-export triton`."""
