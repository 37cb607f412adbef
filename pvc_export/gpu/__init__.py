"""`pvc-export gpu`: every check and measurement that needs an NVIDIA GPU, in one run and one folder."""
