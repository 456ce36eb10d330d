"""Runs each message's ClientApp in a process forked from one that has loaded everything.

Flower starts a fresh Python for each message, which imports torch and Opacus anew: seconds of
work for a round of a small model. A fork of a process that has imported them starts at once,
shares their memory, and is just as separate: nothing it does outlives its message.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any


def executor_command(module: str, address: str, node: int) -> list[str]:
    """Return the command line of an executor.

    Args:
        module: Module to run; it loads what tasks need and calls `serve`.
        address: host:port of the node's runtime API on loopback.
        node: Process id of the node; the executor ends when that does.
    """
    # Without -P the working directory comes first on the path: packages found there would run.
    return [sys.executable, "-P", "-m", module, address, str(node)]


def start_executor(module: str, address: str, home: Path) -> subprocess.Popen[bytes]:
    """Start an executor for this process's node, in the site's home."""
    return subprocess.Popen(executor_command(module, address, os.getpid()), cwd=home)


def serve(address: str, node: int) -> None:
    """Take tasks from the node's runtime API and run them until the node ends."""
    superexec: Any = import_module("flwr.supercore.superexec.run_superexec")
    superexec.get_executor = lambda *args, **kwargs: _Forking()
    superexec.run_superexec(runtime_api_address=address, insecure=True, parent_pid=node)


class _Forking:
    """Flower's executor interface by fork; it runs ClientApps and nothing else."""

    def get_eligible_capacity(
        self, supported: set[Any], **unused: Any
    ) -> tuple[set[Any], set[str]]:
        """Offer to run ClientApps only."""
        from flwr.supercore.constant import TaskType

        return supported & {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(self, *args: Any, **unused: Any) -> None:
        """Return at once: a node handles one message at a time anyway."""

    def launch(self, spec: Any) -> Any:
        """Fork; the child runs the task and ends, the parent goes on."""
        from flwr.supercore.constant import TaskType
        from flwr.supercore.superexec.executor.types import LaunchResult

        if spec.task_type != TaskType.CLIENT_APP:
            return LaunchResult.failed("this node runs training tasks only")
        parent = os.getpid()
        if os.fork() == 0:
            _run_task(spec, parent)
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


def _run_task(spec: Any, parent: int) -> None:
    """Run one task in this forked process, and leave the process whatever happens."""
    from flwr.supercore.exit import exit_handler
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    code = 1
    try:
        # The parent's clean-up is the parent's.
        exit_handler.registered_exit_handlers.clear()
        run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            parent_pid=parent,
            runtime_dependency_install=False,
        )
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except Exception:  # noqa: BLE001  (the forked process must not return into the parent's loop)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
