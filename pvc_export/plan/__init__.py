"""What an export will take, before it is made: bytes of files, memory and time, and the devices that the bundle fits.

Nothing is read but config.json and the headers of weight files. Formulas are arithmetic where there is arithmetic
(weights, caches) and otherwise fitted to measured exports; `python -m pvc_export.studies.plan` measures again, beside
the formulas.
"""
