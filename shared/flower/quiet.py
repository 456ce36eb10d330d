"""Flower's processes log as all others do: its own set-up, made when it is imported, is undone."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from shared.logs import log_to_stderr


def log_quietly(process: str) -> None:
    """Let this process log to stderr; see `shared.logs.log_to_stderr`.

    Args:
        process: What the process is called in each line.
    """
    flower: Any = import_module("flwr.supercore.logger")
    log_to_stderr(process)
    logger = flower.FLOWER_LOGGER
    # It adds colours, and a time to none of its lines.
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    logger.addFilter(_says_something)
    flower.console_handler.setLevel(logging.WARNING)
    uvicorn: Any = import_module("uvicorn.config")
    uvicorn.LOGGING_CONFIG["loggers"].clear()


def _says_something(record: logging.LogRecord) -> bool:
    """Tell whether a line of Flower's is more than a code, or a node's knock (see `admission`)."""
    text = str(record.msg)
    return not (text.startswith("Exit Code:") or "ActivateNode][ApiError:2003]" in text)
