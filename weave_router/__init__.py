"""Weave Router: an encrypted pod network for machines that only share IP reachability."""

__version__ = "0.1.0"
