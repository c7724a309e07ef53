"""Traces of requests: read from files, imported from data sets, or generated."""
