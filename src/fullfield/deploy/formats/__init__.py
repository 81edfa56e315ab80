"""Formats that models are exported to, one a module."""
