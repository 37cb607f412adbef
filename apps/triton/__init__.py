"""A bundle inside Triton Inference Server: the Python backend of `pvc-export triton`."""
