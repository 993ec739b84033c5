"""Foreign declarations for the Cython modules of fastpath/; nothing to import at run time."""
