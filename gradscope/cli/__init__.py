"""The command line: each command parses, calls one function and prints where the result is.

torch is imported by the command that needs it, so ``--help`` answers at once.
"""

import sys
from typing import Annotated, Any

import typer

import gradscope
from gradscope.cli.analysis import analyze
from gradscope.cli.attacks import attack, transfer
from gradscope.cli.audits import audit
from gradscope.cli.claims import claims
from gradscope.cli.drawing import figures, report
from gradscope.cli.landscapes import landscape
from gradscope.cli.names import list_names
from gradscope.cli.options import is_first_process
from gradscope.cli.studies import study
from gradscope.cli.training import train
from gradscope.errors import GradscopeError

#: click's error for a command line it cannot read; typer's versions differ in where they keep click.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="gradscope",
    help="See an image classifier as a gradient-based attacker does, and tell whether its robustness is real.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

#: Exit code after Ctrl-C, which typer turns into it.
INTERRUPTED = 130


def _version(asked: bool) -> None:
    if asked:
        print(f"gradscope {gradscope.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _gradscope(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


# In the order in which the help lists them.
app.command()(train)
app.command()(analyze)
app.command()(landscape)
app.command()(attack)
app.command()(transfer)
app.command()(audit)
app.command()(study)
app.command()(claims)
app.command()(figures)
app.command()(report)
app.command(name="list")(list_names)


def _usage(error: Any) -> str:
    """One line for click's error, and where the options are explained."""
    command = f"{error.ctx.command_path} --help" if error.ctx else "gradscope --help"
    message = " ".join(error.format_message().replace("Value error, ", "").split())
    return f"{message.removesuffix('.')}; see `{command}`"


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake is one line on stderr and exit code 2."""
    try:
        code = app(arguments, prog_name="gradscope", standalone_mode=False)
    except (GradscopeError, UsageError) as error:
        message = str(error) if isinstance(error, GradscopeError) else _usage(error)
        if is_first_process() or (isinstance(error, GradscopeError) and not error.shared):
            print(f"gradscope: {message}", file=sys.stderr)
        sys.exit(2)
    if code == INTERRUPTED:
        print(
            "gradscope: interrupted; what was written stays, --resume continues (a study: the same command)",
            file=sys.stderr,
        )
    sys.exit(code)
