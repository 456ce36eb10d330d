"""The hospital's SuperNode, guarded: it takes this release's bundle and no other."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from shared.errors import SiteError
from shared.flower.bundle import is_accepted
from shared.flower.executor import executor_command

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


@dataclass(frozen=True)
class NodeSettings:
    """What a guarded SuperNode needs.

    Attributes:
        home: The site's home; handed to the ClientApp as node configuration `home`.
        server: host:port of the coordinator's Fleet API.
        ca: PEM file of the coordinator's certificate authority.
        key: The node's private key (OpenSSH EC P-384).
        port: Loopback port of the node's own runtime API.
        executor: Module that runs the node's tasks (see `shared.flower.executor`).
        on_contact: Called whenever the server has answered, about once a second.
    """

    home: Path
    server: str
    ca: Path
    key: Path
    port: int
    executor: str
    on_contact: Callable[[], None] = lambda: None


def run_node(settings: NodeSettings, on_refusal: Callable[[int, str], None]) -> None:
    """Run a SuperNode until it is stopped; only this release's bundle is accepted.

    Args:
        settings: Addresses and keys.
        on_refusal: Called with run id and reason for every refused bundle or task.

    Raises:
        SiteError: The key is not an OpenSSH EC key, or a file cannot be read.
    """
    # Read when Flower is imported, here and in the executor: all that it writes is in the home.
    os.environ["FLWR_HOME"] = str(settings.home.resolve() / "flower")
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.nodestate import NodeStateFactory

    key = read_node_key(settings.key)
    try:
        ca = settings.ca.read_bytes()
    except OSError as error:
        raise SiteError(f"cannot read a file: {error.strerror}", str(settings.ca)) from None
    # By name: the packages re-export functions under the modules' own names.
    cli: Any = import_module("flwr.supernode.cli.flower_supernode")
    supernode: Any = import_module("flwr.supernode.start_client_internal")
    guard = _Guard(on_refusal, settings.on_contact)
    supernode.grpc_request_response = guard.wrap(supernode.grpc_request_response)
    factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    config = cli.SuperNodeLifespanConfig(
        server_address=settings.server,
        transport="grpc-rere",
        root_certificates=ca,
        insecure=False,
        authentication_keys=(key, key.public_key()),
        max_retries=None,
        max_wait_time=None,
        node_config={"home": str(settings.home.resolve())},
        isolation="process",
        runtime_certificates=None,
        runtime_root_certificates_path=None,
        health_server_address=None,
        trusted_entities=guard.trusted_entities,
        superexec_auth_secret=None,
        runtime_dependency_install=False,
        host="127.0.0.1",
        port=settings.port,
        runtime_ssl_certfile=None,
        runtime_ssl_keyfile=None,
    )
    http_server, http_thread = cli._start_supernode_http_api(config, factory)

    def stop_http() -> None:
        http_server.should_exit = True
        http_thread.join(timeout=2)

    cli.add_exit_handler(stop_http)
    address = f"127.0.0.1:{settings.port}"
    executor = subprocess.Popen(
        executor_command(settings.executor, address, os.getpid()),
        cwd=settings.home.resolve(),
        stdout=subprocess.DEVNULL,  # what matters is logged, to stderr
    )
    cli.add_exit_handler(_end_with(executor))
    supernode.start_client_internal(
        state_factory=factory,
        server_address=config.server_address,
        transport=config.transport,
        root_certificates=config.root_certificates,
        insecure=config.insecure,
        authentication_keys=config.authentication_keys,
        node_config=config.node_config,
        isolation=config.isolation,
        runtime_api_address=f"{config.host}:{config.port}",
        trusted_entities=config.trusted_entities,
        runtime_dependency_install=False,
    )


def _end_with(executor: subprocess.Popen[bytes]) -> Callable[[], None]:
    """End the node when its executor ends, which nothing else would notice; return how to stop.

    A node without one would take messages and never answer; its service starts it anew.
    """
    stopping = Event()

    def watch() -> None:
        code = executor.wait()
        if not stopping.is_set():
            logging.getLogger("consilium").error("the training process ended (%d)", code)
            os.kill(os.getpid(), signal.SIGTERM)

    def stop() -> None:
        stopping.set()
        executor.terminate()

    Thread(target=watch, daemon=True).start()
    return stop


def read_node_key(path: Path) -> EllipticCurvePrivateKey:
    """Read a node's private key.

    Raises:
        SiteError: It cannot be read, or is not an OpenSSH EC key.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise SiteError(f"cannot read the node's key: {error.strerror}", str(path)) from None
    except ValueError:
        raise SiteError("the node's key is not an OpenSSH private key", str(path)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SiteError("the node's key is not an elliptic-curve key", str(path))
    return key


class _Guard:
    """Vouches to Flower's own bundle verification for this release's bundle and no other.

    Flower verifies a bundle's signature against "trusted entities" before anything is unpacked,
    and answers with an error reply when that fails. The guard is the only trusted entity: it
    makes a key for the life of the process and signs exactly the bundle whose bytes have the
    digest of the installed release. Whatever signatures the server sent are thrown away.
    """

    def __init__(
        self, on_refusal: Callable[[int, str], None], on_contact: Callable[[], None]
    ) -> None:
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = ed25519.Ed25519PrivateKey.generate()
        self._on_refusal, self._on_contact = on_refusal, on_contact
        self._foreign_tasks: set[int] = set()
        public = self._key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        self.trusted_entities = {"consilium": public.decode()}

    def wrap(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        """Return Flower's connection factory with guarded `get_run` and `get_fab`."""

        @contextmanager
        def guarded(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
            with connect(*args, **kwargs) as connection:
                node, receive, send, get_run, get_fab, *rest = connection
                yield (
                    node,
                    lambda: _ask_often(receive, self._on_contact),
                    send,
                    lambda run_id: self.check_run(run_id, get_run(run_id)),
                    lambda digest, run_id: self.check_bundle(run_id, get_fab(digest, run_id)),
                    *rest,
                )

        return guarded

    def check_run(self, run_id: int, run: Any) -> Any:
        """Drop the server's run configuration; mark runs that are not ClientApp tasks."""
        from flwr.supercore.constant import TaskType

        if run.primary_task_type not in ("", TaskType.SERVER_APP):
            self._foreign_tasks.add(run_id)
        return replace(run, override_config={})

    def check_bundle(self, run_id: int, fab: Any) -> Any:
        """Sign the bundle if it is this release's own or one alike; else strip every signature."""
        if run_id in self._foreign_tasks:
            return self._refuse(run_id, fab, "the task is not a training task")
        if not is_accepted(fab.content):
            return self._refuse(run_id, fab, "the bundle is not the one of this release")
        return replace(fab, verifications=self._sign(fab.content))

    def _sign(self, content: bytes) -> dict[str, str]:
        from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign

        signed = create_message_to_sign(hashlib.sha256(content).digest(), 0)
        signature = base64.urlsafe_b64encode(self._key.sign(signed)).decode()
        record = json.dumps({"signed_at": 0, "signature": signature})
        return {"valid_license": "consilium", "consilium": record}

    def _refuse(self, run_id: int, fab: Any, reason: str) -> Any:
        self._on_refusal(run_id, reason)
        return replace(fab, verifications={})


def _ask_often(receive: Callable[[], Any], on_contact: Callable[[], None]) -> Any:
    """Ask for a message each second for a while; Flower itself asks every three seconds."""
    for _ in range(15):
        received = receive()
        on_contact()
        if received is not None:
            return received
        time.sleep(1)
    return None
