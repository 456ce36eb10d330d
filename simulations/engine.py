"""Runs a federation of simulated hospitals: the deployment's apps on Flower's simulation engine."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from client.hospital import Hospital
from server.exchange import Patience
from server.files import write_atomically
from shared.errors import SimulationError
from shared.models import build_model, get_weights, initial_weights
from shared.models.layers import draw_weights
from shared.protocol import Reply
from shared.study import Study
from shared.transport import Weights
from simulations.behaviour import ActingTransport, Course, check_behaviour
from simulations.behaviour_plan import Behaviour
from simulations.hospital import SCENE, SITES_LOG, Cast, Scene, SimulatedSite, site_id
from simulations.limits import free_bytes, free_cores
from simulations.stage import write_stage

if TYPE_CHECKING:
    from shared.flower.simulation import Executor
    from shared.flower.workers import Workers, WorkerSettings
    from simulations.build import Federation, SiteData

SCRATCH = "simulation"
"""Folder in a run's that is removed when the run is done."""

WORKER_BYTES = 1024 * 2**20
"""Memory counted for each worker process; most of it is PyTorch."""

SPARE_BYTES = 2 * 2**30
"""Memory left to everything else when counting workers."""


@dataclass(frozen=True)
class Resources:
    """What simulations may use; the results do not depend on it, on CPUs to the last bit.

    Attributes:
        cpus_per_client: Of each worker process, which does one site's work at a time.
        gpus_per_client: Of each; 0.5 lets two share a GPU. With 0 sites compute on the CPU.
        ray_address: Of a running Ray cluster; every machine of it must see the run's folder.
        workers: Worker processes on this machine; 0: as many as CPUs and memory allow.
        engine: "ray", or "local": one site after the other in this process.
    """

    cpus_per_client: float = 1.0
    gpus_per_client: float = 0.0
    ray_address: str = ""
    workers: int = 0
    engine: Literal["ray", "local"] = "ray"


ONE_MACHINE = Resources()
NOTHING_SPECIAL = Behaviour()


def simulate(
    federation: Federation,
    study: Study,
    run_dir: Path,
    *,
    seed: int,
    behaviour: Behaviour = NOTHING_SPECIAL,
    resources: Resources = ONE_MACHINE,
    on_round: Callable[[int], None] | None = None,
    inspect: Callable[[Mapping[str, Hospital]], None] | None = None,
) -> None:
    """Run a study on a federation, or take it up after its last checkpoint.

    The ClientApp, the ServerApp and the hospitals' ledgers, outboxes and approvals are those of
    a deployment. What differs: where the patients come from; randomness, which follows from the
    seed, so that nothing is private; time, which does not pass while sites compute; the initial
    weights, which follow from the seed and the model alone; and a policy that allows everything.
    `seconds` in the metrics are simulated ones.

    The same seed gives the same model to the last bit on CPUs, however many workers there are,
    in whatever order they end, and whether or not the run was killed on the way. A round that
    was cut short is done again from the hospitals' state before it. Where that state is lost
    (it is in memory, after a restart of the machine) or cannot be gone on with (on a cluster,
    whose other machines do not see it; on a GPU what was begun on a CPU), the run begins anew.
    So does one that failed, of which nothing is left.

    Federations of one site run in this process; Ray is started for the first larger one, and
    stays until the process ends. Call this from the main thread.

    Args:
        federation: The hospitals.
        study: The plan; `federation.sites` should be their number.
        run_dir: New, empty, or of this simulation; left as a coordinator's run folder.
        seed: Of everything random.
        behaviour: What sites do over the rounds.
        resources: What may be used.
        on_round: Told how many rounds of training are done.
        inspect: Given the hospitals by id at the end, for what never leaves them; those that
            were never asked are not among them. Their folders are removed afterwards.

    Raises:
        SimulationError: The behaviour lets a round fail, Ray is missing, the folder is of
            something else, or the program of a hospital failed.
        CoordinatorError: A round failed.
    """
    check_behaviour(behaviour, len(federation.sites), study, seed)
    if (run_dir / "model-card.json").exists() and not (run_dir / SCRATCH).exists():
        return
    scene = _prepare(federation, study, run_dir, seed, resources)
    course = Course(behaviour, len(federation.sites), seed)
    try:
        with _executor(len(federation.sites), resources) as executor:
            _run(scene, run_dir, course, executor, on_round)
        if inspect:
            inspect(Cast(scene).at_the_end())
    except Exception:
        for left in (scene.homes, run_dir):
            shutil.rmtree(left, ignore_errors=True)
        raise
    shutil.rmtree(scene.homes, ignore_errors=True)
    shutil.rmtree(run_dir / SCRATCH)


