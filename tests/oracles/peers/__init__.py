"""Benchmarks of alternatives on the same CPU, interleaved with ours in one run: OpenVINO and llama.cpp.

Each peer has its own environment and so its own process (elsewhere.py). The process runs one requested step at a time
and reports the CPU time it took.

    make peers   both comparisons
"""
