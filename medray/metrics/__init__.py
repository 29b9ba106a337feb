"""Metrics: plain functions of arrays, each with one stated rule for the cases without an answer."""
