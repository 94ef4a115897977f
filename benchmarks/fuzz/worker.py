"""A process that reads cases, with little memory and under watch: what it opens, starts and connects to."""

from __future__ import annotations

import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from targets import TARGETS

from l0prune.errors import L0PruneError

__all__ = ["serve"]

LONGEST = 300  # characters of a message, the path of the case not counted
MOST_SECONDS = 8.0  # of processor time for a case
MEMORY = 2 << 30  # bytes a case may take beyond what the process has
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "ctypes.dlopen")
CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod")


class Watch:
    """Notes what a case does beyond reading; asks nobody's leave, as an audit hook of Python."""

    def __init__(self) -> None:
        self.allowed = ""
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """See one event."""
        if not self.allowed:
            return
        if event == "open" and isinstance(args[0], str | bytes):
            mode, flags = str(args[1] or ""), int(args[2] or 0)
            if set(mode) & set("wax+") or flags & WRITING:
                self._note(event, os.fsdecode(args[0]))
        elif event in CHANGING:
            self._note(event, str(args[0]))
        elif event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {args!r:.200}")

    def _note(self, event: str, path: str) -> None:
        if not Path(path).absolute().is_relative_to(self.allowed) and path != os.devnull:
            self.seen.append(f"{event} {path}")


def serve(connection: Connection) -> None:
    """Answer each (target, folder) with (kind of finding or "", its text, processor seconds) until None comes."""
    sys.dont_write_bytecode = True
    _limit_memory()
    watch = Watch()
    sys.addaudithook(watch)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    while (case := connection.recv()) is not None:
        target, folder = case
        watch.allowed, watch.seen = str(folder.parent), []
        start = time.process_time()
        kind, text = _outcome(target, folder)
        seconds = time.process_time() - start
        watch.allowed = ""
        if watch.seen:
            kind, text = "writes", "; ".join(watch.seen)
        elif not kind and seconds > MOST_SECONDS:
            kind, text = "slow", f"{seconds:.1f} s"
        connection.send((kind, text, seconds))


def _outcome(target: str, folder: Path) -> tuple[str, str]:
    """What is wrong with how a case ends; two empty texts where it is read, or refused in one short line."""
    try:
        TARGETS[target](folder)
    except L0PruneError as error:
        text = str(error)
        problem = (
            "no line" if "\n" in text or not text.strip()
            else "long" if len(text) - len(str(folder)) > LONGEST + 60
            else "nameless" if str(folder) not in text and "run.json" not in text
            else ""
        )  # fmt: skip
        return (f"message: {problem}", text[:2000]) if problem else ("", "")
    except BaseException as error:  # noqa: BLE001 - the finding
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "l0prune" in frame.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return f"{type(error).__name__} at {where}", "".join(traceback.format_exception(error))[-3000:]
    return "", ""


def _limit_memory() -> None:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        return  # a system without such a limit
