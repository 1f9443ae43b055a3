"""Trusted deployment: what a box shall run, how it is verified, stored, tried and put into service."""
