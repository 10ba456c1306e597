"""The engines that run the stages of a study. Without torch, so that the command line can check them quickly."""

from math import inf

from gradscope.errors import GradscopeError, lookup

#: The engines by name; the module of the same name implements each.
ENGINES: dict[str, str] = {
    "local": "on this machine, one stage after the other or several at a time",
    "ray": "on a Ray cluster, or on this machine's cores",
}


def check_running(engine: str, jobs: int, until: float | None) -> None:
    """Raise :class:`GradscopeError` for an unknown ``engine``, ``jobs`` that it cannot run, or a wrong ``until``."""
    lookup(ENGINES, engine, "engine")
    if jobs < 1:
        raise GradscopeError(f"jobs must be at least 1, got {jobs}")
    if engine != "local" and jobs > 1:
        raise GradscopeError(f"jobs must be 1 if `engine` is '{engine}', got {jobs}")
    if until is not None and not 0 < until < inf:
        raise GradscopeError(f"until must be a positive number of seconds, got {until:g}")
