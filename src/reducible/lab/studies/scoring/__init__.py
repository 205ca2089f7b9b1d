"""Cheap scoring: what it costs, how faithful it is, what it keeps."""
