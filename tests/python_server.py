"""Forks the processes of ``quick_python`` from one process that has imported what a run needs.

A command then takes a second or two, not the ten seconds that the imports take.
"""

import atexit
import contextlib
import ctypes
import functools
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from conftest import ROOT
from lightning_fabric.utilities.rank_zero import _get_rank, rank_zero_only

QUICK_PYTHON = ROOT / "tests" / "quick_python"
NEW_PYTHON = sys.executable  # tests may change sys.executable
PRELOADED = [
    "train",
    "nem_lightning.training.module",
    "nem_lightning.training.callbacks",
    "nem_lightning.training.loggers",
    "nem_lightning.datamodules",
    "nem_lightning.figures",
    "hydra._internal.core_plugins.basic_sweeper",
    "python_server",
    "preloaded",
]


def forking() -> ForkServerContext:
    """Give a context that forks processes from one process that has imported what a run needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 does not give sys.path to the server
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, ROOT / "tests"])))
        forkserver.ensure_running()
    return context


@functools.cache
def address() -> str:
    """Start the server, once in each process of the tests. Give its socket, for the variable ``QUICK_PYTHON``."""
    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/socket"
    server = forking().Process(target=_serve, args=(path,))
    server.start()
    atexit.register(folder.cleanup)
    atexit.register(server.kill)
    deadline = time.monotonic() + 120
    while not os.path.exists(path):
        assert server.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    return path


def variables() -> dict[str, str]:
    """Give the environment variables that ``quick_python`` needs."""
    return {"QUICK_PYTHON": address(), "NEW_PYTHON": NEW_PYTHON}


def use(patch: pytest.MonkeyPatch) -> None:
    """Make ``sys.executable`` start forked processes."""
    for name, value in variables().items():
        patch.setenv(name, value)
    patch.setattr(sys, "executable", str(QUICK_PYTHON))


def _serve(path: str) -> None:
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the processes that the server forks
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _supervise(connection)
            os._exit(0)
        connection.close()


def _supervise(connection: socket.socket) -> None:
    """Start the requested process, and send its number and its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    request = connection.makefile("rb").read(int.from_bytes(length, "big"))
    process = os.fork()
    if process == 0:
        connection.close()
        arguments, folder, environment = json.loads(request)
        _become(arguments, folder, environment, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{process}\n".encode())
    ended = os.pidfd_open(process)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:  # quick_python was killed
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(arguments: list[str], folder: str, environment: dict[str, str], descriptors: list[int]) -> None:
    """Turn this process into a new Python with these arguments."""
    _die_with_parent()
    os.setsid()
    atexit._clear()  # W&B's exit function, for example, would delete a folder that all forked processes use
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run in the background
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout = os.fdopen(1, "w", 1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing closed the server's standard input
    sys.executable = str(QUICK_PYTHON)  # for the processes that this one starts
    setattr(rank_zero_only, "rank", _get_rank() or 0)  # noqa: B010 (Lightning sets the rank when it is imported)
    installed = [path for path in sys.path if path not in (str(ROOT), str(ROOT / "tests"))]
    named = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, *rest = [each for each in arguments if each != "-u"]
    sys.path[:] = [str(Path(kind).resolve().parent) if kind not in ("-m", "-c") else folder, *named, *installed]
    status = 1
    try:
        if kind == "-c":
            sys.argv = [kind, *rest[1:]]
            exec(rest[0], {"__name__": "__main__"})
        elif kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [kind, *rest]
            runpy.run_path(kind, run_name="__main__")
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # os._exit does not run the exit functions
        sys.stdout.flush()
        os._exit(status)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
