"""A small client of a medray server."""
