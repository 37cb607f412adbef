"""Negative controls: defects that a check must catch (defects.py), and the proof that it does (prove.py)."""
