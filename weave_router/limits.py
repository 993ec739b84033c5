"""Every bound of the product in one file, each with its reason. Imports nothing; every room may read it.

A test in ``tests/`` reaches each bound (``tests/quality/test_limits.py`` checks that every name is used in one).
One section per room, in the order of the layers.
"""

from typing import Final

# --- fastpath ---------------------------------------------------------------------------------------------------

WORKERS_MAX: Final = 15
"""Lanes name the worker in 4 bits; 15 is kept free."""

NODES_MAX: Final = 8192
"""Records a cluster may hold, hence slots of the fast path's node table."""

# --- store ------------------------------------------------------------------------------------------------------

# --- tunnel -----------------------------------------------------------------------------------------------------

# --- mesh -------------------------------------------------------------------------------------------------------

# --- host -------------------------------------------------------------------------------------------------------

# --- api --------------------------------------------------------------------------------------------------------
