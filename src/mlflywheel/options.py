"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from mlflywheel.errors import UsageError

Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.", show_default=True)]
Registry = Annotated[
    str | None,
    typer.Option(
        "--registry", help="Path of an embedded registry or URL of a Kubeflow Model Registry.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="OURS=THEIRS", help="Our column name and the table's; repeatable.", show_default=False
    ),
]
Split = Annotated[
    bool, typer.Option("--split-terms", help="Short for --prepare split_terms=true: one text a campaign.")
]
Prepares = Annotated[
    list[str] | None,
    typer.Option("--prepare", metavar="NAME=VALUE", help="A preparation setting; repeatable.", show_default=False),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=VALUE", help="A model parameter, nested with dots; repeatable.", show_default=False
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other pipeline parameter; repeatable.", show_default=False),
]
ExperimentFile = Annotated[
    Path | None,
    typer.Option("--experiment", help="Another search for parameters, a Katib Experiment.", show_default=False),
]
GatesFile = Annotated[Path | None, typer.Option("--gates", help="Other thresholds, YAML.", show_default=False)]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="What else to measure, as in evaluation.yaml.", show_default=False)
]
ExpectationsFile = Annotated[
    Path | None, typer.Option("--expectations", help="Another validation suite, JSON.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def read_text_file(option: str, path: Path) -> str:
    """Return the text of a file that an option names.

    Raises:
        UsageError: It cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{option} {path}", reason, "a readable text file is needed", "correct the path") from None
