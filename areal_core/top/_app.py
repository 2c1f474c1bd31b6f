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
from areal_core.top._help import HELP
from areal_core.top._panels import PANELS, banner, head
from areal_core.top._text import Line

_LOOK_S = 0.5
_HIGH = 34
_MOST_SERVERS = {False: 4, True: 12}
"""How many rows servers have above the oldest rollouts, in a terminal that is low or high."""
_CHART_ROWS = {False: 4, True: 7}
_USUAL_COLUMNS = 40  # before it is known how many there are
_MOST_ROWS = 1000
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


def watch(runs: Sequence[Run], *, only: bool) -> None:
    """Show *runs* until the user quits; with *only* no others."""
    RunsApp(runs, only=only).run()


def text_of(line: Line) -> Text:
    """Return *line* as textual shows it."""
    return Text.assemble(*((piece.text, _STYLES[piece.style]) for piece in line), no_wrap=True, end="")


class Panel(Widget):
    """One part of the view, as large as it happens to be."""

    def __init__(self, name: str, place: str | None = None) -> None:
        super().__init__(id=place or name, classes="panel")
        self.border_title, self._panel = PANELS[name]
        self.run: Run | None = None

    def show(self, run: Run) -> None:
        """Show *run* from now on."""
        self.run = run
        self.refresh()

    @property
    def wanted(self) -> int:
        """How many rows it could fill."""
        if self.run is None:
            return 0
        return max(1, len(self._panel(self.run, self.content_size.width or _USUAL_COLUMNS, _MOST_ROWS)))

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
    """All there is to see of one run, in a page that can be longer than the terminal."""

    BINDINGS = [  # noqa: RUF012  textual's own way
        Binding("down", "scroll('down')", "Scroll", key_display="↑↓"),
        Binding("up", "scroll('up')", show=False),
        Binding("pagedown,space", "scroll('page_down')", show=False),
        Binding("pageup", "scroll('page_up')", show=False),
        Binding("home", "scroll('home')", show=False),
        Binding("end", "scroll('end')", show=False),
    ]

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
        with VerticalScroll(id="page", can_focus=False):
            yield Panel("waiting")
            with Horizontal(id="upper"):
                yield Panel("progress")
                yield Panel("in-flight")
            with Horizontal(id="middle"):
                yield Panel("servers")
                yield Panel("tokens")
            yield Panel("stragglers")
            yield Panel("servers", "all-servers")
        yield Footer(show_command_palette=False)

    def show(self, run: Run) -> None:
        """Show *run* from now on."""
        self._run = run
        for bar in self.query(Bar):
            bar.show(run)
        for panel in self.query(Panel):
            panel.show(run)
        self._make_room(run)
        self.call_after_refresh(self.refresh_bindings)  # when it is known what there is room for

    def _make_room(self, run: Run) -> None:
        """Give each part the rows it needs, but for the servers when they are many: all of them come last."""
        wanted = {panel.id: panel.wanted for panel in self.query(Panel)}
        if not wanted:
            return
        is_high = self.app.size.height >= _HIGH
        most = _MOST_SERVERS[is_high]
        for name, rows in (
            ("waiting", wanted["waiting"]),
            ("upper", max(wanted["progress"], wanted["in-flight"])),
            ("middle", max(_CHART_ROWS[is_high], min(most, wanted["servers"]))),
            ("stragglers", wanted["stragglers"]),
            ("all-servers", wanted["servers"]),
        ):
            self.query_one(f"#{name}").styles.height = rows + 1  # and the line with the title
        self.query_one("#all-servers").display = wanted["servers"] > most

    def action_scroll(self, where: str) -> None:
        """Go up or down in the page."""
        page = self.query_one("#page")
        getattr(page, f"scroll_{where}")(animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to scroll where there is more than can be seen."""
        if action == "scroll":
            return self.query_one("#page").max_scroll_y > 0
        return super().check_action(action, parameters)


class HelpScreen(ModalScreen[None]):
    """What the words and keys mean."""

    BINDINGS = [("escape,question_mark,q", "dismiss", "Back")]  # noqa: RUF012  textual's own way

    def compose(self) -> ComposeResult:
        """Make the text."""
        with VerticalScroll(id="help") as box:
            box.border_subtitle = "↑↓ scroll, esc back"
            table = Table.grid(padding=(0, 2))
            for name, meaning in HELP:
                table.add_row(Text(name, "bold"), meaning)
            yield Static(table)


class ChoiceScreen(ModalScreen[Path | None]):
    """A list of runs, to choose one from. It goes on while it is looked at."""

    BINDINGS = [("escape,l", "dismiss", "Back")]  # noqa: RUF012

    def __init__(self, runs: Sequence[Run], shown: Path) -> None:
        super().__init__()
        self._runs = runs
        self._shown = shown
        self._list: OptionList | None = None  # until it has been made

    def compose(self) -> ComposeResult:
        """Make the list."""
        choices = OptionList()
        choices.border_title = "Runs: enter shows one"
        yield choices

    def on_mount(self) -> None:
        """Begin at the run that is shown."""
        self._list = self.query_one(OptionList)
        self._fill(self._list, self._shown)

    def show(self, runs: Sequence[Run]) -> None:
        """Show *runs* from now on; the same one is highlighted."""
        before, self._runs = self._runs, runs
        if self._list is None:
            return
        if [run.path for run in runs] == [run.path for run in before]:
            for run in runs:
                self._list.replace_option_prompt(str(run.path), text_of(head(run, 200)))
        else:
            place = self._list.highlighted
            self._fill(self._list, None if place is None else before[place].path)

    def _fill(self, choices: OptionList, highlighted: Path | None) -> None:
        choices.set_options(Option(text_of(head(run, 200)), id=str(run.path)) for run in self._runs)
        paths = [run.path for run in self._runs]
        choices.highlighted = paths.index(highlighted) if highlighted in paths else 0

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
        if sum(run.is_live for run in self._runs) > 1 and not self._only:
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
            await self.push_screen(ChoiceScreen(self._runs, self._shown), self._choose)

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
        found = {} if self._only else {run.path: run for run in find_runs()}
        others = [_read_again(run) for run in self._runs if run.path not in found]
        self._runs = sorted([*found.values(), *others], key=lambda run: not run.is_live)
        self._show()

    def _show(self) -> None:
        run = next((run for run in self._runs if run.path == self._shown), self._runs[0])
        self._view.show(run)
        if isinstance(self.screen, ChoiceScreen):
            self.screen.show(self._runs)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer another run where there is one."""
        if action in ("step", "choose"):
            return len(self._runs) > 1
        return super().check_action(action, parameters)


def _read_again(run: Run) -> Run:
    with contextlib.suppress(OSError, ValueError):
        return read_run(run.path)
    return run
