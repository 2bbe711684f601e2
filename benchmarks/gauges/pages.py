"""Take a file out of the page cache, and tell how much of it is in there: what makes a cold load cold."""

import ctypes
import mmap
import os
from pathlib import Path

METHOD = "posix_fadvise(DONTNEED)"
# Above this share in memory the next load would not be cold.
MOST_RESIDENT = 0.01


def drop_pages(path: Path) -> str | None:
    """Drop the cached pages of a file; how it was done, or None when they stay, as those of a file in use do."""
    if not hasattr(os, "posix_fadvise"):
        return None
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)  # pages that are not on the disk yet cannot be dropped
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return None
    finally:
        os.close(file)
    share = resident_share(path)
    return METHOD if share is not None and share <= MOST_RESIDENT else None


def resident_share(path: Path) -> float | None:
    """Share of a file's pages in memory by mincore(2), which tells the truth to those who may write the file."""
    size = path.stat().st_size
    if not size:
        return 0.0
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (AttributeError, OSError, TypeError):
        return None
    pages = -(-size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as view:
        start = ctypes.c_char.from_buffer(view)  # wants a writable view: private, so that nothing reaches the file
        failed = mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), found)
        del start
    return None if failed else sum(flags & 1 for flags in found) / pages
