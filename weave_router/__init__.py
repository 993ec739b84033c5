"""Weave Router: an encrypted pod network for machines that only share IP reachability."""
