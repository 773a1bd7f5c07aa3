"""On the path of a process that a test starts: it dies at a place, waits at one, or has another clock.

A place is `MODULE:FUNCTION`: before the call, or before the nth one with `*N`, or after it with `+` at the end. At
DIE_AT the process is killed, and its group with it. At WAIT_AT it puts the file `here.PID` into the folder WAIT_IN and
goes on when there is a file `go`. Its clock is off by CLOCK_SHIFT seconds.
"""

import datetime
import functools
import importlib.abc
import os
import pathlib
import signal
import sys
import time


def die():
    os.killpg(0, signal.SIGKILL)


def wait():
    folder = pathlib.Path(os.environ["WAIT_IN"])
    (folder / f"here.{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)


def arm(module, name, number, is_after, act):
    *path, last = name.split(".")
    owner = functools.reduce(getattr, path, module)
    function = getattr(owner, last)
    left = [number]

    @functools.wraps(function)
    def changed(*args, **kwargs):
        left[0] -= 1
        is_now = not left[0]
        if is_now and not is_after:
            act()
        result = function(*args, **kwargs)
        if is_now and is_after:
            act()
        return result

    setattr(owner, last, changed)


class Finder(importlib.abc.MetaPathFinder):
    """Changes a module as soon as it is imported."""

    def __init__(self, name, change):
        self.name, self.change = name, change

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)))
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec


def at(place, act):
    name, _, function = place.partition(":")
    function, is_after = function.removesuffix("+"), function.endswith("+")
    function, _, number = function.partition("*")

    def change(module):
        arm(module, function, int(number or 1), is_after, act)

    if name in sys.modules:
        change(sys.modules[name])
    else:
        sys.meta_path.insert(0, Finder(name, change))


def shift(seconds):
    import time_machine

    time_machine.travel(datetime.timedelta(seconds=seconds), tick=True).start()


for name, act in (("DIE_AT", die), ("WAIT_AT", wait)):
    if name in os.environ:
        at(os.environ[name], act)
if "CLOCK_SHIFT" in os.environ:
    shift(float(os.environ["CLOCK_SHIFT"]))
