"""Runs each Flower task in a process forked from one that has loaded everything.

Flower starts a fresh Python for each task, which imports torch and Opacus anew: seconds of work
for a round of a small model. A fork of a process that has imported them starts at once, shares
their memory, and is just as separate: nothing it does outlives its task. Nor does the task's
token stand on a command line, where every user of the machine could read it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from queue import Queue
from typing import Any


def executor_command(module: str, address: str, parent: int, *more: str) -> list[str]:
    """Return the command line of an executor.

    Args:
        module: Module to run; it loads what tasks need and serves.
        address: host:port of the runtime API on loopback.
        parent: Id of the process it belongs to; the executor ends when that does.
        more: Further arguments of the module.
    """
    # Without -P the working directory comes first on the path: packages found there would run.
    return [sys.executable, "-P", "-m", module, address, str(parent), *more]


def serve_node(address: str, node: int) -> None:
    """Take ClientApp tasks from a node's runtime API and run them until the node ends."""
    from flwr.supercore.constant import TaskType

    _serve(_Forking(TaskType.CLIENT_APP, _run_clientapp), address, node, None)


def serve_link(address: str, parent: int, ca: Path) -> None:
    """Take ServerApp tasks from the SuperLink's runtime API and run them until `parent` ends.

    Args:
        address: host:port of the runtime API on loopback (HTTPS).
        parent: Id of the process that supervises it.
        ca: PEM file of the certificate authority.
    """
    from flwr.supercore.constant import TaskType

    _serve(_Forking(TaskType.SERVER_APP, _run_serverapp), address, parent, ca)


def _serve(executor: _Forking, address: str, parent: int, ca: Path | None) -> None:
    superexec: Any = import_module("flwr.supercore.superexec.run_superexec")
    superexec.get_executor = lambda *args, **kwargs: executor
    superexec.run_superexec(
        runtime_api_address=address,
        insecure=ca is None,
        root_certificates_path=None if ca is None else str(ca),
        parent_pid=parent,
    )


class _Forking:
    """Flower's executor interface by fork, for tasks of one type and nothing else."""

    def __init__(self, task_type: Any, run: Callable[[Any, int], None]) -> None:
        self._task_type, self._run = task_type, run

    def get_eligible_capacity(
        self, supported: set[Any], **unused: Any
    ) -> tuple[set[Any], set[str]]:
        """Offer to run tasks of the one type."""
        return supported & {self._task_type}, set()

    def wait_for_capacity(self, *args: Any, **unused: Any) -> None:
        """Return at once: nothing is gained by waiting."""

    def launch(self, spec: Any) -> Any:
        """Fork; the child runs the task and ends, the parent goes on."""
        from flwr.supercore.superexec.executor.types import LaunchResult

        if spec.task_type != self._task_type:
            return LaunchResult.failed(f"only tasks of type {self._task_type} run here")
        parent = os.getpid()
        if os.fork() == 0:
            self._run_and_leave(spec, parent)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Collect children that have ended."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return

    def close(self) -> None:
        """Hold nothing."""

    def _run_and_leave(self, spec: Any, parent: int) -> None:
        """Run one task in this forked process, and leave the process whatever happens."""
        from flwr.supercore.exit import exit_handler

        code = 1
        try:
            # The parent's clean-up is the parent's.
            exit_handler.registered_exit_handlers.clear()
            self._run(spec, parent)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except Exception:  # noqa: BLE001  (the fork must not return into the parent's loop)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _run_clientapp(spec: Any, parent: int) -> None:
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    run_clientapp(
        runtime_api_address=spec.runtime_api_address,
        token=spec.token,
        insecure=spec.insecure,
        parent_pid=parent,
        runtime_dependency_install=False,
    )


def _run_serverapp(spec: Any, parent: int) -> None:
    from flwr.superlink.runtime.run_serverapp import run_serverapp

    run_serverapp(
        runtime_api_address=spec.runtime_api_address,
        log_queue=Queue(),  # nothing is put in: what a run has to say is in its folder
        token=spec.token,
        insecure=spec.insecure,
        certificates=Path(spec.root_certificates_path).read_bytes(),
        parent_pid=parent,
        runtime_dependency_install=False,
    )
