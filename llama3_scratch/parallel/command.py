"""How a command behaves as one of several processes: one of them speaks, and if one ends, all end."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from . import group


@contextmanager
def speaking_as_one() -> Iterator[None]:
    """Around a command. An error that is raised in every process is told by the first of each machine, and the others
    end with the same status, 2, and no word; of warnings, those of process 0 are shown.

    torchrun asks the processes that are left to end once one has (SIGTERM). If none has said why, they say that.
    """
    before = signal.signal(signal.SIGTERM, _ended_by_torchrun)
    try:
        with warnings.catch_warnings():
            if os.environ.get("RANK") != "0":
                warnings.simplefilter("ignore")
            yield
    except BrokenPipeError:  # whoever reads process 0's text has seen enough of it: no failure
        group.note("enough")
        group.first_to_say("the end")
        raise
    except (ValueError, OSError):
        if group.first_to_say("the end"):
            raise
        raise SystemExit(0 if group.noted("enough") else 2) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended_by_torchrun(number: int, frame: FrameType | None) -> None:
    if group.first_to_say("the end"):
        print("stopped, since another process has ended or somebody asked for it", file=sys.stderr, flush=True)
    os._exit(128 + number)  # at once: others may wait for what is never sent
