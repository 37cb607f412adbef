"""Negative controls: defects that a check must catch (defects.py), and the proof that it catches them (prove.py)."""
