"""The command line. Imports stand inside functions, so that help is quick."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="reducible",
    help="Online batch selection for PyTorch: train on the points that matter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OutOption = Annotated[Path, typer.Option("--out", help="New or empty folder for the results.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
StepsOption = Annotated[
    int | None, typer.Option("--max-steps", min=1, help="Stop after so many updates.")
]
CheckpointOption = Annotated[
    int, typer.Option("--checkpoint-every", min=0, help="Updates between them; 0: none.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors that a user can mend are one line and exit status 2, without a traceback.

    Warnings are a line, too; a run that a signal ends has the signal's status.
    """
    import warnings

    from reducible.lab.stopping import Stopped
    from reducible.types import ReducibleError

    shown = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    except (ReducibleError, OSError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from error
    except Stopped as stopped:
        how = "the same command" if stopped.folder is None else f"reducible resume {stopped.folder}"
        typer.secho(f"stopped by signal {stopped.number}; go on with: {how}", err=True)
        raise typer.Exit(int(str(stopped.code))) from stopped
    finally:
        warnings.formatwarning = shown


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """A table on a terminal, tab-separated lines in a pipe (nothing cut off), or JSON."""
    import sys

    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    cells = [
        {k: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in row.items()}
        for row in rows
    ]
    if not sys.stdout.isatty():
        typer.echo("\t".join(rows[0]))
        for row in cells:
            typer.echo("\t".join(row.values()))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], show_edge=False)
    table.columns[0].no_wrap = True
    for row in cells:
        table.add_row(*row.values())
    Console().print(table)


_NEXT = """
Pictures: {seconds}/curves.png, {steps}/curves.png

Next:
  reducible check {seconds}                # are the files as they were written?
  reducible report {steps}/rho             # one run by itself
  reducible break-even MODULE:FUNCTION     # what selection must save on your own model
  docs/tutorial.md                         # selection in a script of your own"""


@app.command()
def demo(
    out: OutOption = Path("runs/demo"), seed: SeedOption = 0, max_steps: StepsOption = None
) -> None:
    """Ask whether selection pays, on real images: in seconds, then in steps."""
    from rich.console import Console

    from reducible.lab.demo import SECONDS, STEPS, run_demo
    from reducible.lab.report.tables import race_table, summary_table

    with _plain_errors():
        found = run_demo(out, seed=seed, max_steps=max_steps)
        console = Console()
        race = found[SECONDS]
        console.print("\n[bold]In the same seconds, everything charged, the rate decaying[/bold]")
        console.print(race_table(race))
        console.print(f"{race['seconds']:.0f} s each, advanced in turns; one seed, one machine:")
        console.print(f"[bold]{race['verdict']}[/bold]", highlight=False)
        console.print("\n[bold]In as many steps, as the paper compares, at a constant rate[/bold]")
        console.print(summary_table(found[STEPS]))
        typer.echo(_NEXT.format(seconds=out / SECONDS, steps=out / STEPS))


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A name that `recipes` lists.")],
    out: OutOption,
    seed: SeedOption = 0,
    max_steps: StepsOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target", help="Accuracy to count the updates to, as 0.8.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="Finished run whose final accuracy is the target."),
    ] = None,
    checkpoint_every: CheckpointOption = 500,
) -> None:
    """Run a recipe into a folder."""
    from reducible.lab.recipes import recipe
    from reducible.lab.run import Run
    from reducible.types import ConfigurationError

    with _plain_errors():
        pairs = [text.partition("=") for text in settings or []]
        wrong = [key for key, equals, _ in pairs if not equals]
        if wrong:
            raise ConfigurationError(f"--set takes KEY=VALUE, got {wrong[0]!r}.")
        chosen = recipe(name).with_settings({key: value for key, _, value in pairs})
        task = Run(
            chosen,
            out,
            seed=seed,
            max_steps=max_steps,
            target=target,
            baseline=baseline,
            checkpoint_every=checkpoint_every,
        )
        summary = task.start()
        if task.target is not None:
            steps = summary["steps_to_target"]
            reached = "not reached" if steps is None else f"after {steps} updates"
            typer.echo(f"target accuracy {task.target:.4f}: {reached}")
        typer.echo(f"final accuracy {summary['final_accuracy']:.4f}; written: {out}")


