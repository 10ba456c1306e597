"""Where the stages of a study run. No torch here: the command line knows the names from this table."""

#: The engines by name; each is the class of the module of its name.
ENGINES: dict[str, str] = {
    "local": "on this machine, one stage after the other or several side by side",
    "ray": "spread over a cluster, or over this machine's cores",
}
