"""Where the stages of a study run. No torch here: the command line refuses what cannot run with these."""

from math import inf

from gradscope.errors import GradscopeError, lookup

#: The engines by name; each is the class of the module of its name.
ENGINES: dict[str, str] = {
    "local": "on this machine, one stage after the other or several side by side",
    "ray": "spread over a cluster, or over this machine's cores",
}


def check_running(engine: str, jobs: int, until: float | None) -> None:
    """Raise :class:`GradscopeError` where ``engine`` is unknown, or cannot run ``jobs`` stages or ``until`` then."""
    lookup(ENGINES, engine, "engine")
    if jobs < 1:
        raise GradscopeError(f"jobs must be at least 1, got {jobs}")
    if engine != "local" and jobs > 1:
        raise GradscopeError(f"jobs must be 1 where `engine` is '{engine}', got {jobs}")
    if until is not None and not 0 < until < inf:
        raise GradscopeError(f"until must be a positive number of seconds, got {until:g}")
