"""Where the stages of a study run. No torch here: the command line knows the names from this table."""

#: The engines by name; each is the class of the module of its name.
ENGINES: dict[str, str] = {
    "local": "one stage after the other, in this process",
    "ray": "spread over a cluster, or over this machine's cores",
}
