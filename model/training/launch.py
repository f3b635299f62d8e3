"""torchrun, whose own traceback does not follow the line with which a run of ours has ended.

python -P model/training/launch.py [options of torchrun] script [options of the script]
(-P: the modules beside this file are not for torch to find.)
"""

import logging
import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from model.training.signals import leave_on_signals

if __name__ == "__main__":
    leave_on_signals("finetune_RemoteGLM.py")  # until torchrun's own handlers take over

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# torchrun's own, and the warnings of batch systems, at which the processes save
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
SAVING = 600  # seconds that the processes get for it


def main(argv):
    """Start the processes and wait for them -> exit status."""
    for name in ("elastic", "run"):
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)
    try:
        run.main([f"--signals-to-handle={SIGNALS}", f"--shutdown-timeout={SAVING}", *argv])
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(
            f"process {rank} was killed by {name} (SIGKILL: most likely the memory did not "
            "suffice); the same command with --resume continues from the last saved step",
            file=sys.stderr,
        )
        return 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
