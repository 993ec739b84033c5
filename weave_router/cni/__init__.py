"""Pods as the daemon wires them: by the ``attach`` command today, by the CNI verbs when they come."""
