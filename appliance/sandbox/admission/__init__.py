"""Admission: what a module must be before an engine sees a byte of it, and the module it becomes.

:mod:`.admit` is the zipper's side. It starts :mod:`.child`, which does all the rest, in a process that may die of it.
"""
