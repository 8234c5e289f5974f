"""How a command behaves as one of several processes: one of them speaks, and if one ends, all end."""

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ..messages import reason, sentence
from . import group


@contextmanager
def speaking_as_one() -> Iterator[None]:
    """Around a command. An error that is raised in every process is told by the first of each machine, and the others
    end with the same status, 2, and no word; of warnings, those of process 0 are shown.
    """
    with _ending_when_told():  # also while one of them says why
        try:
            with warnings.catch_warnings():
                if os.environ.get("RANK") != "0":
                    warnings.simplefilter("ignore")
                yield
        except BrokenPipeError:  # whoever reads process 0's text has seen enough of it: no failure
            group.note("enough")
            group.first_to_say("the end")
            raise
        except (ValueError, OSError) as e:
            # Process 0's text may have stopped in the middle of a line.
            _end(2, f"\n{sentence(e)}" if isinstance(e, ConnectionError) else sentence(e))
        except KeyboardInterrupt:
            _end(130, "\ninterrupted")
        except (MemoryError, RuntimeError) as e:  # torch has a RuntimeError for it
            if "memory" not in f"{type(e).__name__} {e}".lower():
                raise
            _end(2, f"\nprocess {group.rank()} of {group.size()}: not enough memory ({reason(e)})")


def _end(status: int, why: str) -> NoReturn:
    if group.first_to_say("the end"):
        print(why, file=sys.stderr, flush=True)
    raise SystemExit(0 if group.noted("enough") else status)


@contextmanager
def _ending_when_told() -> Iterator[None]:
    """When torchrun asks this process to end (SIGTERM), end at once, and say why if nobody has.

    A thread listens: Python's own handlers wait until torch comes back, which may be waiting for what is never sent.
    """
    listening, told = socket.socketpair()
    told.setblocking(False)

    def listen() -> None:
        while (number := listening.recv(1)) not in (b"", bytes([signal.SIGTERM])):
            pass  # another signal, which Python takes care of
        if number:
            if group.first_to_say("the end"):
                print("stopped: another process has ended, or somebody asked for it", file=sys.stderr, flush=True)
            else:
                time.sleep(1)  # it may be this one that is about to say why
            os._exit(128 + signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    handler, wakeup = signal.signal(signal.SIGTERM, lambda *_: None), signal.set_wakeup_fd(told.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        told.close()
