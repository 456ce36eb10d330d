"""The coordinator's SuperLink: its command line, its processes' environment, its control API."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import CoordinatorError
from shared.flower import QUIET
from shared.flower.bundle import bundle

DATABASE = "superlink.sqlite"
"""The SuperLink's state, in the server's home."""


@dataclass(frozen=True)
class LinkSettings:
    """What a SuperLink needs.

    Attributes:
        home: Folder of its state database.
        fleet: host:port nodes connect to (gRPC, TLS).
        control_port: Loopback port of the control and runtime API (HTTPS).
        certificate: Server certificate (PEM); key and ca beside it.
        key: Server private key (PEM).
        ca: Certificate authority (PEM).
    """

    home: Path
    fleet: str
    control_port: int
    certificate: Path
    key: Path
    ca: Path


def superlink_command(settings: LinkSettings) -> list[str]:
    """Return the command line of a SuperLink: TLS, node authentication, SQLite, no installs.

    It ends with this process, and runs no tasks itself; see `shared.flower.executor`.
    """
    return [
        *(sys.executable, "-P", "-m", "shared.flower.superlink", str(os.getpid())),
        *("--ssl-certfile", str(settings.certificate), "--ssl-keyfile", str(settings.key)),
        *("--ssl-ca-certfile", str(settings.ca), "--enable-supernode-auth"),
        *("--database", str(settings.home / DATABASE)),
        *("--host", "127.0.0.1", "--port", str(settings.control_port)),
        *("--fleet-api-address", settings.fleet, "--fleet-api-type", "grpc-rere"),
        *("--isolation", "process", "--disable-runtime-dependency-installation"),
    ]


def process_environment(home: Path, **extra: str) -> dict[str, str]:
    """Return the environment of a Flower process whose Flower home is `home`/flower."""
    tools = str(Path(sys.executable).parent)
    return {
        **os.environ,
        **QUIET,
        "FLWR_HOME": str(home / "flower"),
        "PATH": tools + os.pathsep + os.environ.get("PATH", ""),
        "PYTHONUNBUFFERED": "1",
        **extra,
    }


@dataclass(frozen=True)
class RunStatus:
    """Flower's view of a run.

    Attributes:
        finished: Whether its process ended.
        outcome: How: "completed", "failed", "stopped"; empty before.
        details: What Flower says about it.
        waits: Whether no process has taken it yet.
    """

    finished: bool
    outcome: str
    details: str
    waits: bool = False


class LinkRefusal(CoordinatorError):
    """The SuperLink refused what its control API was asked.

    Attributes:
        code: Flower's number of the error; 0 if it gave none.
    """

    code: int = 0


class Control:
    """The SuperLink's control API, over HTTPS on loopback only.

    Args:
        port: Its port on 127.0.0.1.
        ca: Certificate authority (PEM) its certificate must come from.
    """

    def __init__(self, port: int, ca: Path) -> None:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        self._client = ControlHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}",
            insecure=False,
            root_certificates=ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def register(self, public_key: bytes, name: str, home: Path | None = None) -> int:
        """Register a node's public key (OpenSSH EC); return its node id.

        Args:
            public_key: The key; the name may stand behind it.
            name: The hospital's.
            home: The server's home, for a key that was registered before and revoked: Flower
                itself would never take it again.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        key = load_ssh_public_key(public_key)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise CoordinatorError("the node's public key is not an elliptic-curve key", name)
        known = public_key_to_bytes(key)
        if home is not None:
            _release_key(home / DATABASE, known)
        request = RegisterNodeRequest(public_key=known, name=name)
        return int(self._call("register a node", self._client.RegisterNode, request).node_id)

    def unregister(self, node: int) -> None:
        """Take a node's registration away; it can no longer connect."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        request = UnregisterNodeRequest(node_id=node)
        self._call("unregister a node", self._client.UnregisterNode, request)

    def start_run(self, run: str, content: bytes | None = None) -> int:
        """Start a run of this release's bundle (or of `content`); return Flower's run id."""
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        content = content or bundle()
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto({"run": run})
        )
        return int(self._call("start the run", self._client.StartRun, request).run_id)

    def stop_run(self, run_id: int) -> None:
        """Stop a run."""
        from flwr.proto.control_pb2 import StopRunRequest

        self._call("stop the run", self._client.StopRun, StopRunRequest(run_id=run_id))

    def run_status(self, run_id: int) -> RunStatus:
        """Return Flower's status of a run."""
        from flwr.common.constant import Status
        from flwr.proto.control_pb2 import ListRunsRequest
        from flwr.supercore.error import ApiErrorCode

        try:
            runs = self._call("show a run", self._client.ListRuns, ListRunsRequest(run_id=run_id))
        except LinkRefusal as refusal:
            if refusal.code == ApiErrorCode.RUN_ID_NOT_FOUND:
                return RunStatus(True, "unknown", "the SuperLink does not know it")
            raise
        status = runs.run_dict[run_id].status
        waits = status.status in (Status.PENDING, Status.STARTING)
        return RunStatus(status.status == Status.FINISHED, status.sub_status, status.details, waits)

    @staticmethod
    def _call(what: str, method: Callable[[Any], Any], request: Any) -> Any:
        import httpx
        from flwr.supercore.error import FlowerError

        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            known = FlowerError.from_json(error.response.text)
            reason = known.message if known else f"HTTP {error.response.status_code}"
            refusal = LinkRefusal(f"the SuperLink refused to {what}: {reason.rstrip('.')}")
            refusal.code = known.code if known else 0
            raise refusal from None
        except httpx.TransportError as error:
            raise CoordinatorError(
                f"the server does not answer: {type(error).__name__}",
                "control API on loopback",
                "Start it with `consilium server start`; if it runs, read its log",
            ) from None


def _release_key(database: Path, public_key: bytes) -> None:
    """Let a key of revoked nodes be registered again: Flower keeps such nodes, each with its key.

    Args:
        database: The SuperLink's.
        public_key: As Flower keeps it (PEM).

    Raises:
        CoordinatorError: The database cannot be changed.
    """
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=10)) as state, state:
            state.execute(
                "UPDATE node SET public_key = public_key || '#' || node_id "
                "WHERE public_key = ? AND status = 'unregistered'",
                (public_key,),
            )
    except sqlite3.Error as error:
        raise CoordinatorError(
            f"cannot change the SuperLink's state: {error}", str(database), "Start the server first"
        ) from None
