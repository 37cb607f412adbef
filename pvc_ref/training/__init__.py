"""Training of the bundled model (`python -m pvc_ref.train`): batches, dense labels, optimizers and the loop."""
