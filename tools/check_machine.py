"""What `make` asks before it installs: is this Python new enough, is there room on the disk?

Runs on any Python 3, so that an old one is told what it lacks and not shown a syntax error.
"""

import os
import shutil
import sys

OLDEST = (3, 11)
LEAST_GIB = 4
"""Free space for the environment with PyTorch's CPU build: 2.5 GiB, and the wheels as they come."""
CUDA_GIB = 10
"""The same with the CUDA build, which PyPI gives on Linux."""
CPU_BUILD = "make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo"


def find_faults(version, free_gib, folder):
    """Sentences that say what is missing, none if nothing is."""
    faults = []
    if tuple(version[:2]) < OLDEST:
        faults.append(
            f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, and {sys.executable} is "
            f"{version[0]}.{version[1]}; name another one: make PYTHON=/path/to/python3.11 demo"
        )
    if free_gib < LEAST_GIB:
        faults.append(
            f"{free_gib:.1f} GiB are free in {folder}, and the environment needs {LEAST_GIB}; free "
            "some, or clone to another disk"
        )
    return faults


def main():
    """Exit code 1 and the faults, or a hint where the disk is small for the CUDA build."""
    folder = os.getcwd()
    free_gib = shutil.disk_usage(folder).free / 2**30
    faults = find_faults(sys.version_info, free_gib, folder)
    for fault in faults:
        sys.stderr.write(f"make: {fault}\n")
    if not faults and free_gib < CUDA_GIB:
        sys.stderr.write(
            f"make: {free_gib:.1f} GiB are free; PyTorch's CUDA build may not fit, its CPU build "
            f"does: {CPU_BUILD}\n"
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
