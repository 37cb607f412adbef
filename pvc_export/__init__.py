"""From the reference model to graphs, engines and a checked bundle; the command line pvc-export."""
