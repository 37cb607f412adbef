"""What else a user could run on the same CPU, timed in one interleaved run with ours: OpenVINO, llama.cpp.

Each peer lives in an environment of its own, and so in a process of its own (elsewhere.py): it is asked for one step at
a time, and says how much CPU time that took it.

    make peers   both comparisons
"""
