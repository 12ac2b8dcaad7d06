"""Keep freed memory in the process."""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As malloc.h numbers them."""


def keep_freed_memory() -> None:
    """Let the process reuse freed memory, up to 1 GiB, before it returns it to the system.

    By default glibc returns large blocks at once, and the next update waits while the system clears as many pages.
    Does nothing with other C libraries, and where MALLOC_... or GLIBC_TUNABLES tell glibc.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, size in ((_M_MMAP_THRESHOLD, 2**25), (_M_TRIM_THRESHOLD, 2**30)):
        mallopt(parameter, size)
