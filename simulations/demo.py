"""The main job on one machine: hospitals as real processes, real TLS, real DICOM, real privacy.

Nothing is simulated except that the hospitals share a machine and their images are made up
(or come from a file the user names).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from server.home import ServerHome
from shared.errors import CoordinatorError
from shared.study import Study
from simulations.demo_options import DemoOptions
from simulations.demo_results import finish
from simulations.demo_sites import make_images, start_hospitals
from simulations.demo_study import demo_study
from simulations.processes import Processes, signals_as_interrupts

if TYPE_CHECKING:
    from server.link import Start

RUN = "demo"


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the main job from images to report; return the exit code.

    Raises:
        ConsiliumError: Anything the user can act on; everything started has been ended.
    """
    started = time.monotonic()
    demo_study(options, ("no", "yes"), 28, 1)  # wrong options are refused before anything starts
    out = _new_folder(options.out)
    work = out / "work"
    _say_mode(options, console)
    with signals_as_interrupts() as interrupts, Processes() as processes:
        try:
            folders, notes = make_images(options, work / "images", console)
            images = folders[0]
            study = demo_study(options, images.classes, images.size, images.channels)
            home = _start_server(work / "server", processes.start, console)
            hospitals = start_hospitals(options, folders, work, home, study, processes, console)
            _train(home, study, hospitals, processes.dead, interrupts.check, console)
        except KeyboardInterrupt:
            processes.stop()
            console.print(f"Stopped. Everything started was ended; what there is lies in {out}.")
            return 130

    finish(options, out, home.run_folder(RUN), study, folders, work, notes, console)
    console.print(f"Took {time.monotonic() - started:.0f} s.")
    return 0


def _start_server(folder: Path, start: Start, console: Console) -> ServerHome:
    from client.node import free_port
    from server.link import start_server

    home = ServerHome.create(folder, f"127.0.0.1:{free_port()}", free_port(), ["localhost"])

    start_server(home, start)
    console.print(f"Server: SuperLink on {home.settings.fleet} (gRPC, TLS, node keys).")
    return home


def _train(
    home: ServerHome,
    study: Study,
    hospitals: list[str],
    dead: Callable[[], list[str]],
    check: Callable[[], None],
    console: Console,
) -> None:
    """Start the run and follow it to its end, or until `check` raises."""
    from server.link import control, last_line
    from server.live import LiveView

    folder = home.create_run(RUN, study)
    api = control(home)
    run_id = api.start_run(RUN)
    checked = time.monotonic()
    with LiveView(folder, study, hospitals, console) as view:
        while not view.state.finished:
            check()
            view.refresh()
            if view.state.error:
                raise CoordinatorError(view.state.error, str(folder / "events.jsonl"))
            if gone := dead():
                log = home.path.parent / gone[0] / "node.log"
                raise CoordinatorError(f"{gone[0]} ended: {last_line(log)}", str(log))
            if time.monotonic() - checked > 2:
                checked = time.monotonic()
                status = api.run_status(run_id)
                if status.finished and not _finished(folder):
                    raise CoordinatorError(f"the run ended: {status.details}", str(folder))
            time.sleep(0.2)
        view.refresh()


def _finished(folder: Path) -> bool:
    return '"run-finished"' in (folder / "events.jsonl").read_text()


def _new_folder(wanted: Path | None) -> Path:
    """Make the output folder; without a wish, the first free `consilium-demo[-N]`."""
    candidates = [wanted] if wanted else _numbered(Path("consilium-demo"))
    for folder in candidates:
        try:
            folder.mkdir(parents=True)
            return folder.resolve()
        except FileExistsError:
            if wanted and wanted.is_dir() and not any(wanted.iterdir()):
                return wanted.resolve()
        except OSError as error:
            raise CoordinatorError(
                f"cannot make the output folder: {error.strerror}",
                str(folder),
                "Give another --out",
            ) from None
    raise CoordinatorError(
        "the output folder is in use", str(wanted), "Give another --out, or remove it"
    )


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    for number in range(2, 10_000):
        yield base.with_name(f"{base.name}-{number}")


def _say_mode(options: DemoOptions, console: Console) -> None:
    if options.private:
        console.print(
            f"Privacy: each hospital spends at most epsilon {options.epsilon:g} per patient "
            "over the whole run."
        )
    else:
        console.print(
            "[bold red]No differential privacy: the weights each hospital sends are computed "
            "from its images without noise. Whoever sees them can find out who was in the data "
            "and may rebuild images. Never do this with real patients without another legal "
            "basis.[/bold red]"
        )
