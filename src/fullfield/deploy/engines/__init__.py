"""Libraries that run exported files, one a module."""
