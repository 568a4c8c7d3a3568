"""Start of Triton's Python backend, a process with its own interpreter: 3.11.2 in PyTriton 0.7.

It reads the standard library of the installed 3.11, whose resource tracker expects a method of
locks that 3.11.2 lacks.
"""

import threading
from multiprocessing import resource_tracker

if not hasattr(threading.RLock(), "_recursion_count"):
    resource_tracker._resource_tracker._lock = threading._PyRLock()  # type: ignore[attr-defined]
