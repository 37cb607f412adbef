"""`pvc-export gpu`: all that a machine with an NVIDIA GPU can show of this project, in one run and one folder."""
