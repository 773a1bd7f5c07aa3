"""The process that asks the registry: MLflow takes more memory than the detector, and is gone when it isn't needed.

Each question on stdin is the name of one of the registry's methods with its arguments; each answer on stdout is a line
of JSON. It ends with stdin.
"""

import contextlib
import json
import os
import pickle
import signal
import sys
from typing import Any

from components import stage, tracking
from components.register.registry import Registry
from components.stage import StageError


class Unanswered(StageError):
    """The registry or this machine's disk was in the way, which says nothing of a version."""


def main() -> None:
    """Answer until there are no more questions."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    registry = None
    gone = contextlib.suppress(EOFError, BrokenPipeError)
    with gone, os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)  # whatever a library prints
        name = pickle.load(sys.stdin.buffer)
        while True:
            question, *arguments = pickle.load(sys.stdin.buffer)
            try:
                registry = registry or Registry(name)
                said = [None, answer(registry, question, *arguments)]
            except StageError as error:
                said = [type(error).__name__, str(error)]
            out.write(json.dumps(said, default=str) + "\n")
    os._exit(0)  # threads of MLflow's are not waited for


def answer(registry: Registry, question: str, *arguments: Any) -> Any:
    """What the registry says.

    Raises:
        Unanswered: another time it may answer.
        StageError: it says no.
    """
    try:
        return getattr(registry, question)(*arguments)
    except Exception as error:
        said = str(error) if isinstance(error, StageError) else tracking.line(error)
        raise (Unanswered if _passes(error) else StageError)(said) from None


def read(line: str) -> Any:
    """The answer of a line that `main` wrote; raises as `answer` does."""
    kind, said = json.loads(line)
    if kind:
        raise (Unanswered if kind == Unanswered.__name__ else StageError)(said)
    return said


def _passes(error: BaseException | None) -> bool:
    if not isinstance(error, StageError):
        return True
    while error := error.__context__:
        if isinstance(error, Exception) and (tracking.is_outage(error) or stage.is_full(error)):
            return True
    return False


if __name__ == "__main__":
    main()
