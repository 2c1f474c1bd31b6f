"""The view in a terminal. textual shows it; what there is to see comes from `PANELS`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Footer, OptionList, Static
from textual.widgets.option_list import Option

from areal_core._observe.runs import Run, find_runs, read_run
from areal_core.top._panels import PANELS, banner, head
from areal_core.top._text import Line

_LOOK_S = 0.5
_STYLES = {
    "": "",
    "dim": "dim",
    "strong": "bold",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "bar": "cyan",
    "idle": "bright_black",
    "stage0": "cyan",
    "stage1": "blue",
    "stage2": "magenta",
    "stage3": "bright_black",
    "banner-warn": "black on yellow",
    "banner-bad": "bold white on red",
    "banner-dim": "black on white",
}
_HELP = (
    (
        "Progress",
        "How training rollouts ended: accepted (ok), rejected (rej), failed or timed out (bad), stale.",
    ),
    ("", "Pending (pend), running (run), ended and not taken by the trainer (ready), delivered to it (out)."),
    ("batch", "What the trainer waits for. While it waits for nothing: what is ready for the next batch."),
    ("slots", "Samples that run, of max_concurrent_rollouts."),
    (
        "budget",
        "Trajectories that run + have ended + were delivered at this version, of what staleness allows.",
    ),
    ("staleness", "Of what was delivered, in versions; and how much is allowed."),
    ("lag now", "How many of the rollouts that run began how many versions ago."),
    ("loop lag", "How late the event loop comes. A function that blocks it is named in the log."),
    ("In flight", "How many rollouts have run for how long, and what they are doing."),
    ("Servers", "Generations in flight + those that wait for a slot; the version of the weights."),
    ("Tokens", "Each block of the line is a second, the last one at its end."),
    ("Oldest", "The rollouts that have run for longest."),
    ("", ""),
    ("← →", "The run before, the next run."),
    ("l", "The list of runs."),
    ("? esc", "This, and back."),
    ("q", "Quit."),
)


def watch(runs: Sequence[Run], *, only: bool) -> None:
    """Show *runs* until the user quits; with *only* no others."""
    RunsApp(runs, only=only).run()


def text_of(line: Line) -> Text:
    """Return *line* as textual shows it."""
    return Text.assemble(*((piece.text, _STYLES[piece.style]) for piece in line), no_wrap=True, end="")


class Panel(Widget):
    """One part of the view, as large as it happens to be."""

    def __init__(self, name: str) -> None:
        super().__init__(id=name, classes="panel")
        self.border_title, self._panel = PANELS[name]
        self.run: Run | None = None

    def show(self, run: Run) -> None:
        """Show *run* from now on."""
        self.run = run
        self.refresh()

    def render(self) -> Text:
        """Return what there is to see."""
        if self.run is None:
            return Text()
        lines = self._panel(self.run, self.content_size.width, self.content_size.height)
        return Text("\n").join(map(text_of, lines))


class Bar(Widget):
    """A line at the top: which run it is, or what became of it."""

    def __init__(self, name: str) -> None:
        super().__init__(id=name)
        self.run: Run | None = None

    def show(self, run: Run) -> None:
        """Show *run* from now on."""
        self.run = run
        self.display = self._line() is not None
        self.refresh()

    def _line(self) -> Line | None:
        if self.run is None:
            return None
        return (head if self.id == "head" else banner)(self.run, max(1, self.size.width))

    def render(self) -> Text:
        """Return the line."""
        return text_of(self._line() or [])


class RunScreen(Screen[None]):
    """All there is to see of one run."""

    def __init__(self) -> None:
        super().__init__()
        self._run: Run | None = None

    def on_mount(self) -> None:
        """Show what it was given before it had any parts."""
        if self._run is not None:
            self.show(self._run)

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield Bar("head")
        yield Bar("banner")
        with Horizontal(id="upper"):
            yield Panel("progress")
            yield Panel("in-flight")
        with Horizontal(id="middle"):
            yield Panel("servers")
            yield Panel("tokens")
        yield Panel("stragglers")
        yield Panel("why")
        yield Footer(show_command_palette=False)

    def show(self, run: Run) -> None:
        """Show *run* from now on."""
        self._run = run
        # A line less where nothing is evaluated: on a small screen another part needs it.
        rows = 10 if run.status.snapshot.evaluation.submitted else 9
        for upper in self.query("#upper"):
            upper.styles.height = rows
        for bar in self.query(Bar):
            bar.show(run)
        for panel in self.query(Panel):
            panel.show(run)


class HelpScreen(ModalScreen[None]):
    """What the words and keys mean."""

    BINDINGS = [("escape,question_mark,q", "dismiss", "Back")]  # noqa: RUF012  textual's own way

    def compose(self) -> ComposeResult:
        """Make the text."""
        with VerticalScroll(id="help"):
            table = Table.grid(padding=(0, 2))
            for name, meaning in _HELP:
                table.add_row(Text(name, "bold"), meaning)
            yield Static(table)


class ChoiceScreen(ModalScreen[Path | None]):
    """A list of runs, to choose one from."""

    BINDINGS = [("escape,l", "dismiss", "Back")]  # noqa: RUF012

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__()
        self._runs = runs

    def compose(self) -> ComposeResult:
        """Make the list."""
        choices = OptionList(*(Option(text_of(head(run, 200)), id=str(run.path)) for run in self._runs))
        choices.border_title = "Runs: enter shows one"
        yield choices

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Leave with what was chosen."""
        _ = self.dismiss(Path(event.option.id or ""))


