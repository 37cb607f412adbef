"""How the bundled model is taught: data to batches, dense labels, optimizers, the loop. `python -m pvc_ref.train`."""