@app.command()
def sweep(
    names: Annotated[
        list[str], typer.Argument(metavar="RECIPE…", help="Names, or patterns like 'demo/*'.")
    ],
    seeds: Annotated[str, typer.Option("--seeds", help="Like 0-9 or 0-4,7.")] = "0-4",
    work: Annotated[Path, typer.Option("--work", help="Folder of the runs.")] = Path("runs/sweep"),
    results: Annotated[Path, typer.Option("--results", help="Folder of the results files.")] = Path(
        "results"
    ),
    processes: Annotated[int, typer.Option("--processes", min=1, help="Runs at a time.")] = 2,
    checkpoint_every: CheckpointOption = 500,
) -> None:
    """Run recipes with many seeds; finished runs are skipped, stopped ones go on."""
    from reducible.lab.recipes import matching
    from reducible.lab.sweep import parse_seeds, run_sweep

    with _plain_errors():
        paths = run_sweep(
            matching(names),
            parse_seeds(seeds),
            work=work,
            results=results,
            processes=processes,
            checkpoint_every=checkpoint_every,
        )
        typer.echo("\n".join(["written:", *map(str, paths)]))


@app.command()
def resume(out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")]) -> None:
    """Go on exactly where a run stopped."""
    from reducible.lab.recipes import Recipe
    from reducible.lab.records import read_json
    from reducible.lab.run import Run

    with _plain_errors():
        if (out / "summary.json").exists():
            read_json(out / "summary.json", sealed=True)
            typer.echo(f"{out} is complete; nothing to do.")
            return
        config = read_json(out / "config.json", sealed=True)
        again = Run(
            Recipe.from_settings(config["settings"]),
            out,
            seed=config["seed"],
            max_steps=config["steps"],
            checkpoint_every=config["checkpoint_every"],
            target=config.get("target_accuracy"),
        )
        summary = again.resume()
        typer.echo(f"final accuracy {summary['final_accuracy']:.4f}; written: {out}")


@app.command()
def check(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders of runs.")],
) -> None:
    """Whether the files of runs are what was written; exit status 1 if one is not."""
    from reducible.lab.checking import check_folder

    with _plain_errors():
        found = [finding for folder in folders for finding in check_folder(folder)]
    for path, problem in found:
        typer.echo(f"{'ok' if problem is None else 'DAMAGED':8}{path}")
        if problem is not None:
            typer.echo(f"        {problem}")
    if any(problem is not None for _, problem in found):
        raise typer.Exit(1)


@app.command()
def selectors(as_json: JsonOption = False) -> None:
    """List the selection rules: what they choose, need and cost, what is said against them."""
    from reducible.lab.method_pages import describe
    from reducible.selectors import SELECTORS

    _print_rows([describe(row) for row in SELECTORS.values()], as_json)


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the named runs."""
    from reducible.lab.recipes import RECIPES

    if as_json:
        typer.echo(json.dumps([r.settings() for r in RECIPES.values()], indent=2))
        return
    rows = [
        {
            "name": r.name,
            "selector": r.selector,
            "model": r.model,
            "n_b/n_B": f"{r.n_b}/{r.n_candidates}",
            "steps": r.steps,
            "label noise": r.label_noise,
            "holdout noise": r.holdout_noise,
        }
        for r in RECIPES.values()
    ]
    _print_rows(rows, as_json)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Run or demo folders.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the figure; the first DIR by default.")
    ] = None,
) -> None:
    """Draw a table and a figure from the records of runs."""
    from rich.console import Console

    from reducible.lab.report.folders import report as make_report

    with _plain_errors():
        Console().print(make_report(folders, out or folders[0]))
        typer.echo(f"written: {(out or folders[0]) / 'curves.png'}")


@app.command()
def pages(
    out: Annotated[Path, typer.Option("--out", help="Folder for the pages.")] = Path(
        "docs/methods"
    ),
) -> None:
    """Write the method pages from the table of rules."""
    from reducible.lab.method_pages import write_pages

    with _plain_errors():
        typer.echo(f"{len(write_pages(out))} pages in {out}")


@app.command(name="break-even")
def break_even(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function without arguments that returns (model, batch) or (model, batch, "
            "task); the batch has the size that is trained on.",
        ),
    ],
) -> None:
    """Measure what selection must save on your own model before it pays."""
    import importlib
    import sys

    from reducible.costs import break_even as measure_it
    from reducible.types import ConfigurationError

    with _plain_errors():
        module, colon, function = target.partition(":")
        if not colon or not module or not function or module.startswith("."):
            raise ConfigurationError(f"name it MODULE:FUNCTION, got {target!r}.")
        sys.path.insert(0, "")
        try:
            made = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"cannot call {target}: {error}.") from error
        if not isinstance(made, tuple) or len(made) not in (2, 3):
            raise ConfigurationError(
                f"{target} must return (model, batch) or (model, batch, task), got "
                f"{type(made).__name__}."
            )
        model, batch, *task = made
        typer.echo(str(measure_it(model, batch, task=task[0] if task else None)))


@app.command()
def bench(
    as_json: JsonOption = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
) -> None:
    """Measure what selection costs on this machine, beside its floor."""
    from reducible.lab.bench import run_bench

    with _plain_errors():
        rows = run_bench(quick=quick)
        _print_rows(rows, as_json)


if __name__ == "__main__":
    app()
