"""The command line: each command parses its options, calls one function and prints where the result is.

Only commands that need torch import it, so ``--help`` answers at once.
"""

import re
import sys
from typing import Annotated, Any

import typer

import gradscope
from gradscope import process
from gradscope.cli.claims import claims
from gradscope.cli.declared import GroupedCommand, WholeSentences
from gradscope.cli.drawing import figures, report
from gradscope.cli.measuring import measuring_command
from gradscope.cli.names import list_names
from gradscope.cli.shared import is_first_process
from gradscope.cli.studies import study
from gradscope.cli.training import train
from gradscope.errors import GradscopeError
from gradscope.measure.options import COMMANDS
from gradscope.progress import lines_a_minute, printed_cautions

#: click's error for an invalid command line. The place of click differs between versions of typer.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="gradscope",
    cls=WholeSentences,
    help="See an image classifier as a gradient-based attacker does, and tell whether its robustness is real.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

#: Exit code that typer gives after Ctrl-C.
INTERRUPTED = 130
#: Exit code of a command ended by SIGTERM.
TERMINATED = 143


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


# The help lists commands in this order.
app.command("train", cls=GroupedCommand)(train)
for name, kind in COMMANDS.items():
    app.command(name, cls=GroupedCommand)(measuring_command(kind))
app.command(cls=GroupedCommand)(study)
app.command(cls=GroupedCommand)(claims)
app.command(cls=GroupedCommand)(figures)
app.command(cls=GroupedCommand)(report)
app.command(name="list", cls=GroupedCommand)(list_names)


def _usage(error: Any) -> str:
    """Write click's error in one line, and say which help to read."""
    command = f"{error.ctx.command_path} --help" if error.ctx else "gradscope --help"
    message = " ".join(error.format_message().replace("Value error, ", "").split())
    if "No such command 'trace'" in message:  # the name of the function in Python
        message = "No such command 'trace'. Did you mean 'analyze'?"
    return f"{message} See `{command}`" if message.endswith("?") else f"{message.removesuffix('.')}; see `{command}`"


def _options(arguments: list[str] | None) -> list[Any]:
    """List the options of the given command; none if there is no such command."""
    command: Any = typer.main.get_command(app)
    given = sys.argv[1:] if arguments is None else arguments
    parameters = command.commands[given[0]].params if given and given[0] in command.commands else ()
    return [parameter for parameter in parameters if parameter.param_type_name == "option"]


def _with_flag(error: GradscopeError, arguments: list[str] | None) -> str:
    """Replace names of arguments in an error's message by the command's flags.

    The message names arguments at its beginning and in backticks.
    """
    flags = {"model": "CKPT", "attack": "ATTACK", "directory": "DIR", "recipe": "RECIPE", "set": "--set"}
    flags |= {option.name: max(option.opts, key=len) for option in _options(arguments)}
    message, named = str(error), (error.argument or "").partition(".")[0]
    if named in flags and message.startswith(named):
        message = flags[named] + message.removeprefix(named)
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), message)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; print a user's mistake as one line on stderr and exit with code 2."""
    process.set_up()
    try:
        with process.ending_on_sigterm(), printed_cautions(), lines_a_minute():
            code = app(arguments, prog_name="gradscope", standalone_mode=False)
    except (GradscopeError, UsageError) as error:
        message = _with_flag(error, arguments) if isinstance(error, GradscopeError) else _usage(error)
        if is_first_process() or (isinstance(error, GradscopeError) and not error.shared):
            print(f"gradscope: {message}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == TERMINATED:
            _say_interrupted(arguments)
        raise
    if code == INTERRUPTED:
        _say_interrupted(arguments)
    sys.exit(code)


def _say_interrupted(arguments: list[str] | None) -> None:
    names = {option.name for option in _options(arguments)}
    how = "--resume" if "resume" in names else "the same command" if "jobs" in names else None  # a study
    rest = f"; results so far are kept, and {how} continues" if how else ""
    print(f"gradscope: interrupted{rest}", file=sys.stderr)
