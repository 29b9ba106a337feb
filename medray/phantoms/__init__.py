"""Synthetic patients: asymmetric bodies with planted lesions, written as DICOM in public layouts.

Everything is a function of a seed; two runs write the same bytes. No real patient is in it.
"""
