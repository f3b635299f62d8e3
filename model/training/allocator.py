"""The C library's allocator, set so that memory of freed tensors is used again.

PyTorch's blocks are aligned, for which glibc cuts a splinter off each. Its caches of small blocks
keep the splinters, a freed tensor never becomes whole again, and the next one of the same size does
not fit: a training on a CPU then takes up to half as much memory again.
"""

import os
import sys

VARIABLE = "GLIBC_TUNABLES"
WITHOUT_CACHES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
GPUS = ("/dev/nvidiactl", "/dev/kfd")  # there, small blocks count and large ones do not


def start_without_caches() -> None:
    """Replace this process by one with the same command and the setting, which glibc reads once.

    Nothing happens with a GPU, beside Linux, and where the user has set glibc's tunables.
    """
    if sys.platform != "linux" or VARIABLE in os.environ or any(map(os.path.exists, GPUS)):
        return
    os.environ[VARIABLE] = WITHOUT_CACHES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
