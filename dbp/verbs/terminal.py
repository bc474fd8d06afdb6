"""Terminals and locales of any encoding: what is printed, and how files are read."""

import codecs
import io
import locale
import os
import sys


def print_anywhere() -> None:
    """Print characters that the terminal's encoding lacks as escapes: captions, uids and units hold any."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test may have put something else there
            stream.reconfigure(errors="backslashreplace")


def read_utf8() -> None:
    """Start over in Python's UTF-8 mode where the locale has another encoding: all our files are UTF-8."""
    if codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        terminal = os.environ.get("PYTHONIOENCODING") or f"{sys.stdout.encoding}:backslashreplace"
        os.environ.update(PYTHONUTF8="1", PYTHONIOENCODING=terminal)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