def close_workers() -> None:
    """End the worker processes, if any; the next simulation starts them again."""
    while _workers:
        _workers.popitem()[1].close()


_workers: dict[WorkerSettings, Workers] = {}
"""The worker processes of this process: Ray can be started once at a time."""


def _run(
    scene: Scene,
    run_dir: Path,
    course: Course,
    executor: Executor,
    on_round: Callable[[int], None] | None,
) -> None:
    """Run the ServerApp, which finds everything in the run's folder."""
    from flwr.app import Context
    from flwr.serverapp import Grid

    from server.app import Desk, make_app
    from shared.flower.simulation import SimulationGrid, run_server
    from shared.flower.wire import GridTransport

    plan, folder = scene.study.federation, run_dir / SCRATCH
    # Large sites are asked first, so that no worker is left with one at the end of a round.
    by_size = sorted(
        range(len(scene.sites)), key=lambda number: -scene.sites[number].sides.train.images
    )
    names = {str(number + 1): site_id(number) for number in by_size}
    write_atomically(run_dir / "study.json", scene.study.canonical().encode())
    write_atomically(run_dir / "sites.json", json.dumps(names, indent=1).encode())

    config = {"folder": str(folder), "stamp": secrets.token_hex(8)}
    grid = SimulationGrid(executor, len(scene.sites), config)
    nodes = {node: node - 1 for node in grid.get_node_ids()}
    transport = ActingTransport(
        GridTransport(grid), grid, course, nodes, plan.rounds, partial(_check_sound, scene)
    )

    def begin(number: int) -> None:
        transport.begin(number)
        if on_round and number:
            on_round(number - 1)

    def open_desk(_: Grid, context: Context) -> Desk:
        return Desk(
            run_dir,
            folder / "server",
            transport,
            initial=partial(_initial, scene.seed),
            clock=transport.clock(),
            patience=Patience(poll=min(plan.round_deadline, plan.start_deadline) / 20, attempts=1),
            on_round=begin,
        )

    run_server(make_app(open_desk), grid)


FAULTS = ("site-attention", "internal-error")
"""Codes of a hospital whose program fails, or whose data do: a simulated one's are as they are."""


def _check_sound(scene: Scene, site: int, reply: Reply) -> None:
    """Refuse to go on with a hospital whose program fails.

    At a real one that is the hospital's trouble, and the others go on without it. Here it is the
    simulation's own, and would be taken for what the federation is like.

    Raises:
        SimulationError: It did; what its log says is a note of the error.
    """
    if reply.refusal is not None and reply.refusal.code in FAULTS:
        error = SimulationError(
            f"the program of {scene.sites[site].name} failed in round {reply.round}",
            todo="If the data are as they should be, report it as a bug",
        )
        # Nothing is left of a run that failed, so what the hospital wrote goes with the error.
        error.add_note((scene.data / SITES_LOG).read_text())
        raise error


def _initial(seed: int, study: Study) -> Weights:
    """Return first weights that are the same for all studies of a model, and differ by seed."""
    model = build_model(study)
    draw_weights(model, f"{study.model_digest} seed {seed}")
    return get_weights(model)


