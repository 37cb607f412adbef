"""The cost of an export, before it is made: file sizes, memory, time, and the devices that the bundle fits.

Only config.json and the headers of weight files are read. Weights and caches are computed exactly; the other formulas
are fitted to measured exports. `python -m pvc_export.studies.plan` measures again and prints both.
"""
