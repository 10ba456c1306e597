import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from gradscope.process import keep_memory

def faults_of_ten_passes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.zeros(3 * 2**22) for _ in range(2)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_memory()
faults_of_ten_passes()
print(faults_of_ten_passes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_freed_memory_is_kept_for_the_next_pass():
    """Its pages need not be cleared anew: no page faults after the first passes."""
    faults = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert 100 * faults["keep"] < faults["leave"]