def _prepare(
    federation: Federation, study: Study, run_dir: Path, seed: int, resources: Resources
) -> Scene:
    """Set the scene, or return the one that is there, if it can be gone on with here."""
    folder, device = run_dir / SCRATCH, "cuda" if resources.gpus_per_client else "cpu"
    if (folder / SCENE).exists():
        scene = Scene.model_validate_json((folder / SCENE).read_bytes())
        if (scene.seed, scene.study) != (seed, study):
            raise SimulationError(
                "the folder holds a run of another study or seed", str(run_dir), "Use a new one"
            )
        # Other machines of a cluster do not see this one's memory.
        seen = not resources.ray_address or scene.homes.is_relative_to(folder.resolve())
        if seen and scene.device == device and scene.homes.exists():
            return scene
        shutil.rmtree(scene.homes, ignore_errors=True)
    elif run_dir.exists() and any(run_dir.iterdir()) and not folder.exists():
        raise SimulationError("the folder of the run is not empty", str(run_dir), "Use a new one")
    if run_dir.exists():
        shutil.rmtree(run_dir)
    (folder / "server").mkdir(parents=True)
    sides = write_stage(folder, federation, study)
    scene = Scene(
        study=study,
        seed=seed,
        data=folder.resolve(),
        homes=_make_homes(folder.resolve(), study, len(sides), shared=bool(resources.ray_address)),
        server_key=(folder / "server" / "server.pub").resolve(),
        device=device,
        sites=tuple(
            SimulatedSite(name=site.name, patients=size_to_declare(site, study), sides=own)
            for site, own in zip(federation.sites, sides, strict=True)
        ),
    )
    write_atomically(folder / SCENE, scene.model_dump_json().encode())
    return scene


def size_to_declare(site: SiteData, study: Study) -> int:
    """Return the size from which the patients that a site trains on follow as a study has it.

    A scenario holds out what it likes, and a study that drops incomplete patients may leave few.
    """
    train = site.train
    if study.table is not None and study.table.missing == "drop":
        train = train.take(np.flatnonzero(~np.isnan(train.images).any(axis=1)))
    return max(1, round(len(train) / (1 - study.data.held_out)))


_MEMORY = Path("/dev/shm")  # noqa: S108  (the folder made there is private)
_HOMES = "consilium-sites-"


def _make_homes(folder: Path, study: Study, sites: int, *, shared: bool) -> Path:
    """Make the folder of the hospitals' homes: in memory where there is room.

    Ledgers, outboxes and logs wait for the disk at every step, a dozen times a round, and a
    simulated hospital has nothing to lose. On a cluster the homes are in the run's folder.
    """
    weights = sum(array.nbytes for array in initial_weights(study).values())
    needed = sites * (2**20 + 8 * weights)
    if shared or not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < 4 * needed:
        homes = folder / "homes"
        homes.mkdir()
        return homes
    for left in _MEMORY.glob(f"{_HOMES}*/owner"):
        with contextlib.suppress(OSError):  # another user's, or just being removed
            owner = Path(left.read_text())
            if owner == folder or not owner.exists():
                shutil.rmtree(left.parent)
    homes = Path(tempfile.mkdtemp(prefix=_HOMES, dir=_MEMORY))
    (homes / "owner").write_text(str(folder))
    return homes


@contextlib.contextmanager
def _executor(sites: int, resources: Resources) -> Iterator[Executor]:
    """Give what runs the sites' messages."""
    if sites == 1 or resources.engine == "local":
        from shared.flower.simulation import InProcess
        from simulations.apps import load_app

        threads = torch.get_num_threads()
        try:
            yield InProcess(load_app())
        finally:
            torch.set_num_threads(threads)
        return
    workers = _open_workers(resources)
    try:
        yield workers
    except BaseException:
        if workers.busy:  # cut short: what is still being computed must not meet the next run
            close_workers()
        raise


def _open_workers(resources: Resources) -> Workers:
    """Return the worker processes, started now unless they run already."""
    from shared.flower.workers import Workers, WorkerSettings
    from simulations.apps import load_app

    settings = WorkerSettings(
        workers=resources.workers or _count_workers(resources.cpus_per_client),
        cpus=resources.cpus_per_client,
        gpus=resources.gpus_per_client,
        address=resources.ray_address,
    )
    if settings not in _workers:
        close_workers()
        _workers[settings] = Workers(settings, load_app)
    return _workers[settings]


def _count_workers(cpus: float) -> int:
    """Return how many workers the processors and the free memory allow; at least one."""
    allowed = free_cores() / cpus, (free_bytes() - SPARE_BYTES) / WORKER_BYTES
    return max(1, int(min(allowed)))