class RunsApp(App[None]):
    """Shows one of the runs, and looks at it again twice a second."""

    TITLE = "areal_core"
    ENABLE_COMMAND_PALETTE = False
    CSS_PATH = "_app.tcss"
    VERTICAL_BREAKPOINTS = [(0, "-low"), (34, "-high")]  # noqa: RUF012
    BINDINGS = [  # noqa: RUF012
        Binding("q", "quit", "Quit"),
        Binding("left", "step(-1)", "Run before", priority=True),
        Binding("right", "step(1)", "Next run", priority=True),
        Binding("l", "choose", "List"),
        Binding("question_mark", "help", "Help"),
    ]

    def __init__(self, runs: Sequence[Run], *, only: bool) -> None:
        super().__init__()
        self._runs = list(runs)
        self._only = only
        self._shown = self._runs[0].path
        self._view = RunScreen()

    def get_default_screen(self) -> Screen[None]:
        """Return what is shown at first."""
        return self._view

    async def on_mount(self) -> None:
        """Begin to look."""
        self._look()
        self.set_interval(_LOOK_S, self._look)
        if len(self._runs) > 1 and not self._only:
            await self.action_choose()

    def on_resize(self) -> None:
        """Show what there is room for now."""
        self.call_after_refresh(self._show)

    def action_step(self, by: int) -> None:
        """Show the run *by* places further on in the list."""
        paths = [run.path for run in self._runs]
        place = paths.index(self._shown) if self._shown in paths else 0
        self._shown = paths[(place + by) % len(paths)]
        self._look()

    async def action_choose(self) -> None:
        """Show the list of runs."""
        if not isinstance(self.screen, ChoiceScreen):
            await self.push_screen(ChoiceScreen(self._runs), self._choose)

    async def action_help(self) -> None:
        """Say what words and keys mean."""
        if not isinstance(self.screen, HelpScreen):
            await self.push_screen(HelpScreen())

    def _choose(self, path: Path | None) -> None:
        if path is not None:
            self._shown = path
            self._look()

    def _look(self) -> None:
        """Read the files anew. One that is gone leaves what it said last."""
        if not self._only:
            known = {run.path: run for run in find_runs()}
            self._runs = [*known.values(), *(run for run in self._runs if run.path not in known)]
        self._runs = [_read_again(run) for run in self._runs]
        self._show()

    def _show(self) -> None:
        run = next((run for run in self._runs if run.path == self._shown), self._runs[0])
        self._view.show(run)


def _read_again(run: Run) -> Run:
    with contextlib.suppress(OSError, ValueError):
        return read_run(run.path)
    return run
